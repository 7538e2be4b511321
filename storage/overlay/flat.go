package overlay

import (
	"context"
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/treecopy"
)

// A custom tree is attached to several instances at once, and the kernel does not
// allow two overlays to write to one layer. So it is flat: its active layer is all
// there is of it, one directory that everybody mounts. Its snapshots are copies,
// which share data where the file system can (reflinks), and so are its clones.

// isFlat tells whether a new volume is flat.
func isFlat(key storage.Key, content storage.Content) bool {
	return key.Class == storage.Custom && content == storage.Tree
}

// copyFlat copies the tree of a layer to a new one, which it puts to the others.
// The caller holds the layers shared until a record names it.
func (c *change) copyFlat(ctx context.Context, from string) (id string, err error) {
	for _, name := range []string{newLayer, path.Join(newLayer, rootName)} {
		if err := c.dir.Mkdir(name, 0o755); err != nil {
			return "", err
		}
	}
	p := c.pool
	if err := treecopy.Copy(ctx, p.path(layersDir, from, rootName), p.path(c.dir.Path(newLayer, rootName))); err != nil {
		return "", err
	}
	if err := unix.Syncfs(int(c.dir.File.Fd())); err != nil {
		return "", err
	}
	p.step("tree copied")
	id = pooldir.NewID()
	return id, errors.Join(c.putLayer(id), pooldir.Sync(p.root, layersDir))
}

// standFlat gives a new volume a flat record. Layers are those that it is to hold:
// the only one becomes its own, unless a snapshot needs that as it is.
func (c *change) standFlat(ctx context.Context, layer string, own bool) (rec record, err error) {
	if !own {
		if layer, err = c.copyFlat(ctx, layer); err != nil {
			return rec, err
		}
	}
	rec = record{Content: storage.Tree, Flat: true, Active: layer}
	return rec, c.writeRecord(rec)
}

// still is the Live of a flat volume that nobody uses.
func still() *storage.Live {
	return &storage.Live{Freeze: func(context.Context) (func() error, error) {
		return func() error { return nil }, nil
	}}
}
