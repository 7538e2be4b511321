package btrfs

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// Create makes a volume from what fill provides. It is filled in one subvolume and
// becomes a snapshot of that: the snapshot has the kernel write out what was
// filled in, and nothing else.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.checkNew(ctx, key); err != nil {
		return nil, err
	}
	if content != storage.Tree && content != storage.Disk {
		return nil, fault.New(fault.Invalid, "there is no content %q", content)
	}
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { c.end(err != nil) }()
	if err := createSubvolume(c.lock, filling); err != nil {
		return nil, err
	}
	p.step("subvolume made")
	dir, err := c.dir.OpenRoot(filling)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := dir.Chmod(".", 0o700); err != nil {
		return nil, err
	}
	if err := fill(dir); err != nil {
		return nil, err
	}
	if err := cmp.Or(checkFilled(dir, content), ctx.Err()); err != nil {
		return nil, err
	}
	p.step("filled")
	source, err := c.open(filling)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	if err := c.dir.Mkdir(newVolume, 0o700); err != nil {
		return nil, err
	}
	if err := c.take(source, newVolume, key.Class == storage.Images); err != nil {
		return nil, err
	}
	rec := record{Content: content}
	if err := c.writeRecord(key, &rec); err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// checkNew checks the key of a volume to be made.
func (p *Pool) checkNew(ctx context.Context, key storage.Key) error {
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
		return err
	}
	switch _, err := p.load(key); {
	case err == nil, p.has(path.Join(key.String(), volumeFile)):
		return fault.New(fault.AlreadyExists, "there is a volume %q already", key)
	case fault.Is(err, fault.NotFound):
		return nil
	default:
		return err
	}
}

// take makes a snapshot of the subvolume source in a directory of the change.
func (c *change) take(source *os.File, where string, readOnly bool) error {
	dir, err := c.open(where)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := snapshotSubvolume(source, dir, dataName, readOnly); err != nil {
		return err
	}
	c.pool.step("snapshot taken")
	return nil
}

// writeRecord gives the new volume an id and its record, and where volumes are
// counted, a group.
func (c *change) writeRecord(key storage.Key, rec *record) error {
	rec.Version, rec.ID = formatVersion, newID()
	if key.Class != storage.Images {
		var err error
		if rec.Group, err = c.newGroup(); err != nil {
			return err
		}
	}
	return writeFile(c.dir, path.Join(newVolume, volumeFile), rec)
}

// publish makes the new volume visible.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := c.pool
	if err := p.move(c.path(newVolume), key.String()); err != nil {
		return nil, err
	}
	p.step("published")
	return &volume{pool: p, key: key, rec: rec}, c.commit()
}

// checkFilled judges what fill made.
func checkFilled(dir *os.Root, content storage.Content) error {
	var found []string
	for _, name := range []string{storage.RootName, storage.DiskRaw, storage.DiskQcow2} {
		if _, err := dir.Lstat(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) != 1 || (content == storage.Tree) != (found[0] == storage.RootName) {
		return fault.New(fault.Invalid, "a volume of content %q was given %q", content, found)
	}
	if content == storage.Disk {
		return checkDisk(dir, found[0])
	}
	if st, err := dir.Lstat(storage.RootName); err != nil || !st.IsDir() {
		return fault.New(fault.Invalid, "the tree %q is not a directory", storage.RootName)
	}
	return nil
}

// checkDisk refuses disk files that are not what their name says, or that could
// make QEMU open another file. A raw disk is filled up to whole sectors.
func checkDisk(dir *os.Root, name string) error {
	if name == storage.DiskQcow2 {
		_, err := qcow2.Check(dir, name)
		return err
	}
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return fault.New(fault.Invalid, "the disk %q is empty or not a file", name)
	}
	if st.Size()%512 == 0 {
		return nil
	}
	f, err := dir.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate((st.Size()+511)/512*512), f.Close())
}

func isDisk(name string) bool { return name == storage.DiskRaw || name == storage.DiskQcow2 }
