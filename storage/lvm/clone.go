package lvm

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

// Clone makes a thin snapshot of a volume, or of a snapshot of one, which is the same
// thing.
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
	origin, files, err := source.origin(p, from.Snapshot)
	if err != nil {
		return nil, err
	}
	defer files.Close()
	if err := p.room(ctx); err != nil {
		return nil, err
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
	if err := cmp.Or(c.touch(c.name), pooldir.CopyMeta(files, meta)); err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := o.Edit(meta); err != nil {
			return nil, err
		}
	}
	rec := record{Class: key.Class, Content: source.rec.Content, Limit: source.rec.Limit, Data: c.name}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.stage(rec); err != nil {
		return nil, err
	}
	take := func() error { return p.copyLV(ctx, origin, c.name, key, "") }
	if from.Snapshot == "" {
		err = p.freeze(ctx, &source.rec, o.Live, take)
	} else {
		err = take()
	}
	if err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// origin gives the logical volume of a snapshot, or of the volume itself, and the
// metadata files that belong to it.
func (h *locked) origin(p *Pool, snapshot string) (id string, files *os.Root, err error) {
	if snapshot == "" {
		files, err = h.dir.OpenRoot(pooldir.MetaDir)
		return h.rec.Data, files, err
	}
	i, err := h.rec.find(snapshot)
	if err != nil {
		return "", nil, err
	}
	id = h.rec.Snapshots[i].ID
	files, err = p.root.OpenRoot(path.Join(snapshotsDir, id))
	return id, files, err
}

// copyLV makes a thin snapshot, which is not active. If its origin is, LVM stops what
// is written to it for that moment, and a file system on it is at rest then.
func (p *Pool) copyLV(ctx context.Context, origin, id string, key storage.Key, snapshot string) error {
	args := append([]string{"-An", "-s", "-ky", "-n", p.lvName(id)}, tags(key, snapshot)...)
	_, err := lvm(ctx, "lvcreate", append(args, "--", p.full(origin))...)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Unavailable, "its data are gone: somebody removed the logical volume %q: %w", p.full(origin), err)
	}
	if err == nil {
		p.step("snapshot made")
	}
	return err
}

// freeze calls take while nobody writes to a volume in use, or refuses if it is in
// use and cannot be.
func (p *Pool) freeze(ctx context.Context, rec *record, live *storage.Live, take func() error) (err error) {
	switch {
	case live == nil:
		if err := p.idle(rec); err != nil {
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
		if err := p.flush(rec); err != nil {
			return err
		}
		return take()
	}
	if err := p.flush(rec); err != nil {
		return err
	}
	return take()
}

// flush writes what programs changed and the kernel keeps.
func (p *Pool) flush(rec *record) error {
	switch point := p.mountPoint(rec.Data); {
	case !p.isActive(rec.Data):
	case rec.Content == storage.Disk:
		return syncDevice(p.devicePath(rec.Data))
	case mount.Mounted(point):
		d, err := os.Open(point)
		if err != nil {
			return err
		}
		return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
	}
	return nil
}

// idle refuses a disk that a machine writes to. (Nobody can tell of a tree; the
// manager knows.)
func (p *Pool) idle(rec *record) error {
	if rec.Content != storage.Disk || rec.readOnly() || !p.isActive(rec.Data) {
		return nil
	}
	if written(p.devicePath(rec.Data)) {
		return fault.New(fault.WrongState, "a running machine uses its disk; stop it first")
	}
	return nil
}

// written tells whether a QEMU has a disk open for writing.
func written(device string) bool {
	f, err := os.OpenFile(device, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return qcow2.Written(f)
}
