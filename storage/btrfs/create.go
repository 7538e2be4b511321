package btrfs

import (
	"cmp"
	"context"
	"os"
	"path"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
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
	if err := createSubvolume(c.dir.File, filling); err != nil {
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
	if _, err := pooldir.CheckFilled(dir, content); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
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
	rec.Version, rec.ID = formatVersion, pooldir.NewID()
	if key.Class != storage.Images {
		var err error
		if rec.Group, err = c.newGroup(); err != nil {
			return err
		}
	}
	return writeFile(c.dir.Root, path.Join(newVolume, volumeFile), rec)
}

// publish makes the new volume visible.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p := c.pool
	if err := p.move(c.dir.Path(newVolume), key.String()); err != nil {
		return nil, err
	}
	p.step("published")
	return &volume{pool: p, key: key, rec: rec}, c.commit()
}
