// Package archive imports images from files: tarballs of a root file system,
// squashfs images, the unified and split images of Incus and LXD, and disks of
// virtual machines (package diskfile). What a file is its content says, never its
// name. OCI layouts and archives, which people do not tell apart from those, are
// handed to the OCI source.
//
// Files are as hostile as what comes over the network: unpacking is that of
// package rootfs, and what was unpacked is looked at only inside its root.
package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"brig/images"
	"brig/images/diskfile"
	"brig/images/incus"
	"brig/images/rootfs"
	"brig/images/rootfs/squashfs"
	"brig/instance/fault"
)

// Importer opens files as images.
type Importer struct {
	oci  images.Source
	look Look
}

// Look shows the files of a raw disk that is one file system, read-only, until done is
// called. It checks the file system before the kernel sees it.
type Look func(ctx context.Context, disk string) (root *os.File, done func() error, err error)

// New makes an importer that leaves OCI images to oci, and sees the files on disks by
// look. Without the latter it refuses such disks.
func New(oci images.Source, look Look) *Importer { return &Importer{oci, look} }

// Open gives the image in the file or directory at path, or that of which path has
// the metadata and o.Rootfs the rest. It reads files once, for the fingerprint,
// which is the sha256 of what they hold, one after the other. An architecture in o
// is taken for true; else it is found out by Unpack. Errors: not-found, forbidden,
// invalid for what is no image, unsupported for images of another kind.
func (i *Importer) Open(ctx context.Context, path string, o images.ResolveOptions) (images.Remote, error) {
	r, err := i.open(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("cannot import %q: %w", path, err)
	}
	return r, nil
}

func (i *Importer) open(ctx context.Context, path string, o images.ResolveOptions) (_ images.Remote, err error) {
	if o.Rootfs != "" {
		return i.openSplit(ctx, path, o)
	}
	t, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil || t.scheme != "" {
			t.Close()
		}
	}()
	t.architecture, t.look = o.Architecture, i.look
	if err := t.identify(ctx); err != nil {
		return nil, err
	}
	if t.scheme != "" {
		return i.openOCI(ctx, t.scheme, path, o)
	}
	return t, t.describe(ctx, o.Progress)
}

// openSplit opens a split image.
func (i *Importer) openSplit(ctx context.Context, path string, o images.ResolveOptions) (_ images.Remote, err error) {
	meta, err := openFile(path)
	if err != nil {
		return nil, err
	}
	defer meta.f.Close()
	t, err := openFile(o.Rootfs)
	if err != nil {
		return nil, fmt.Errorf("the root file system %q: %w", o.Rootfs, err)
	}
	defer func() {
		if err != nil {
			t.Close()
		}
	}()
	t.architecture, t.path, t.look = o.Architecture, path, i.look
	if err := t.identify(ctx); err != nil {
		return nil, fmt.Errorf("the root file system %q: %w", o.Rootfs, err)
	}
	if t.scheme != "" || t.form == unified {
		return nil, fault.New(fault.Invalid, "%q is a whole image, not the root file system of one: import it alone", o.Rootfs)
	}
	if meta.size > maxMeta {
		return nil, fault.New(fault.Invalid, "it has %d bytes, too many for the metadata of an image: the metadata comes first, then the root file system", meta.size)
	}
	if t.meta, err = io.ReadAll(io.LimitReader(meta.f, maxMeta)); err != nil {
		return nil, err
	}
	if t.metadata, err = incus.ReadTar(ctx, bytes.NewReader(t.meta)); err != nil {
		return nil, err
	}
	return t, t.describe(ctx, o.Progress)
}

// maxMeta bounds the file with the metadata of a split image.
const maxMeta = 64 << 20

func pathFault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Forbidden, err)
	}
	return fault.Wrap(fault.Invalid, err)
}

func (i *Importer) openOCI(ctx context.Context, scheme, path string, o images.ResolveOptions) (images.Remote, error) {
	if strings.Contains(path, ":") {
		return nil, fault.New(fault.Invalid, "the path of an OCI image cannot hold a colon: rename the file")
	}
	return i.oci.Resolve(ctx, images.Ref{Scheme: scheme, Name: path}, o)
}

// identify tells what it is: the scheme of an OCI image, or the form of a file.
func (t *file) identify(ctx context.Context) error {
	info, err := t.f.Stat()
	if err != nil {
		return fault.Wrap(fault.Unavailable, err)
	}
	if info.IsDir() {
		if _, err := os.Lstat(filepath.Join(t.path, "oci-layout")); err != nil {
			return fault.New(fault.Invalid, "it is a directory and no OCI image layout")
		}
		t.scheme = "oci"
		return nil
	}
	if !info.Mode().IsRegular() {
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	}
	head := make([]byte, 6)
	n, err := t.f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return fault.Wrap(fault.Unavailable, err)
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte(squashfs.Magic)):
		t.form = squashed
		return nil
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		return fault.New(fault.Unsupported, "it is a zip file; unpack it first")
	case rootfs.Compressed(head):
		return t.identifyTar(ctx)
	}
	t.disk, err = diskfile.Identify(t.f, t.size)
	if fault.Is(err, fault.NotFound) {
		return t.identifyTar(ctx)
	}
	t.form = disk
	if err != nil {
		return err
	}
	whole, err := diskfile.IsFileSystem(ctx, t.f, t.disk)
	if whole {
		t.form = bare
	}
	return err
}

// identifyTar looks at the first names in the archive. Which archive of docker or
// OCI it is only a list of all names could tell.
func (t *file) identifyTar(ctx context.Context) error {
	names, err := t.firstNames(ctx)
	if err != nil {
		return err
	}
	t.form = tree
	for _, n := range names {
		switch {
		case n == "oci-layout" || n == "index.json":
			t.scheme = "oci-archive"
		case n == "manifest.json" || n == "repositories":
			t.scheme = "docker-archive"
		case strings.HasPrefix(n, "blobs/sha256/"):
			t.scheme, err = t.savedOrLayout(ctx)
		case dockerName().MatchString(n):
			t.scheme = "docker-archive"
		case n == "metadata.yaml":
			t.unified = true
			continue
		case n == unifiedDisk:
			t.form = unified
		case strings.HasSuffix(strings.ToLower(n), ".ovf"):
			t.form = disk
			t.disk, err = diskfile.IdentifyOVA(t.f, t.size)
		default:
			continue
		}
		return err
	}
	return nil
}

// describe finds the fingerprint and makes the record.
func (t *file) describe(ctx context.Context, p images.Progress) error {
	if p == nil {
		p = images.Discard
	}
	task := p.Task("Reading "+filepath.Base(t.path), t.size, true)
	defer task.Done()
	h := rootfs.NewHashReader(io.MultiReader(bytes.NewReader(t.meta), watched{ctx, t.f, task}))
	if _, err := io.Copy(io.Discard, h); err != nil {
		return err
	}
	t.image.Fingerprint = strings.TrimPrefix(h.Digest(), "sha256:")
	t.image.Kind = images.System
	if t.form == disk || t.form == unified {
		t.image.Kind = images.Disk
	}
	t.image.Size = h.Size()
	t.image.Description = filepath.Base(t.path)
	t.image.Architecture = t.architecture
	t.image.Properties = map[string]string{}
	return nil
}

// watched is a reader that obeys a context and tells a task.
type watched struct {
	ctx  context.Context
	r    io.Reader
	task images.Task
}

func (w watched) Read(p []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.r.Read(p)
	w.task.Add(int64(n))
	return n, err
}
