package zfs

import (
	"cmp"
	"context"
	"os"
	"path"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
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
	rec := record{Class: key.Class, Content: content, Data: c.name}
	// An image's snapshot has the name of its dataset.
	if err := c.touch(rec.dataset(), rec.dataset()+"@"+c.name); err != nil {
		return nil, err
	}
	if err := p.createDataset(ctx, key, &rec); err != nil {
		return nil, err
	}
	p.step("dataset made")
	if err := c.fill(ctx, &rec, meta, fill); err != nil {
		return nil, err
	}
	p.step("filled")
	if key.Class == storage.Images {
		rec.Base = c.name
	}
	if err := c.stage(rec); err != nil {
		return nil, err
	}
	if err := p.settle(ctx, &rec); err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// settle makes a filled dataset durable: an image's by the snapshot that clones
// start from.
func (p *Pool) settle(ctx context.Context, rec *record) error {
	if rec.Base == "" {
		return p.sync(ctx)
	}
	if err := p.snapshot(ctx, rec.dataset()+"@"+rec.Base); err != nil {
		return err
	}
	p.step("snapshot made")
	return nil
}

// createDataset makes an empty dataset. Disks get a record size between that of
// small writes of a guest and that of large ones.
func (p *Pool) createDataset(ctx context.Context, key storage.Key, rec *record) error {
	args := append([]string{"create"}, labels(key, rec)...)
	if rec.Content == storage.Disk {
		args = append(args, "-o", "recordsize="+diskRecordSize)
	}
	_, err := zfs(ctx, append(args, p.full(rec.dataset()))...)
	return pooldir.Damaged(err)
}

// diskRecordSize is the record size of disks; DESIGN.md tells why.
const diskRecordSize = "32K"

// snapshot makes a snapshot that only the driver knows.
func (p *Pool) snapshot(ctx context.Context, object string, properties ...string) error {
	args := append([]string{"snapshot"}, properties...)
	_, err := zfs(ctx, append(args, p.full(object))...)
	return gone(err)
}

// fill lets the caller fill the new dataset, where it is mounted, judges what is
// there, and copies the metadata files into the new volume's directory.
func (c *change) fill(ctx context.Context, rec *record, meta *os.Root, fill func(dir *os.Root) error) (err error) {
	p := c.pool
	data, err := p.mountAt(ctx, p.full(rec.dataset()), p.mountPoint(rec.dataset()), 0)
	if err != nil {
		return pooldir.Damaged(err)
	}
	defer data.Close()
	defer func() {
		if err != nil {
			p.unmount(rec.dataset())
		}
	}()
	p.step("dataset mounted")
	if err := fill(data); err != nil {
		return err
	}
	name, err := pooldir.CheckFilled(data, rec.Content)
	if err != nil {
		return err
	}
	if rec.Content == storage.Disk {
		rec.Format = qcow2.FormatOf(name)
	}
	return cmp.Or(ctx.Err(), pooldir.CopyMeta(data, meta), tidy(data, name))
}

// tidy moves everything but the data into the directory of metadata files, where
// each snapshot has them too.
func tidy(dir *os.Root, data string) error {
	names, err := pooldir.Names(dir, ".")
	if err != nil {
		return err
	}
	if err := dir.Mkdir(pooldir.MetaDir, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if name == data {
			continue
		}
		if err := dir.Rename(name, path.Join(pooldir.MetaDir, name)); err != nil {
			return err
		}
	}
	return nil
}
