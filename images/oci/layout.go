package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/instance/fault"
)

// files are the files of an image layout: a directory, or what an archive of
// one holds. Names are slash-separated and clean.
type files interface {
	// open gives a regular file and its size. Errors: not-found, invalid.
	open(name string) (file, int64, error)
	Close() error
}

type file interface {
	io.Reader
	io.ReaderAt
	io.Closer
}

// layout is the origin of images in an OCI image layout
// (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).
type layout struct {
	files
	tag string
}

func isIndexType(mediaType string) bool { return types.MediaType(mediaType).IsIndex() }

// refName is the annotation that holds the tag of a manifest in index.json.
const refName = "org.opencontainers.image.ref.name"

func openLayoutDir(name string) (*layout, error) {
	dir, tag, _ := strings.Cut(name, ":")
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, pathFault(err)
	}
	return newLayout(dirFiles{root}, tag)
}

func (s *Source) openLayoutArchive(ctx context.Context, name string) (*layout, error) {
	path, tag, _ := strings.Cut(name, ":")
	a, err := s.openArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	return newLayout(a, tag)
}

func newLayout(f files, tag string) (*layout, error) {
	l := &layout{files: f, tag: tag}
	var version struct {
		ImageLayoutVersion string `json:"imageLayoutVersion"`
	}
	data, err := readAll(f, "oci-layout", 4096)
	switch {
	case fault.Is(err, fault.NotFound):
		err = fault.New(fault.Invalid, "it is no OCI image layout: it has no file oci-layout")
	case err != nil:
	case json.Unmarshal(data, &version) != nil || !strings.HasPrefix(version.ImageLayoutVersion, "1."):
		err = fault.New(fault.Unsupported, "it is an OCI image layout of the unknown version %.20q", version.ImageLayoutVersion)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return l, nil
}

func (l *layout) local() bool { return true }

// root gives the part of index.json that has the tag. Without a tag the layout
// has to hold one image only.
func (l *layout) root(context.Context) (document, error) {
	data, err := readAll(l, "index.json", maxManifest)
	if err != nil {
		return document{}, err
	}
	index, err := parseManifest(document{mediaType: string(types.OCIImageIndex), data: data})
	if err != nil {
		return document{}, err
	}
	var tags []string
	match := index.Manifests[:0:0]
	for _, d := range index.Manifests {
		tag := d.Annotations[refName]
		if tag != "" && !slices.Contains(tags, tag) {
			tags = append(tags, tag)
		}
		if l.tag == "" || tag == l.tag {
			match = append(match, d)
		}
	}
	switch {
	case len(match) == 0 && l.tag != "":
		return document{}, fault.New(fault.NotFound, "it has no tag %q, only %.300q", l.tag, strings.Join(tags, ", "))
	case len(match) == 0:
		return document{}, fault.New(fault.NotFound, "it is empty")
	case l.tag == "" && len(tags) > 1:
		return document{}, fault.New(fault.Invalid, "it has several images: add one of the tags %.300q after a colon", strings.Join(tags, ", "))
	case len(match) == 1:
		match[0].Platform = nil // the configuration tells better
	}
	m := &manifest{SchemaVersion: 2, MediaType: string(types.OCIImageIndex), Manifests: match}
	return m.encode()
}

func (l *layout) manifest(ctx context.Context, d descriptor) (stream, error) {
	return l.blob(ctx, d, 0)
}

func (l *layout) blob(_ context.Context, d descriptor, _ int64) (stream, error) {
	if err := d.check(); err != nil {
		return stream{}, err
	}
	return openExact(l, "blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:"), d)
}

// openExact opens the file of d, which has to have its size.
func openExact(f files, name string, d descriptor) (stream, error) {
	r, size, err := f.open(name)
	if fault.Is(err, fault.NotFound) {
		return stream{}, fault.New(fault.Invalid, "it is not complete: it lacks %s", d.Digest)
	}
	if err != nil {
		return stream{}, err
	}
	if size != d.Size {
		r.Close()
		return stream{}, fault.New(fault.Unavailable, "%s has %d bytes instead of %d (wrong size)", d.Digest, size, d.Size)
	}
	return stream{ReadCloser: r}, nil
}

func readAll(f files, name string, limit int64) ([]byte, error) {
	r, size, err := f.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fault.New(fault.Invalid, "%q has %d bytes, at most %d are allowed", name, size, limit)
	}
	data, err := io.ReadAll(io.LimitReader(r, limit))
	if err != nil {
		return nil, fmt.Errorf("cannot read %q: %w", name, err)
	}
	return data, nil
}

// dirFiles are the files of a directory, which may be anybody's.
type dirFiles struct{ root *os.Root }

func (d dirFiles) open(name string) (file, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, pathFault(err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fault.New(fault.Invalid, "%q is not a file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

func (d dirFiles) Close() error { return d.root.Close() }

// pathFault classes what goes wrong with a path that the user gave.
func pathFault(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Forbidden, err)
	}
	return fault.Wrap(fault.Invalid, err)
}
