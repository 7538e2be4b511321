package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// flattenAt is the number of layers from which they are merged before anything is
// put on them.
const flattenAt = 40

// flatten shortens a long list of frozen layers: all but the lowest, which is the
// image, become one new layer that shows the same. No layer is changed, so
// snapshots and clones keep theirs. A stopped volume waits for it when nobody has
// called Shorten for long. The caller holds the layers shared and saves a record
// with the result.
func (c *change) flatten(ctx context.Context, content storage.Content, layers []string) ([]string, error) {
	if len(layers) <= flattenAt {
		return layers, nil
	}
	if content == storage.Disk {
		return c.flattenDisk(ctx, layers)
	}
	return c.flattenTree(ctx, layers)
}

// flattenDisk merges the disks into one.
func (c *change) flattenDisk(ctx context.Context, layers []string) ([]string, error) {
	// Disks name the disk they stand on by its place beside them, so the new one is
	// made where it will stay. Sweep knows it by this change if it comes to nothing.
	id, lowest := pooldir.NewID(), layers[len(layers)-1]
	c.unnamed = true
	err := c.mergeDisks(ctx, id, layers[:len(layers)-1], lowest)
	if fault.Is(err, fault.Unsupported) {
		return layers, nil
	}
	if err != nil {
		return nil, err
	}
	c.pool.step("layers merged")
	return []string{id, lowest}, nil
}

// mergeDisks makes the layer id with one disk from those of run, which stands on
// that of the layer base. It is durable when this returns.
func (c *change) mergeDisks(ctx context.Context, id string, run []string, base string) (err error) {
	p := c.pool
	name, err := p.diskName(base)
	if err != nil {
		return err
	}
	dir := path.Join(layersDir, id)
	if err := p.root.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("merging disks: %w", err), p.discard(dir))
		}
	}()
	p.step("empty layer")
	var from []*os.File
	for _, layer := range run {
		f, err := p.root.Open(inLayer(layer, storage.DiskQcow2))
		if err != nil {
			return fault.New(fault.Unavailable, "the layer %q has lost its disk: %w", layer, err)
		}
		defer f.Close()
		from = append(from, f)
	}
	to, err := p.root.OpenFile(inLayer(id, storage.DiskQcow2), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := qcow2.Merge(ctx, to, from, beside(base, name), qcow2.FormatOf(name)); err != nil {
		return err
	}
	return errors.Join(pooldir.Sync(p.root, dir), pooldir.Sync(p.root, layersDir))
}

// flattenTree merges the trees into one.
func (c *change) flattenTree(ctx context.Context, layers []string) ([]string, error) {
	id := pooldir.NewID()
	err := c.mergeTrees(ctx, id, layers, len(layers)-1)
	if fault.Is(err, fault.Unsupported) {
		return layers, nil // a longer list is no harm yet
	}
	if err != nil {
		return nil, err
	}
	c.pool.step("layers merged")
	return []string{id, layers[len(layers)-1]}, nil
}

// mergeTrees makes the layer id from the first run of layers, whose files are
// linked into it. It is durable when this returns.
func (c *change) mergeTrees(ctx context.Context, id string, layers []string, run int) error {
	for _, name := range []string{newLayer, path.Join(newLayer, rootName)} {
		if err := c.dir.Mkdir(name, 0o755); err != nil {
			return err
		}
	}
	err := c.merge(ctx, layers, run)
	if errors.Is(err, unix.EMLINK) || errors.Is(err, errCannotMerge) {
		return fault.New(fault.Unsupported, "merging layers: %w", err)
	}
	if err != nil {
		return fmt.Errorf("merging layers: %w", err)
	}
	if err := unix.Syncfs(int(c.dir.File.Fd())); err != nil {
		return err
	}
	if err := c.putLayer(id); err != nil {
		return err
	}
	return pooldir.Sync(c.pool.root, layersDir)
}

// merge fills the new layer with what the first run of layers hold.
func (c *change) merge(ctx context.Context, layers []string, run int) error {
	m := &merger{ctx: ctx, run: run}
	defer func() { closeAll(m.roots) }()
	for i, id := range layers {
		fd, err := openDir(unix.AT_FDCWD, c.pool.path(layersDir, id, rootName))
		if err != nil {
			return err
		}
		m.roots = append(m.roots, dirAt{layer: i, fd: fd})
	}
	to, err := openDir(unix.AT_FDCWD, c.pool.path(c.dir.Path(newLayer, rootName)))
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return m.directory(to, m.roots)
}
