package zfs

import (
	"context"
	"errors"
	"os"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

var (
	_ storage.Adopter  = (*volume)(nil)
	_ storage.Streamer = (*volume)(nil)
)

// CanAdopt tells whether the other volume is in the same pool. What is in another one
// is sent: a clone would bind the two pools together for ever.
func (v *volume) CanAdopt(from storage.Volume) bool {
	other, ok := from.(*volume)
	return ok && other.pool.dataset == v.pool.dataset && other.Content() == v.Content()
}

// Adopt takes a snapshot of a clone of the other volume's snapshot.
func (v *volume) Adopt(ctx context.Context, from storage.Volume, snapshotName string, as storage.Snapshot, edit func(dir *os.Root) error) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q over as %q of volume %q", snapshotName, from.Key(), as.Name, v.key)
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
	origin := source.object(&source.Snapshots[i])
	return v.keep(ctx, as, func(c *change, rec *record, object string) error {
		if source.Format != rec.Format {
			return fault.New(fault.Unsupported, "its disk is a %s file and not %s", source.Format, rec.Format)
		}
		if err := c.cloneDataset(ctx, origin, v.key, rec); err != nil {
			return err
		}
		if edit != nil {
			if err := v.pool.edit(ctx, rec.dataset(), edit); err != nil {
				return err
			}
		}
		return v.pool.snapshot(ctx, object, snapshotLabels(&snapshot{Snapshot: as})...)
	})
}

// edit has the metadata files in a new dataset changed.
func (p *Pool) edit(ctx context.Context, dataset string, edit func(dir *os.Root) error) error {
	data, err := p.detached(ctx, dataset)
	if err != nil {
		return pooldir.Damaged(err)
	}
	defer data.Close()
	meta, err := data.OpenRoot(pooldir.MetaDir)
	if err != nil {
		return err
	}
	defer meta.Close()
	return edit(meta)
}

// keep adds a snapshot to the volume, which make makes: with the dataset that rec
// names, object in it.
func (v *volume) keep(ctx context.Context, as storage.Snapshot, make func(c *change, rec *record, object string) error) error {
	if err := storage.CheckName("snapshot", as.Name); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if _, err := h.rec.find(as.Name); err == nil {
			return fault.New(fault.AlreadyExists, "there is a snapshot %q already", as.Name)
		}
		if h.rec.Base != "" {
			return fault.New(fault.WrongState, "images are read-only")
		}
		c, err := v.pool.begin(ctx)
		if err != nil {
			return err
		}
		defer c.end()
		as.CreatedAt, as.ExpiresAt = as.CreatedAt.Round(0), as.ExpiresAt.Round(0)
		s := snapshot{ID: c.name, Data: c.name, Snapshot: as}
		made := h.rec.clone()
		made.Data, made.Snapshots = c.name, nil
		object := made.object(&s)
		if err := c.touch(made.dataset(), object); err != nil {
			return err
		}
		rec := h.rec.clone()
		rec.Snapshots = append(rec.Snapshots, s)
		return c.save(h, rec, func() error {
			if err := make(c, &made, object); err != nil {
				return err
			}
			v.pool.step("snapshot made")
			return ctx.Err()
		})
	})
}

// StreamFormat is that of zfs send.
func (v *volume) StreamFormat() string { return "zfs" }

// Send runs zfs send.
func (v *volume) Send(ctx context.Context, snapshotName, base string, w *os.File) (err error) {
	defer storage.Fail(&err, "cannot send snapshot %q of volume %q", snapshotName, v.key)
	rec, err := v.pool.load(v.key)
	if err != nil {
		return err
	}
	i, err := rec.find(snapshotName)
	if err != nil {
		return err
	}
	args := []string{"send", "--large-block", "--compressed"}
	if base != "" {
		j, err := rec.find(base)
		if err != nil {
			return err
		}
		args = append(args, "-i", v.pool.full(rec.object(&rec.Snapshots[j])))
	}
	_, err = run.With(ctx, run.Options{Stdout: w}, "zfs", append(args, v.pool.full(rec.object(&rec.Snapshots[i])))...)
	return noBase(classify(err), base)
}

// noBase says of an error that is not known otherwise that a stream and its base do
// not fit: after a volume went back to an older snapshot, ZFS can send differences
// only to some.
func noBase(err error, base string) error {
	if _, failed := errors.AsType[*run.Error](err); base != "" && failed && fault.Of(err) == fault.Internal {
		return fault.Wrap(fault.WrongState, err)
	}
	return err
}

// Receive runs zfs receive, into a dataset of its own: a clone of the base.
func (v *volume) Receive(ctx context.Context, base string, r *os.File, as storage.Snapshot) (err error) {
	defer storage.Fail(&err, "cannot receive snapshot %q of volume %q", as.Name, v.key)
	origin := ""
	if base != "" {
		rec, err := v.pool.load(v.key)
		if err != nil {
			return err
		}
		i, err := rec.find(base)
		if err != nil {
			return err
		}
		origin = v.pool.full(rec.object(&rec.Snapshots[i]))
	}
	return v.keep(ctx, as, func(c *change, rec *record, object string) error {
		args := append([]string{"receive", "-u"}, labels(v.key, rec)...)
		if rec.Content == storage.Disk {
			args = append(args, "-o", "recordsize="+diskRecordSize)
		}
		if origin != "" {
			args = append(args, "-o", "origin="+origin)
		}
		_, err := run.With(ctx, run.Options{Stdin: r}, "zfs", append(args, c.pool.full(object))...)
		if err != nil {
			return noBase(classify(err), base)
		}
		c.pool.step("stream received")
		if err := c.pool.checkReceived(ctx, object, rec); err != nil {
			return err
		}
		set := []string{"set"}
		for i, arg := range snapshotLabels(&snapshot{Snapshot: as}) {
			if i%2 == 1 { // after each -o
				set = append(set, arg)
			}
		}
		_, err = zfs(ctx, append(set, c.pool.full(object))...)
		return err
	})
}

// checkReceived judges what a stream brought.
func (p *Pool) checkReceived(ctx context.Context, object string, rec *record) error {
	data, err := p.detached(ctx, object)
	if err != nil {
		return err
	}
	defer data.Close()
	name, err := pooldir.CheckFilled(data, rec.Content)
	if err != nil {
		return err
	}
	if rec.Content == storage.Disk && qcow2.FormatOf(name) != rec.Format {
		return fault.New(fault.Unsupported, "the disk in it is %q and not %s", name, rec.Format)
	}
	if st, err := data.Lstat(pooldir.MetaDir); err != nil || !st.IsDir() {
		return fault.New(fault.Invalid, "there are no metadata files in it")
	}
	return nil
}
