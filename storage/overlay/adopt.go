package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

var _ storage.Adopter = (*volume)(nil)

// CanAdopt tells whether the other volume is in a pool of this driver.
func (v *volume) CanAdopt(from storage.Volume) bool {
	other, ok := from.(*volume)
	return ok && other.Content() == v.Content()
}

// Adopt names the layers of the other volume's snapshot. Layers that are not in the
// pool are copied as they are, under the ids that they have: ids are unique, and
// nobody changes a frozen layer, so layers of one id hold the same in every pool,
// and disks go on naming each other.
func (v *volume) Adopt(ctx context.Context, from storage.Volume, snapshotName string, as storage.Snapshot, edit func(dir *os.Root) error) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q over as %q of volume %q", snapshotName, from.Key(), as.Name, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", as.Name), storage.CheckName("snapshot", snapshotName)); err != nil {
		return err
	}
	if !v.CanAdopt(from) {
		return fault.New(fault.Unsupported, "it is in a pool of another driver")
	}
	other := from.(*volume)
	source, err := other.pool.load(other.key)
	if err != nil {
		return err
	}
	s, err := other.pool.find(other.key.String(), &source, snapshotName)
	if err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if err := v.free(h, as.Name); err != nil {
			return err
		}
		return v.adopt(ctx, h, adoption{other, s}, as, edit)
	})
}

// adoption is what is to be taken over.
type adoption struct {
	from     *volume
	snapshot snapshot
}

func (v *volume) adopt(ctx context.Context, h *locked, a adoption, as storage.Snapshot, edit func(dir *os.Root) error) error {
	p := v.pool
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.adoptFiles(a, edit); err != nil {
		return err
	}
	release, err := c.bringLayers(ctx, a.from.pool, a.snapshot.Layers, v.Content())
	if err != nil {
		return err
	}
	defer release()
	s := snapshot{ID: pooldir.NewID(), Snapshot: as, Layers: slices.Clone(a.snapshot.Layers)}
	s.CreatedAt, s.ExpiresAt = as.CreatedAt.Round(0), as.ExpiresAt.Round(0)
	return c.keep(h, h.rec.clone(), s)
}

// adoptFiles copies the metadata files of the snapshot.
func (c *change) adoptFiles(a adoption, edit func(dir *os.Root) error) error {
	if err := c.dir.Mkdir(newSnapshot, 0o700); err != nil {
		return err
	}
	to, err := c.dir.OpenRoot(newSnapshot)
	if err != nil {
		return err
	}
	defer to.Close()
	files, err := a.from.pool.root.OpenRoot(path.Join(a.from.key.String(), snapshotsDir, a.snapshot.ID))
	if err != nil {
		return err
	}
	defer files.Close()
	if err := pooldir.CopyMeta(files, to); err != nil {
		return err
	}
	if edit != nil {
		if err := edit(to); err != nil {
			return err
		}
	}
	return syncFiles(c.dir, newSnapshot)
}

// bringLayers copies those of layers from another pool that this one lacks, and
// keeps Sweep from taking away any of them until release is called.
func (c *change) bringLayers(ctx context.Context, from *Pool, layers []string, content storage.Content) (release func(), err error) {
	p := c.pool
	brought := map[string]bool{}
	for {
		// Copying takes long, and Sweep need not wait for it. So one that was here
		// may be gone afterwards.
		for _, id := range slices.Backward(layers) {
			if brought[id] || p.hasLayer(id) {
				continue
			}
			if err := c.copyLayer(ctx, from, id, content); err != nil {
				return nil, fmt.Errorf("copying layer %s: %w", id, err)
			}
			brought[id] = true
		}
		if release, err = p.share(ctx); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(layers, func(id string) bool { return !brought[id] && !p.hasLayer(id) }) {
			break
		}
		release()
	}
	for _, id := range layers {
		if brought[id] {
			err = c.putBrought(id)
		} else {
			err = p.sameLayer(from, id, content)
		}
		if err != nil {
			release()
			return nil, err
		}
	}
	if err := pooldir.Sync(p.root, layersDir); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// hasLayer tells whether the pool has a layer.
func (p *Pool) hasLayer(id string) bool {
	_, err := p.root.Lstat(path.Join(layersDir, id))
	return err == nil
}

// putBrought moves a copied layer to the others, unless somebody else has brought
// the same meanwhile.
func (c *change) putBrought(id string) error {
	c.unnamed = true
	p := c.pool
	dir, err := p.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	err = unix.Renameat2(fd, c.dir.Path(broughtLayer(id)), fd, path.Join(layersDir, id), unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err == nil {
		p.step("layer in place")
	}
	return err
}

// sameLayer makes sure that a layer in two pools is one: a disk that was changed
// although it is frozen has another time.
func (p *Pool) sameLayer(from *Pool, id string, content storage.Content) error {
	if content == storage.Tree {
		return nil
	}
	name, err := from.diskName(id)
	if err != nil {
		return err
	}
	a, err1 := from.root.Lstat(inLayer(id, name))
	b, err2 := p.root.Lstat(inLayer(id, name))
	if err := cmp.Or(err1, err2); err != nil {
		return err
	}
	if a.Size() != b.Size() || !a.ModTime().Equal(b.ModTime()) {
		return fault.New(fault.Unsupported, "the layer %s is not the same in both pools", id)
	}
	return nil
}

// broughtLayer is the name of a copied layer in the change's directory.
func broughtLayer(id string) string { return newLayer + "-" + id }

// copyLayer copies a frozen layer of another pool, durably, and proves the copy.
func (c *change) copyLayer(ctx context.Context, from *Pool, id string, content storage.Content) error {
	name := broughtLayer(id)
	if err := c.dir.Mkdir(name, 0o700); err != nil {
		return err
	}
	if content == storage.Disk {
		return c.copyDisk(ctx, from, id, name)
	}
	to := path.Join(name, rootName)
	if err := c.dir.Mkdir(to, 0o755); err != nil {
		return err
	}
	twins, err := findTwins(ctx, from, c.pool)
	if err != nil {
		return err
	}
	source, target := from.path(layersDir, id, rootName), c.pool.path(c.dir.Path(to))
	if err := treecopy.CopyLinked(ctx, source, target, twins.link); err != nil {
		return err
	}
	if err := unix.Syncfs(int(c.dir.File.Fd())); err != nil {
		return err
	}
	return treecopy.CompareBut(ctx, source, target, func(dev, ino uint64) bool { return twins.linked[inode{dev, ino}] })
}

// copyDisk copies the file of a disk with its times, by sharing its blocks where
// the file system can.
func (c *change) copyDisk(ctx context.Context, from *Pool, id, name string) error {
	disk, err := from.diskName(id)
	if err != nil {
		return err
	}
	source, err := from.root.OpenFile(inLayer(id, disk), os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer source.Close()
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if qcow2.FormatOf(disk) == qcow2.Qcow2 {
		if _, err := qcow2.Read(source, st.Size()); err != nil {
			return err
		}
	}
	target, err := c.dir.OpenFile(path.Join(name, disk), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer target.Close()
	if err := treecopy.File(ctx, source, target); err != nil {
		return err
	}
	if err := c.dir.Chtimes(path.Join(name, disk), st.ModTime(), st.ModTime()); err != nil {
		return err
	}
	if err := errors.Join(target.Sync(), pooldir.Sync(c.dir, name)); err != nil {
		return err
	}
	same, err := treecopy.SameFile(ctx, source, target)
	if err == nil && !same {
		err = fault.New(fault.Internal, "the copy is not the same as its source")
	}
	return err
}
