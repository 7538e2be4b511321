package lvm

import (
	"cmp"
	"context"
	"os"
	"path"
	"slices"
	"time"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Snapshot makes a thin snapshot, copies the metadata files and notes both in the
// record.
func (v *volume) Snapshot(ctx context.Context, name string, o storage.SnapshotOptions) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q", name, v.key)
	if err := storage.CheckName("snapshot", name); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if _, err := h.rec.find(name); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", name)
		}
		s := snapshot{Snapshot: storage.Snapshot{
			Name: name, Description: o.Description, CreatedAt: o.CreatedAt.Round(0), ExpiresAt: o.ExpiresAt.Round(0), Auto: o.Auto,
		}}
		if s.CreatedAt.IsZero() {
			s.CreatedAt = time.Now().Round(0)
		}
		return v.pool.takeSnapshot(ctx, h, s, o.Live, v.key)
	})
}

func (p *Pool) takeSnapshot(ctx context.Context, h *locked, s snapshot, live *storage.Live, key storage.Key) error {
	files, err := h.dir.OpenRoot(pooldir.MetaDir)
	if err != nil {
		return err
	}
	defer files.Close()
	return p.keep(ctx, h, s, files, nil, func(id string) error {
		return p.freeze(ctx, &h.rec, live, func() error { return p.copyLV(ctx, h.rec.Data, id, key, s.Name) })
	})
}

// keep adds a snapshot to a volume, whose logical volume take makes, with a copy of
// metadata files that edit, if it is not nil, changes.
func (p *Pool) keep(ctx context.Context, h *locked, s snapshot, files *os.Root, edit func(dir *os.Root) error, take func(id string) error) error {
	if err := p.room(ctx); err != nil {
		return err
	}
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	s.ID = c.name
	if err := c.touch(s.ID); err != nil {
		return err
	}
	if err := p.keepMeta(files, s.ID, edit); err != nil {
		return err
	}
	rec := h.rec.clone()
	rec.Snapshots = append(rec.Snapshots, s)
	return c.save(h, rec, func() error { return take(s.ID) })
}

// keepMeta copies metadata files for a snapshot.
func (p *Pool) keepMeta(files *os.Root, id string, edit func(dir *os.Root) error) error {
	place := path.Join(snapshotsDir, id)
	if err := p.root.Mkdir(place, 0o700); err != nil {
		return pooldir.Damaged(err)
	}
	to, err := p.root.OpenRoot(place)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := pooldir.CopyMeta(files, to); err != nil || edit == nil {
		return err
	}
	return edit(to)
}

// CanAdopt tells whether the other volume is in the same pool, and holds the same
// kind of thing.
func (v *volume) CanAdopt(from storage.Volume) bool {
	other, ok := from.(*volume)
	return ok && other.pool.vg == v.pool.vg && other.pool.id == v.pool.id && other.Content() == v.Content()
}

// Adopt makes a thin snapshot of the other volume's snapshot.
func (v *volume) Adopt(ctx context.Context, from storage.Volume, snapshotName string, as storage.Snapshot, edit func(dir *os.Root) error) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q over as %q of volume %q", snapshotName, from.Key(), as.Name, v.key)
	if err := storage.CheckName("snapshot", as.Name); err != nil {
		return err
	}
	if !v.CanAdopt(from) {
		return fault.New(fault.Unsupported, "it is in another pool")
	}
	p := v.pool
	return v.change(ctx, func(h *locked) error {
		if _, err := h.rec.find(as.Name); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", as.Name)
		}
		if h.rec.readOnly() {
			return fault.New(fault.WrongState, "images are read-only")
		}
		source, err := p.load(from.Key())
		if err != nil {
			return err
		}
		i, err := source.find(snapshotName)
		if err != nil {
			return err
		}
		origin := source.Snapshots[i].ID
		files, err := p.root.OpenRoot(path.Join(snapshotsDir, origin))
		if err != nil {
			return pooldir.Damaged(err)
		}
		defer files.Close()
		as.CreatedAt, as.ExpiresAt = as.CreatedAt.Round(0), as.ExpiresAt.Round(0)
		return p.keep(ctx, h, snapshot{Snapshot: as}, files, edit, func(id string) error { return p.copyLV(ctx, origin, id, v.key, as.Name) })
	})
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

// snapshot finds a snapshot.
func (v *volume) snapshot(ctx context.Context, name string) (id string, rec record, err error) {
	if rec, err = v.pool.load(v.key); err != nil {
		return "", rec, err
	}
	i, err := rec.find(name)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return "", rec, err
	}
	return rec.Snapshots[i].ID, rec, nil
}

func (v *volume) SnapshotDir(ctx context.Context, name string) (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open snapshot %q of volume %q", name, v.key)
	id, _, err := v.snapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	dir, err := v.pool.root.OpenRoot(path.Join(snapshotsDir, id))
	return dir, pooldir.Damaged(err)
}

// SnapshotRoot mounts a snapshot, or activates its disk, until nobody uses it any
// more. A file system that was not at rest is put right when it is mounted, which
// writes to the snapshot and changes no file in it.
func (v *volume) SnapshotRoot(ctx context.Context, name string) (_ storage.Root, err error) {
	defer storage.Fail(&err, "cannot look into snapshot %q of volume %q", name, v.key)
	id, rec, err := v.snapshot(ctx, name)
	if err != nil {
		return storage.Root{}, err
	}
	root, err := v.pool.rootOf(ctx, id, &rec, true)
	if err != nil {
		return storage.Root{}, err
	}
	return root, nil
}
