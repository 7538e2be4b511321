package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

// flattenAt is the number of layers from which they are merged, so that a machine
// with hundreds of snapshots is not slowed down by looking everything up in
// hundreds of layers.
const flattenAt = 40

// flatten shortens a long list of frozen layers: all but the lowest, which is the
// image, become one new layer that shows the same. No layer is changed, so
// snapshots and clones keep theirs. It is the one thing that a stopped volume is
// made to wait for, at every fortieth change that is kept. The caller holds the
// layers shared and saves a record with the result.
func (c *change) flatten(ctx context.Context, content storage.Content, layers []string) ([]string, error) {
	if len(layers) <= flattenAt {
		return layers, nil
	}
	if content == storage.Disk {
		return c.flattenDisk(ctx, layers)
	}
	return c.flattenTree(ctx, layers)
}

// flattenDisk copies the top disk, and then what lies between it and the lowest.
func (c *change) flattenDisk(ctx context.Context, layers []string) ([]string, error) {
	p, lowest := c.pool, layers[len(layers)-1]
	name, err := p.diskName(lowest)
	if err != nil {
		return nil, err
	}
	// Disks name the disk they stand on by its place beside them, so the new one is
	// made where it will stay. Sweep knows it by this change if it comes to nothing.
	id := newID()
	c.unnamed = true
	if err := p.root.Mkdir(path.Join(layersDir, id), 0o700); err != nil {
		return nil, err
	}
	err = c.mergeDisks(ctx, id, layers[0], path.Join("..", lowest, name))
	if err == nil {
		err = errors.Join(syncFiles(p.root, path.Join(layersDir, id)), syncDir(p.root, layersDir))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("merging disks: %w", err), p.discard(path.Join(layersDir, id)))
	}
	p.step("layers merged")
	return []string{id, lowest}, nil
}

// mergeDisks makes the disk of the layer id from that of top and all below it down
// to the one at base, a path as disks name each other.
func (c *change) mergeDisks(ctx context.Context, id, top, base string) error {
	p := c.pool
	from, err := p.root.Open(inLayer(top, storage.DiskQcow2))
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := p.root.OpenFile(inLayer(id, storage.DiskQcow2), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := treecopy.File(ctx, from, to); err != nil {
		return err
	}
	_, err = run.Output(ctx, "qemu-img", "rebase", "-q", "-f", qcow2.Qcow2, "-b", base, "-F", qcow2.FormatOf(base),
		p.path(inLayer(id, storage.DiskQcow2)))
	return err
}

// flattenTree links the files of the merged layers into the new one.
func (c *change) flattenTree(ctx context.Context, layers []string) ([]string, error) {
	for _, name := range []string{newLayer, path.Join(newLayer, rootName)} {
		if err := c.dir.Mkdir(name, 0o755); err != nil {
			return nil, err
		}
	}
	err := c.merge(ctx, layers)
	if errors.Is(err, unix.EMLINK) || errors.Is(err, errCannotMerge) {
		return layers, nil // a longer list is no harm yet
	}
	if err != nil {
		return nil, fmt.Errorf("merging layers: %w", err)
	}
	if err := unix.Syncfs(int(c.lock.Fd())); err != nil {
		return nil, err
	}
	id := newID()
	if err := c.putLayer(id); err != nil {
		return nil, err
	}
	c.pool.step("layers merged")
	return []string{id, layers[len(layers)-1]}, syncDir(c.pool.root, layersDir)
}

// merge fills the new layer with what layers but the lowest hold.
func (c *change) merge(ctx context.Context, layers []string) error {
	m := &merger{ctx: ctx, run: len(layers) - 1}
	defer func() { closeAll(m.roots) }()
	for i, id := range layers {
		fd, err := openDir(unix.AT_FDCWD, c.pool.path(layersDir, id, rootName))
		if err != nil {
			return err
		}
		m.roots = append(m.roots, dirAt{layer: i, fd: fd})
	}
	to, err := openDir(unix.AT_FDCWD, c.pool.path(c.path(newLayer, rootName)))
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return m.directory(to, m.roots)
}
