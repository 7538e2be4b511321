package lvm

import (
	"context"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

var _ storage.Adopter = (*volume)(nil)

// CanAdopt tells whether the other volume is in the same pool: a thin snapshot is in
// that of its origin.
func (v *volume) CanAdopt(from storage.Volume) bool {
	other, ok := from.(*volume)
	return ok && other.pool.vg == v.pool.vg && other.pool.id == v.pool.id && other.Content() == v.Content()
}

// Adopt makes a thin snapshot of the other volume's snapshot.
func (v *volume) Adopt(ctx context.Context, from storage.Volume, snapshotName string, as storage.Snapshot, edit func(dir *os.Root) error) (err error) {
	defer fail(&err, "cannot take snapshot %q of volume %q over as %q of volume %q", snapshotName, from.Key(), as.Name, v.key)
	if err := storage.CheckName("snapshot", as.Name); err != nil {
		return err
	}
	if !v.CanAdopt(from) {
		return fault.New(fault.Unsupported, "it is in another pool")
	}
	source, err := v.pool.load(from.Key())
	if err != nil {
		return err
	}
	i, err := source.find(snapshotName)
	if err != nil {
		return err
	}
	origin := source.Snapshots[i].ID
	return v.change(ctx, func(h *locked) error {
		if _, err := h.rec.find(as.Name); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", as.Name)
		}
		if h.rec.readOnly() {
			return fault.New(fault.WrongState, "images are read-only")
		}
		return v.take(ctx, h, origin, as, edit)
	})
}

func (v *volume) take(ctx context.Context, h *locked, origin string, as storage.Snapshot, edit func(dir *os.Root) error) error {
	p := v.pool
	if err := p.room(ctx); err != nil {
		return err
	}
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	s := snapshot{ID: c.name, Snapshot: as}
	s.CreatedAt, s.ExpiresAt = as.CreatedAt.Round(0), as.ExpiresAt.Round(0)
	if err := c.touch(s.ID); err != nil {
		return err
	}
	if err := p.takeMeta(origin, s.ID, edit); err != nil {
		return err
	}
	rec := h.rec.clone()
	rec.Snapshots = append(rec.Snapshots, s)
	return c.save(h, rec, func() error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return p.copyLV(ctx, origin, s.ID, v.key, s.Name)
	})
}

// takeMeta gives a new snapshot the metadata files of another one.
func (p *Pool) takeMeta(from, id string, edit func(dir *os.Root) error) error {
	files, err := p.root.OpenRoot(path.Join(snapshotsDir, from))
	if err != nil {
		return unavailable(err)
	}
	defer files.Close()
	place := path.Join(snapshotsDir, id)
	if err := p.root.Mkdir(place, 0o700); err != nil {
		return unavailable(err)
	}
	to, err := p.root.OpenRoot(place)
	if err != nil {
		return err
	}
	defer to.Close()
	if err := copyFiles(files, to); err != nil || edit == nil {
		return err
	}
	if err := edit(to); err != nil {
		return err
	}
	d, err := to.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return unix.Syncfs(int(d.Fd()))
}
