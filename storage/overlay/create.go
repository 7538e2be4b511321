package overlay

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// Create makes a volume from what fill provides.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.checkNew(key); err != nil {
		return nil, err
	}
	if content != storage.Tree && content != storage.Disk {
		return nil, fault.New(fault.Invalid, "there is no content %q", content)
	}
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer c.end()
	meta, err := c.makeVolume()
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	if err := fill(meta); err != nil {
		return nil, err
	}
	if err := cmp.Or(ctx.Err(), c.takeData(meta, content), c.sync(content)); err != nil {
		return nil, err
	}
	p.step("filled")
	id := newID()
	release, err := p.share(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := c.putLayer(id); err != nil {
		return nil, err
	}
	p.step("layer in place")
	rec := record{Content: content, Layers: []string{id}}
	switch {
	case isFlat(key, content):
		rec = record{Content: content, Flat: true, Active: id}
	case key.Class != storage.Images:
		if rec.Active, err = c.newActive(content, rec.Layers); err != nil {
			return nil, err
		}
	}
	if err := c.writeRecord(rec); err != nil {
		return nil, err
	}
	return c.publish(key, rec)
}

// checkNew checks the key of a volume to be made.
func (p *Pool) checkNew(key storage.Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	_, err := p.load(key)
	if err == nil {
		return fault.New(fault.AlreadyExists, "there is a volume %q already", key)
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// takeData moves the data that fill made out of the metadata directory, and
// judges it.
func (c *change) takeData(meta *os.Root, content storage.Content) error {
	if err := c.dir.Mkdir(newLayer, 0o700); err != nil {
		return err
	}
	var found []string
	for _, name := range []string{storage.RootName, storage.DiskRaw, storage.DiskQcow2} {
		if _, err := meta.Lstat(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) != 1 || (content == storage.Tree) != (found[0] == storage.RootName) {
		return fault.New(fault.Invalid, "a volume of content %q was given %q", content, found)
	}
	name := found[0]
	if content == storage.Disk {
		if err := checkDisk(meta, name); err != nil {
			return err
		}
	} else if st, err := meta.Lstat(name); err != nil || !st.IsDir() {
		return fault.New(fault.Invalid, "the tree %q is not a directory", name)
	}
	return c.dir.Rename(path.Join(newVolume, metaDir, name), path.Join(newLayer, name))
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

// sync makes what was filled durable: a disk by itself, a tree with its thousands
// of files by syncing the file system once.
func (c *change) sync(content storage.Content) error {
	if content == storage.Tree {
		return unix.Syncfs(int(c.lock.Fd()))
	}
	for _, dir := range []string{newLayer, path.Join(newVolume, metaDir)} {
		if err := syncFiles(c.dir, dir); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles syncs a directory and the files in it.
func syncFiles(root *os.Root, dir string) error {
	entries, err := readDir(root, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := root.Open(path.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(root, dir)
}
