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
	"brig/storage/pooldir"
)

// Create makes a volume from what fill provides.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.root.CheckNew(ctx, key); err != nil {
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
	meta, err := c.dir.MakeVolume()
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
	id := pooldir.NewID()
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

// takeData moves the data that fill made out of the metadata directory, and
// judges it.
func (c *change) takeData(meta *os.Root, content storage.Content) error {
	if err := c.dir.Mkdir(newLayer, 0o700); err != nil {
		return err
	}
	name, err := pooldir.CheckFilled(meta, content)
	if err != nil {
		return err
	}
	return c.dir.Rename(path.Join(pooldir.NewVolume, pooldir.MetaDir, name), path.Join(newLayer, name))
}

// sync makes what was filled durable: a disk by itself, a tree with its thousands
// of files by syncing the file system once.
func (c *change) sync(content storage.Content) error {
	if content == storage.Tree {
		return unix.Syncfs(int(c.dir.File.Fd()))
	}
	for _, dir := range []string{newLayer, path.Join(pooldir.NewVolume, pooldir.MetaDir)} {
		if err := syncFiles(c.dir, dir); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles syncs a directory and the files in it.
func syncFiles(root *pooldir.Held, dir string) error {
	names, err := pooldir.Files(root, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		f, err := root.Open(path.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return pooldir.Sync(root, dir)
}
