package archive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"regexp"
	"sync"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/run"
)

// tarball is the images.Remote of a root file system in a tar.
type tarball struct {
	f            *os.File
	path         string
	size         int64
	xz           bool
	architecture string // as the user says; empty: to be found out
	image        images.Image
}

func (t *tarball) Image() images.Image { return t.image }

func (t *tarball) Close() error { return t.f.Close() }

// Unpack applies the tarball, and completes the record from what was in it.
func (t *tarball) Unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	if p == nil {
		p = images.Discard
	}
	err := t.unpack(ctx, root, p)
	if err == nil {
		err = t.complete(root)
	}
	if err != nil {
		return images.Image{}, fmt.Errorf("cannot import %q: %w", t.path, err)
	}
	return t.image, nil
}

func (t *tarball) unpack(ctx context.Context, root *os.Root, p images.Progress) error {
	task := p.Task("Unpacking "+path.Base(t.path), t.size, true)
	defer task.Done()
	in := rootfs.NewHashReader(watched{ctx, io.NewSectionReader(t.f, 0, t.size), task})
	out, err := t.inflate(ctx, in)
	if err != nil {
		return err
	}
	err = rootfs.Apply(ctx, root, rootfs.Limits{}, out)
	if err := errors.Join(err, out.Close()); err != nil {
		return err
	}
	if in.Digest() != "sha256:"+t.image.Fingerprint {
		return fault.New(fault.Unavailable, "the file was changed while it was read")
	}
	return nil
}

// inflate gives the tar. It has read r to its end when it gives io.EOF.
func (t *tarball) inflate(ctx context.Context, r io.Reader) (io.ReadCloser, error) {
	if !t.xz {
		return rootfs.Decompress(r, "", rootfs.Limits{})
	}
	ctx, cancel := context.WithCancel(ctx)
	pr, pw := io.Pipe()
	x := &unxz{PipeReader: pr, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(x.done)
		_, err := run.With(ctx, run.Options{Stdin: r, Stdout: pw}, "xz", "--decompress", "--stdout", "--memlimit-decompress=1GiB")
		if tool, ok := errors.AsType[*run.Error](err); ok {
			err = fault.New(fault.Invalid, "its compressed data is damaged: %w", tool)
		}
		pw.CloseWithError(err)
	}()
	return x, nil
}

// unxz is the output of xz.
type unxz struct {
	*io.PipeReader
	cancel func()
	done   chan struct{}
}

func (x *unxz) Close() error {
	x.cancel()
	x.PipeReader.Close()
	<-x.done
	return nil
}

// dockerName is how older versions of docker name what they save.
var dockerName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{64}(\.json|/json|/layer\.tar|/VERSION)$`)
})

// firstNames are the first few names of files in the archive.
func (t *tarball) firstNames(ctx context.Context) ([]string, error) {
	out, err := t.inflate(ctx, io.NewSectionReader(t.f, 0, t.size))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	tr := tar.NewReader(out)
	var names []string
	for len(names) < 8 {
		hdr, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			if class := fault.Of(err); class != fault.Internal {
				return nil, err
			}
			return nil, fault.New(fault.Invalid, "it is no tar archive: %w", err)
		}
		if hdr.Typeflag != tar.TypeDir {
			names = append(names, path.Clean(hdr.Name))
		}
		if hdr.Size > 1<<20 {
			break // what follows costs inflating that
		}
	}
	return names, nil
}

// savedOrLayout tells the two kinds of archives with OCI blobs apart: docker
// since version 25 saves both forms in one file.
func (t *tarball) savedOrLayout(ctx context.Context) (string, error) {
	out, err := t.inflate(ctx, io.NewSectionReader(t.f, 0, t.size))
	if err != nil {
		return "", err
	}
	defer out.Close()
	tr := tar.NewReader(out)
	for {
		hdr, err := tr.Next()
		if err == io.EOF {
			return "docker-archive", nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return "", fault.New(fault.Invalid, "it is no tar archive: %w", err)
		}
		if path.Clean(hdr.Name) == "oci-layout" {
			return "oci-archive", nil
		}
	}
}

// complete finds out what the unpacked tree is.
func (t *tarball) complete(root *os.Root) error {
	m, err := hoist(root)
	if err != nil {
		return err
	}
	m.describe(&t.image)
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	switch init := findInit(dir); {
	case init == "" && !executable(dir, "/bin/sh"):
		return fault.New(fault.Invalid, "it holds no root file system: there is neither an init nor /bin/sh in it")
	case init == "":
		t.image.Kind = images.App
		t.image.App = &instance.App{Cmd: []string{"/bin/sh"}}
	case init != "/sbin/init":
		t.image.Properties[images.InitProperty] = init
	}
	if t.architecture == "" {
		t.image.Architecture = architecture(dir)
	}
	if t.image.Architecture == "" {
		t.image.Architecture = m.architecture()
	}
	if t.image.Architecture == "" {
		return fault.New(fault.Invalid, "it does not show for which architecture it is: say it with --arch")
	}
	return nil
}
