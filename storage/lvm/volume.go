package lvm

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// volume is a handle: the record on disk is read anew where it matters.
type volume struct {
	pool *Pool
	key  storage.Key

	mu   sync.Mutex
	last record // as it was read last; guarded by mu
}

var (
	_ storage.Volume     = (*volume)(nil)
	_ storage.MetaReader = (*volume)(nil)
	_ storage.Limiter    = (*volume)(nil)
	_ storage.Grower     = (*volume)(nil)
	_ storage.Mounter    = (*volume)(nil)
	_ storage.Adopter    = (*volume)(nil)
)

func (v *volume) Key() storage.Key { return v.key }

func (v *volume) Content() storage.Content {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last.Content
}

func (v *volume) Dir() (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open the metadata of volume %q", v.key)
	return v.pool.root.OpenMeta(v.key)
}

func (v *volume) ReadMeta(name string, most int64) (_ []byte, err error) {
	defer storage.Fail(&err, "cannot read the metadata of volume %q", v.key)
	return v.pool.root.ReadMeta(v.key, name, most)
}

// Root mounts the volume, or activates its disk, and says where it is. If that fails,
// nothing is there, and whoever opens it says so.
func (v *volume) Root() storage.Root {
	root, _ := v.mount(context.Background())
	return root
}

func (v *volume) Mount(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot mount volume %q", v.key)
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = v.mount(ctx)
	return err
}

// mount makes the data that the volume has now, or had when it was last seen,
// reachable.
func (v *volume) mount(ctx context.Context) (storage.Root, error) {
	p := v.pool
	rec, missing := p.load(v.key)
	v.mu.Lock()
	if missing != nil {
		rec = v.last.clone()
	} else {
		v.last = rec
	}
	v.mu.Unlock()
	root, err := p.rootOf(ctx, rec.Data, &rec, rec.readOnly())
	return root, cmp.Or(missing, err)
}

// rootOf makes the data in a logical volume reachable and says where they are, also
// if that failed.
func (p *Pool) rootOf(ctx context.Context, id string, rec *record, readOnly bool) (storage.Root, error) {
	if rec.Content == storage.Disk {
		data := func(ctx context.Context) ([]storage.Extent, error) { return p.extents(ctx, id) }
		return storage.Root{DiskPath: p.devicePath(id), DiskFormat: qcow2.Raw, DiskData: data}, p.activateDisk(ctx, id)
	}
	tree := filepath.Join(p.mountPoint(id), storage.RootName)
	err := p.mountVolume(ctx, id, rec, readOnly)
	if readOnly {
		return storage.Root{Lower: []string{tree}}, err
	}
	return storage.Root{Upper: tree}, err
}

// activateDisk makes sure that a disk has a device.
func (p *Pool) activateDisk(ctx context.Context, id string) error {
	release, err := p.use(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	_, err = p.activate(ctx, id)
	return pooldir.Damaged(p.removed(id, err))
}

// change locks the volume and calls f to change it.
func (v *volume) change(ctx context.Context, f func(h *locked) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := v.pool.lockVolume(ctx, v.key, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer h.dir.Close()
	err = f(h)
	v.mu.Lock()
	v.last = h.rec
	v.mu.Unlock()
	return err
}

// Restore makes a copy of the snapshot the volume's data. All snapshots stay; Sweep
// removes what the volume had.
func (v *volume) Restore(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot restore volume %q to snapshot %q", v.key, name)
	return v.change(ctx, func(h *locked) error {
		i, err := h.rec.find(name)
		if err != nil {
			return err
		}
		if h.rec.readOnly() {
			return fault.New(fault.WrongState, "images are read-only")
		}
		p := v.pool
		if err := cmp.Or(p.idle(&h.rec), p.room(ctx)); err != nil {
			return err
		}
		c, err := p.begin(ctx)
		if err != nil {
			return err
		}
		defer c.end()
		old, rec := h.rec.Data, h.rec.clone()
		rec.Data = c.name
		if err := c.touch(old, rec.Data); err != nil {
			return err
		}
		err = c.save(h, rec, func() error { return p.copyLV(ctx, rec.Snapshots[i].ID, rec.Data, v.key, "") })
		if err != nil {
			return err
		}
		c.wasteful = true
		p.unmount(old)
		return nil
	})
}

// DeleteSnapshot drops a snapshot from the record. Sweep removes it.
func (v *volume) DeleteSnapshot(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot delete snapshot %q of volume %q", name, v.key)
	return v.change(ctx, func(h *locked) error {
		i, err := h.rec.find(name)
		if err != nil {
			return err
		}
		id := h.rec.Snapshots[i].ID
		c, err := v.pool.begin(ctx, id)
		if err != nil {
			return err
		}
		defer c.end()
		rec := h.rec.clone()
		rec.Snapshots = slices.Delete(rec.Snapshots, i, i+1)
		if err := c.save(h, rec, nil); err != nil {
			return err
		}
		c.wasteful = true
		v.pool.unmount(id)
		return nil
	})
}

// RenameSnapshot gives a snapshot another name in the record, and in the tag that
// shows it.
func (v *volume) RenameSnapshot(ctx context.Context, name, to string) (err error) {
	defer storage.Fail(&err, "cannot rename snapshot %q of volume %q to %q", name, v.key, to)
	if err := storage.CheckName("snapshot", to); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		i, err := h.rec.find(name)
		if err != nil {
			return err
		}
		if _, err := h.rec.find(to); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", to)
		}
		c, err := v.pool.begin(ctx)
		if err != nil {
			return err
		}
		defer c.end()
		rec := h.rec.clone()
		rec.Snapshots[i].Name = to
		if err := c.save(h, rec, nil); err != nil {
			return err
		}
		_, err = lvm(ctx, "lvchange", "-An", "--deltag", tagSnapshot+name, "--addtag", tagSnapshot+to, "--", v.pool.full(rec.Snapshots[i].ID))
		if err == nil {
			v.pool.step("labelled")
		}
		return nil
	})
}
