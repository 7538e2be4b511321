// Package archive imports images from files: tarballs of a root file system,
// plain or compressed with gzip, zstd or xz, and the unified tarballs of Incus
// and LXD, which hold metadata.yaml beside rootfs/. OCI layouts and archives,
// which people do not tell apart from those, are handed to the OCI source.
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

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// Importer opens files as images.
type Importer struct {
	oci images.Source
}

// New makes an importer that leaves OCI images to oci.
func New(oci images.Source) *Importer { return &Importer{oci: oci} }

// Open gives the image in the file or directory at path. It reads a tarball
// once, for its fingerprint, which is the sha256 of the file as it is. An
// architecture in o is taken for true; else it is found out by Unpack. Errors:
// not-found, forbidden, invalid for what is no image, unsupported for images of
// another kind.
func (i *Importer) Open(ctx context.Context, path string, o images.ResolveOptions) (images.Remote, error) {
	r, err := i.open(ctx, path, o)
	if err != nil {
		return nil, fmt.Errorf("cannot import %q: %w", path, err)
	}
	return r, nil
}

func (i *Importer) open(ctx context.Context, path string, o images.ResolveOptions) (images.Remote, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, pathFault(err)
	}
	t := &tarball{f: f, path: path, architecture: o.Architecture}
	scheme, err := t.identify(ctx)
	if err != nil || scheme != "" {
		f.Close()
		if err != nil {
			return nil, err
		}
		return i.openOCI(ctx, scheme, path, o)
	}
	if err := t.hash(ctx, o.Progress); err != nil {
		f.Close()
		return nil, err
	}
	return t, nil
}

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

// kinds of files that are images, but not of this version.
var kinds = map[string]string{
	"hsqs":       "a squashfs image",
	"QFI\xfb":    "a qcow2 disk image",
	"KDMV":       "a VMDK disk image",
	"conectix":   "a VHD disk image",
	"BZh":        "compressed with bzip2 (recompress it with gzip, zstd or xz)",
	"PK\x03\x04": "a zip file",
}

const xzMagic = "\xfd7zXZ\x00"

// identify tells the scheme of an OCI image, or nothing for a tarball.
func (t *tarball) identify(ctx context.Context) (scheme string, err error) {
	info, err := t.f.Stat()
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err)
	}
	if info.IsDir() {
		if _, err := os.Lstat(filepath.Join(t.path, "oci-layout")); err != nil {
			return "", fault.New(fault.Invalid, "it is a directory and no OCI image layout")
		}
		return "oci", nil
	}
	if !info.Mode().IsRegular() {
		return "", fault.New(fault.Invalid, "it is neither a file nor a directory")
	}
	t.size = info.Size()
	t.image.CreatedAt = info.ModTime().UTC()
	var head [16]byte
	n, err := t.f.ReadAt(head[:], 0)
	if err != nil && err != io.EOF {
		return "", fault.Wrap(fault.Unavailable, err)
	}
	for magic, what := range kinds {
		if bytes.HasPrefix(head[:n], []byte(magic)) {
			return "", fault.New(fault.Unsupported, "it is %s; this version of brig imports tarballs and OCI images", what)
		}
	}
	t.xz = bytes.HasPrefix(head[:n], []byte(xzMagic))
	return t.ociScheme(ctx)
}

// ociScheme looks at the first names in the archive. Which archive of docker or
// OCI it is only a list of all names could tell.
func (t *tarball) ociScheme(ctx context.Context) (string, error) {
	names, err := t.firstNames(ctx)
	if err != nil {
		return "", err
	}
	for _, n := range names {
		switch {
		case n == "oci-layout" || n == "index.json":
			return "oci-archive", nil
		case n == "manifest.json" || n == "repositories":
			return "docker-archive", nil
		case strings.HasPrefix(n, "blobs/sha256/"):
			return t.savedOrLayout(ctx)
		case dockerName().MatchString(n):
			return "docker-archive", nil
		}
	}
	return "", nil
}

// hash finds the fingerprint.
func (t *tarball) hash(ctx context.Context, p images.Progress) error {
	if p == nil {
		p = images.Discard
	}
	task := p.Task("Reading "+filepath.Base(t.path), t.size, true)
	defer task.Done()
	h := rootfs.NewHashReader(watched{ctx, t.f, task})
	if _, err := io.Copy(io.Discard, h); err != nil {
		return err
	}
	t.image.Fingerprint = strings.TrimPrefix(h.Digest(), "sha256:")
	t.image.Kind = images.System
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
