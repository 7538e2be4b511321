package zfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// Clone makes a clone of a snapshot: the one that is named, an image's own, or one
// that is taken for it and goes with the clone.
func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot clone %q to volume %q", from, key)
	if err := cmp.Or(from.Check(), p.root.CheckNew(ctx, key)); err != nil {
		return nil, err
	}
	if key.Class == storage.Images {
		return nil, fault.New(fault.Invalid, "a clone is writable, and images are not")
	}
	source, err := p.lockVolume(ctx, from.Key, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer source.dir.Close()
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
	rec := record{Class: key.Class, Content: source.rec.Content, Format: source.rec.Format, Limit: source.rec.Limit, Data: c.name}
	objects := []string{rec.dataset()}
	if from.Snapshot == "" && source.rec.Base == "" {
		objects = append(objects, source.rec.dataset()+"@"+c.name) // which origin takes
	}
	if err := c.touch(objects...); err != nil {
		return nil, err
	}
	origin, err := c.origin(ctx, source, from, o.Live, meta)
	if err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := o.Edit(meta); err != nil {
			return nil, err
		}
	}
	if err := cmp.Or(ctx.Err(), c.stage(rec)); err != nil {
		return nil, err
	}
	if err := c.cloneDataset(ctx, origin, key, &rec); err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// origin gives the snapshot to clone, and copies the metadata files that belong to
// it. The caller has noted the one that is taken for it, which has the change's name.
func (c *change) origin(ctx context.Context, source *locked, from storage.Source, live *storage.Live, meta *os.Root) (string, error) {
	p, rec := c.pool, &source.rec
	if from.Snapshot != "" {
		i, err := rec.find(from.Snapshot)
		if err != nil {
			return "", err
		}
		files, err := p.snapshotMeta(ctx, rec.object(&rec.Snapshots[i]))
		if err != nil {
			return "", err
		}
		defer files.Close()
		return rec.object(&rec.Snapshots[i]), pooldir.CopyMeta(files, meta)
	}
	files, err := source.dir.OpenRoot(pooldir.MetaDir)
	if err != nil {
		return "", err
	}
	defer files.Close()
	if err := pooldir.CopyMeta(files, meta); err != nil {
		return "", err
	}
	if rec.Base != "" {
		return rec.dataset() + "@" + rec.Base, nil
	}
	object := rec.dataset() + "@" + c.name
	if err := p.freeze(ctx, rec, live, func() error { return p.snapshot(ctx, object) }); err != nil {
		return "", err
	}
	// No record will name it: Sweep marks it, and ZFS destroys it after the clone.
	c.wasteful = true
	p.step("source's snapshot made")
	return object, nil
}

// cloneDataset makes the dataset of rec as a clone.
func (c *change) cloneDataset(ctx context.Context, origin string, key storage.Key, rec *record) error {
	if err := c.touch(rec.dataset()); err != nil {
		return err
	}
	args := append([]string{"clone"}, labels(key, rec)...)
	if _, err := zfs(ctx, append(args, c.pool.full(origin), c.pool.full(rec.dataset()))...); err != nil {
		return gone(err)
	}
	c.pool.step("clone made")
	return nil
}

// freeze calls take while nobody writes to a volume in use, or refuses if it is in
// use and cannot be.
func (p *Pool) freeze(ctx context.Context, rec *record, live *storage.Live, take func() error) (err error) {
	switch {
	case live == nil:
		if err := p.idle(ctx, rec); err != nil {
			return err
		}
	case live.Freeze == nil && rec.Content == storage.Tree:
		return fault.New(fault.WrongState, "it is in use, and its writers cannot be stopped")
	case live.Freeze != nil:
		thaw, err := live.Freeze(ctx)
		if err != nil {
			return fmt.Errorf("freezing its writers: %w", err)
		}
		defer func() { err = errors.Join(err, thaw()) }()
		if err := ctx.Err(); err != nil {
			return err
		}
		return cmp.Or(p.flush(rec), take())
	}
	return cmp.Or(p.flush(rec), take())
}

// flush writes what programs changed through memory maps, which a snapshot would
// miss.
func (p *Pool) flush(rec *record) error {
	point := p.mountPoint(rec.dataset())
	if !mount.Mounted(point) {
		return nil // then nobody here has a map of a file in it
	}
	d, err := os.Open(point)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// idle refuses a disk that a machine writes to. (Nobody can tell of a tree; the
// manager knows.)
func (p *Pool) idle(ctx context.Context, rec *record) error {
	if rec.Content != storage.Disk || rec.Base != "" {
		return nil
	}
	data, _, err := p.open(ctx, rec.dataset())
	if fault.Is(err, fault.NotFound) {
		return nil // destroyed behind brig's back: nobody writes to it
	}
	if err != nil {
		return err
	}
	defer data.Close()
	if written(data, diskName(rec)) {
		return fault.New(fault.WrongState, "a running machine uses its disk; stop it first")
	}
	return nil
}

// written tells whether a QEMU, wherever it has the dataset mounted, has a disk
// open for writing.
func written(dir *os.Root, disk string) bool {
	f, err := dir.OpenFile(disk, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return qcow2.Written(f)
}

// snapshotMeta opens the metadata files in a snapshot.
func (p *Pool) snapshotMeta(ctx context.Context, object string) (*os.Root, error) {
	data, err := p.detached(ctx, object)
	if err != nil {
		return nil, gone(err)
	}
	defer data.Close()
	return data.OpenRoot(pooldir.MetaDir)
}

// writeMeta puts a copy of the metadata files into the dataset, so that the
// snapshot that follows holds them.
func writeMeta(files, data *os.Root) error {
	if err := data.RemoveAll(pooldir.MetaDir); err != nil {
		return err
	}
	if err := data.Mkdir(pooldir.MetaDir, 0o700); err != nil {
		return err
	}
	to, err := data.OpenRoot(pooldir.MetaDir)
	if err != nil {
		return err
	}
	defer to.Close()
	return pooldir.CopyMeta(files, to)
}

// diskName is the file of a disk in its dataset.
func diskName(rec *record) string {
	return path.Base("disk." + rec.Format)
}
