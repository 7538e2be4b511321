package zfs

import (
	"cmp"
	"context"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"time"

	gozfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
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
	_ storage.Mounter    = (*volume)(nil)
	_ storage.Limiter    = (*volume)(nil)
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

// Root mounts the volume's dataset if it is not mounted, and says where. If that
// fails, nothing is there, and whoever opens it says so.
func (v *volume) Root() storage.Root {
	rec, _ := v.mount(context.Background())
	return rootAt(v.pool.mountPoint(rec.dataset()), &rec, rec.Base != "")
}

func (v *volume) Mount(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot mount volume %q", v.key)
	if err := ctx.Err(); err != nil {
		return err
	}
	_, err = v.mount(ctx)
	return err
}

// mount mounts the dataset that the volume has now, or had when it was last seen.
func (v *volume) mount(ctx context.Context) (record, error) {
	p := v.pool
	rec, missing := p.load(v.key)
	v.mu.Lock()
	if missing != nil {
		rec = v.last.clone()
	} else {
		v.last = rec
	}
	v.mu.Unlock()
	data, err := p.mountAt(ctx, p.full(rec.dataset()), p.mountPoint(rec.dataset()), 0)
	if err == nil {
		err = data.Close()
	}
	return rec, cmp.Or(missing, gone(err))
}

// rootAt is the root of a volume or a snapshot that is mounted at point.
func rootAt(point string, rec *record, readOnly bool) storage.Root {
	tree := filepath.Join(point, storage.RootName)
	switch {
	case rec.Content == storage.Disk:
		return storage.Root{DiskPath: filepath.Join(point, diskName(rec)), DiskFormat: rec.Format}
	case readOnly:
		return storage.Root{Lower: []string{tree}}
	}
	return storage.Root{Upper: tree}
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

// Snapshot takes a snapshot of the dataset, with a copy of the metadata files in
// it, and notes it in the record.
func (v *volume) Snapshot(ctx context.Context, name string, o storage.SnapshotOptions) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q", name, v.key)
	if err := storage.CheckName("snapshot", name); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if _, err := h.rec.find(name); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", name)
		}
		s := snapshot{Data: h.rec.Data, Snapshot: storage.Snapshot{
			Name: name, Description: o.Description, CreatedAt: o.CreatedAt.Round(0), ExpiresAt: o.ExpiresAt.Round(0), Auto: o.Auto,
		}}
		if s.CreatedAt.IsZero() {
			s.CreatedAt = time.Now().Round(0)
		}
		return v.pool.takeSnapshot(ctx, h, s, o.Live)
	})
}

func (p *Pool) takeSnapshot(ctx context.Context, h *locked, s snapshot, live *storage.Live) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	s.ID = c.name
	object := h.rec.object(&s)
	if err := c.touch(object); err != nil {
		return err
	}
	files, err := h.dir.OpenRoot(pooldir.MetaDir)
	if err != nil {
		return err
	}
	defer files.Close()
	// It stays open until the snapshot is there: closing a dataset that nobody else
	// has mounted waits for the disk once more.
	data, _, err := p.open(ctx, h.rec.dataset())
	if err != nil {
		return gone(err)
	}
	defer data.Close()
	rec := h.rec.clone()
	rec.Snapshots = append(rec.Snapshots, s)
	take := func() error {
		if err := writeMeta(files, data); err != nil {
			return err
		}
		p.step("metadata in place")
		return p.snapshot(ctx, object, snapshotLabels(&s)...)
	}
	return c.save(h, rec, func() error {
		if err := p.freeze(ctx, &h.rec, live, take); err != nil {
			return err
		}
		p.step("snapshot made")
		return nil
	})
}

// snapshotLabels are the properties of a snapshot, as arguments.
func snapshotLabels(s *snapshot) []string {
	args := []string{"-o", propSnapshot + "=" + s.Name, "-o", propCreated + "=" + s.CreatedAt.UTC().Format(time.RFC3339)}
	if !s.ExpiresAt.IsZero() {
		args = append(args, "-o", propExpires+"="+s.ExpiresAt.UTC().Format(time.RFC3339))
	}
	return args
}

// Snapshots lists the snapshots, oldest first.
func (v *volume) Snapshots(ctx context.Context) (_ []storage.Snapshot, err error) {
	defer storage.Fail(&err, "cannot list the snapshots of volume %q", v.key)
	rec, err := v.pool.load(v.key)
	if err != nil {
		return nil, err
	}
	var list []storage.Snapshot
	for _, s := range rec.Snapshots {
		list = append(list, s.Snapshot)
	}
	slices.SortStableFunc(list, func(a, b storage.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, ctx.Err()
}

func (v *volume) SnapshotDir(ctx context.Context, name string) (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open snapshot %q of volume %q", name, v.key)
	rec, err := v.pool.load(v.key)
	if err != nil {
		return nil, err
	}
	i, err := rec.find(name)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return nil, err
	}
	return v.pool.snapshotMeta(ctx, rec.object(&rec.Snapshots[i]))
}

// SnapshotRoot mounts a snapshot, which stays until it is deleted.
func (v *volume) SnapshotRoot(ctx context.Context, name string) (_ storage.Root, err error) {
	defer storage.Fail(&err, "cannot look into snapshot %q of volume %q", name, v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err != nil {
		return storage.Root{}, err
	}
	i, err := rec.find(name)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return storage.Root{}, err
	}
	object := rec.object(&rec.Snapshots[i])
	const flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	data, err := p.mountAt(ctx, p.full(object), p.mountPoint(object), flags)
	if err != nil {
		return storage.Root{}, gone(err)
	}
	return rootAt(p.mountPoint(object), &rec, true), data.Close()
}

// Restore makes a clone of the snapshot the volume's dataset. The old one stays
// for its snapshots, newer ones included; Sweep frees the rest of it.
func (v *volume) Restore(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot restore volume %q to snapshot %q", v.key, name)
	return v.change(ctx, func(h *locked) error {
		i, err := h.rec.find(name)
		if err != nil {
			return err
		}
		if h.rec.Base != "" {
			return fault.New(fault.WrongState, "images are read-only")
		}
		p := v.pool
		if err := p.idle(ctx, &h.rec); err != nil {
			return err
		}
		old := h.rec.dataset()
		c, err := p.begin(ctx, old)
		if err != nil {
			return err
		}
		defer c.end()
		rec := h.rec.clone()
		rec.Data = c.name
		origin := h.rec.object(&h.rec.Snapshots[i])
		err = c.save(h, rec, func() error { return c.cloneDataset(ctx, origin, v.key, &rec) })
		if err != nil {
			return err
		}
		c.wasteful = true // Sweep unmounts it, which may wait for the disk
		return nil
	})
}

// DeleteSnapshot drops a snapshot from the record. Sweep destroys it, or ZFS does
// when its last clone is gone.
func (v *volume) DeleteSnapshot(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot delete snapshot %q of volume %q", name, v.key)
	return v.change(ctx, func(h *locked) error {
		i, err := h.rec.find(name)
		if err != nil {
			return err
		}
		s := &h.rec.Snapshots[i]
		// The dataset too: with its last snapshot one that was left behind is done.
		c, err := v.pool.begin(ctx, h.rec.object(s), path.Join(string(h.rec.Class), s.Data))
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
		v.pool.unmount(c.objects[0])
		return nil
	})
}

// RenameSnapshot gives a snapshot another name in the record, and in the property
// that shows it.
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
		d := &gozfs.Dataset{Name: v.pool.full(rec.object(&rec.Snapshots[i]))}
		if d.SetProperty(propSnapshot, to) == nil {
			v.pool.step("labelled")
		}
		return nil
	})
}
