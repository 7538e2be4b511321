package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/images/diskfile"
	"brig/images/incus"
	"brig/images/pack"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// form is what is in a file.
type form string

const (
	tree     form = "tree"     // a tar of a root file system, or a unified image of one
	unified  form = "unified"  // a unified image with a disk
	squashed form = "squashfs" // a root file system
	disk     form = "disk"
	bare     form = "bare" // a disk that is one file system
)

// unifiedDisk is the name of the disk in a unified image.
const unifiedDisk = "rootfs.img"

// file is the images.Remote of a file.
type file struct {
	look         Look
	f            *os.File
	path         string
	size         int64
	scheme       string // of an OCI image
	form         form
	unified      bool          // metadata.yaml was among the first names
	disk         diskfile.Info // of the form disk
	meta         []byte        // the first file of a split image
	metadata     incus.Metadata
	architecture string // as the user says; empty: to be found out
	image        images.Image
}

func openFile(path string) (*file, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, pathFault(err)
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	t := &file{f: f, path: path, size: st.Size()}
	t.image.CreatedAt = st.ModTime().UTC()
	return t, nil
}

func (t *file) Image() images.Image { return t.image }

func (t *file) Close() error { return t.f.Close() }

// Note implements images.Noter.
func (t *file) Note() string { return t.metadata.Note() }

// Unpack applies the file, and completes the record from what was in it.
func (t *file) Unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	if p == nil {
		p = images.Discard
	}
	if err := t.unpack(ctx, root, p); err != nil {
		return images.Image{}, fmt.Errorf("cannot import %q: %w", t.path, err)
	}
	return t.image, nil
}

func (t *file) unpack(ctx context.Context, root *os.Root, p images.Progress) error {
	task := p.Task("Unpacking "+path.Base(t.path), t.size, true)
	defer task.Done()
	switch t.form {
	case disk:
		return incus.Disk(ctx, root, t.f, t.disk, &t.image, t.metadata, t.architecture)
	case bare:
		return t.unpackBare(ctx, root)
	case squashed:
		in := io.NewSectionReader(watchedAt{ctx, t.f, task}, 0, t.size)
		return t.unchanged(func() error {
			return incus.Squashfs(ctx, root, in, t.size, &t.image, t.metadata, t.architecture)
		})
	}
	in := rootfs.NewHashReader(io.MultiReader(bytes.NewReader(t.meta), watched{ctx, io.NewSectionReader(t.f, 0, t.size), task}))
	if _, err := io.CopyN(io.Discard, in, int64(len(t.meta))); err != nil {
		return err
	}
	var err error
	if t.form == unified {
		t.metadata, err = incus.UnifiedDisk(ctx, root, in, unifiedDisk, &t.image, t.architecture)
	} else {
		t.metadata, err = incus.Tree(ctx, root, in, &t.image, t.metadata, t.architecture)
	}
	if err != nil {
		return err
	}
	if in.Digest() != "sha256:"+t.image.Fingerprint {
		return fault.New(fault.Unavailable, "the file was changed while it was read")
	}
	return nil
}

// unpackBare takes the files out of a disk that is one file system.
func (t *file) unpackBare(ctx context.Context, root *os.Root) (err error) {
	if t.look == nil {
		return fault.New(fault.Unsupported, "this disk is one file system, into which nothing here looks")
	}
	if _, err := diskfile.Convert(ctx, t.f, t.disk, root); err != nil {
		return err
	}
	dir, done, err := t.look(ctx, filepath.Join(root.Name(), images.DiskFile))
	// What is looked at is held, and its name may be one of the files'.
	if err = errors.Join(err, root.Remove(images.DiskFile)); err != nil {
		if done != nil {
			err = errors.Join(err, done())
		}
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pr, pw := io.Pipe()
	packed := make(chan struct{})
	go func() {
		defer close(packed)
		w := pack.NewWriter(ctx, pw, dir, "")
		pw.CloseWithError(errors.Join(w.Tree(), w.Close()))
	}()
	t.metadata, err = incus.Tree(ctx, root, pr, &t.image, t.metadata, t.architecture)
	pr.CloseWithError(io.ErrClosedPipe)
	<-packed
	if err != nil {
		return err
	}
	return dropLost(root)
}

// dropLost takes away what mkfs left, as if it never was.
func dropLost(root *os.Root) error {
	top, err := root.Stat(".")
	if err != nil || root.Remove("lost+found") != nil {
		return err // there is none, or it holds something
	}
	return root.Chtimes(".", top.ModTime(), top.ModTime())
}

// unchanged refuses what work made of a file that was changed meanwhile.
func (t *file) unchanged(work func() error) error {
	before, err := t.f.Stat()
	if err != nil {
		return err
	}
	if err := work(); err != nil {
		return err
	}
	after, err := t.f.Stat()
	if err != nil {
		return err
	}
	if before.Sys().(*syscall.Stat_t).Ctim != after.Sys().(*syscall.Stat_t).Ctim {
		return fault.New(fault.Unavailable, "the file was changed while it was read")
	}
	return nil
}

// watchedAt is watched for reads from anywhere.
type watchedAt struct {
	ctx  context.Context
	r    io.ReaderAt
	task images.Task
}

func (w watchedAt) ReadAt(p []byte, off int64) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.r.ReadAt(p, off)
	w.task.Add(int64(n))
	return n, err
}

// dockerName is how older versions of docker name what they save.
var dockerName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{64}(\.json|/json|/layer\.tar|/VERSION)$`)
})

// firstNames are the first few names of files in the archive.
func (t *file) firstNames(ctx context.Context) ([]string, error) {
	out, err := rootfs.Inflate(ctx, io.NewSectionReader(t.f, 0, t.size), rootfs.Limits{})
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
func (t *file) savedOrLayout(ctx context.Context) (string, error) {
	out, err := rootfs.Inflate(ctx, io.NewSectionReader(t.f, 0, t.size), rootfs.Limits{})
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
