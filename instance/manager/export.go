package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"brig/images"
	"brig/instance/fault"
	"brig/storage/treediff"
)

// ExportImage writes an image to where to names, with the scheme oci, oci-archive,
// docker-archive or docker (a registry), and gives the digest of its manifest. What
// came as layers goes out as it came. Other images become one layer; if it was
// published of an instance whose image came as layers, those, and one with what
// differs.
func (m *Manager) ExportImage(ctx context.Context, name, to string) (digest string, err error) {
	image, err := m.Image(ctx, name)
	if err != nil {
		return "", err
	}
	ref, err := images.ParseRef(to)
	if err != nil {
		return "", err
	}
	if ref.Scheme == "" {
		return "", fault.New(fault.Invalid, "cannot export image %q to %q: want oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE:NAME[:TAG] or docker://HOST/REPOSITORY[:TAG]", name, to)
	}
	if digest, err = m.exportImage(ctx, image, ref); err != nil {
		return "", fmt.Errorf("cannot export image %q to %q: %w", name, to, err)
	}
	return digest, nil
}

func (m *Manager) exportImage(ctx context.Context, image *images.Image, to images.Ref) (digest string, err error) {
	release, err := m.cfg.Images.Use(ctx) // the blobs stay
	if err != nil {
		return "", err
	}
	defer release()
	e := images.Export{Image: *image, Below: image.Layers}
	whole, err := m.hasLayers(image)
	if err != nil {
		return "", err
	}
	if !whole {
		e.Below = nil
		tree, done, err := m.lookIntoImage(ctx, image)
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, done()) }()
		e.Tree = tree
		doneBase, err := m.above(ctx, &e)
		if err != nil {
			return "", err
		}
		defer func() { err = errors.Join(err, doneBase()) }()
	}
	return m.cfg.Exporter.Export(ctx, e, to, m.cfg.Progress)
}

// lookIntoImage gives the root directory of an image's files, until done is called.
func (m *Manager) lookIntoImage(ctx context.Context, image *images.Image) (dir *os.File, done func() error, err error) {
	volume, _, err := m.find(ctx, treeKey(image.Fingerprint))
	if err != nil {
		return nil, nil, fmt.Errorf("cannot find the files of image %s: %w", short(image.Fingerprint), err)
	}
	return m.cfg.Looker.Open(ctx, volume.Root())
}

// above makes an export one of what differs from the image that it was made from, if
// that is here, with its layers.
func (m *Manager) above(ctx context.Context, e *images.Export) (done func() error, err error) {
	none := func() error { return nil }
	if e.Image.Base == "" {
		return none, nil
	}
	base, err := m.Image(ctx, e.Image.Base)
	if fault.Is(err, fault.NotFound) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	if whole, err := m.hasLayers(base); err != nil || !whole {
		return none, err
	}
	below, done, err := m.lookIntoImage(ctx, base)
	if fault.Is(err, fault.NotFound) {
		return none, nil
	}
	if err != nil {
		return nil, err
	}
	e.Below = base.Layers
	e.Changes = func(ctx context.Context, each func(path string, gone bool) error) error {
		covered := "" // below it, nothing of the base is left
		return treediff.Walk(ctx, int(below.Fd()), int(e.Tree.Fd()), func(c Change) error {
			gone := c.Kind == treediff.Removed
			if gone && covered != "" && strings.HasPrefix(c.Path, covered) {
				return nil
			}
			if gone || slices.Contains(c.What, "type") {
				covered = c.Path + "/"
			}
			return each(cmp.Or(strings.TrimPrefix(c.Path, "/"), "."), gone)
		})
	}
	return done, nil
}

// hasLayers tells whether the store has all layers of an image, with its manifest. It
// does not for what was read from an archive on this host.
func (m *Manager) hasLayers(image *images.Image) (bool, error) {
	if len(image.Layers) == 0 {
		return false, nil
	}
	digests := []string{"sha256:" + image.Fingerprint}
	for _, l := range image.Layers {
		digests = append(digests, l.Digest)
	}
	for _, digest := range digests {
		f, err := m.cfg.Images.Blob(digest)
		if fault.Is(err, fault.NotFound) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		f.Close()
	}
	return true, nil
}
