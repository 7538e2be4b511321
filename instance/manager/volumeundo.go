package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// A restore of a custom volume keeps the state before, as that of an instance does.
// What an instance's undo keeps of a volume is a part of that, and not meant here.

// volumeRestoreArgs are all that is needed to carry on with a restore of a custom
// volume, or with the undoing of one.
type volumeRestoreArgs struct {
	Pool, Name, ID, Snapshot string
	Undo                     string // the snapshot of the state before
	Note                     string // its description
}

// VolumeRestoreOptions tell how a custom volume is brought to another state.
type VolumeRestoreOptions struct {
	Restart bool // stop by force what runs with it, and start that again
}

// RestoreVolumeSnapshot brings a custom volume back to a snapshot. All snapshots
// stay, newer ones too, and UndoVolume brings back the state before. Running
// instances may not have it, unless o says otherwise.
func (m *Manager) RestoreVolumeSnapshot(ctx context.Context, pool, name, snapshot string, o VolumeRestoreOptions) error {
	v, err := m.lockVolume(ctx, "restore", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	if err := v.hasSnapshot(ctx, snapshot); err != nil {
		return err
	}
	if err := m.volumeGoesBack(ctx, v, "restore", snapshot, fmt.Sprintf("restore to %q", snapshot), o); err != nil {
		return fmt.Errorf("cannot restore volume %q: %w", name, err)
	}
	return nil
}

// UndoVolume brings a custom volume to what it was before the last restore, or back
// from the trash if it was deleted, and tells what it undid. The undoing of a
// restore can be undone in the same way.
func (m *Manager) UndoVolume(ctx context.Context, pool, name string, o VolumeRestoreOptions) (string, error) {
	ref := refOf(pool, name)
	v, err := m.lockVolume(ctx, "undo", ref)
	if fault.Is(err, fault.NotFound) {
		called := ref.Pool + "/" + ref.Name
		if found, _ := m.findTrash(ctx, called); len(found) > 0 {
			_, err = m.RestoreTrash(ctx, called, "")
			return "delete", err
		}
	}
	if err != nil {
		return "", err
	}
	defer v.release()
	what, err := m.undoVolume(ctx, v, o)
	if err != nil {
		return "", fmt.Errorf("cannot undo anything on volume %q: %w", name, err)
	}
	return what, nil
}

func (m *Manager) undoVolume(ctx context.Context, v *lockedVolume, o VolumeRestoreOptions) (string, error) {
	kept, err := volumeUndoable(ctx, v.volume)
	if err != nil {
		return "", err
	}
	if len(kept) == 0 {
		return "", fault.New(fault.WrongState, "no restore was done in the last %d days", int(keptFor.Hours()/24))
	}
	last := kept[len(kept)-1]
	what, next := undoing(last)
	return what, m.volumeGoesBack(ctx, v, "undo", last.Name, next, o)
}

// ForgetVolumeUndo frees what is kept for UndoVolume.
func (m *Manager) ForgetVolumeUndo(ctx context.Context, pool, name string) error {
	v, err := m.lockVolume(ctx, "forget the undo of", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	if err := forgetVolumeUndo(ctx, v.custom, func(storage.Snapshot) bool { return true }); err != nil {
		return fmt.Errorf("cannot forget what undo of volume %q keeps: %w", name, err)
	}
	m.sweepLater()
	return nil
}

// volumeUndoable lists the snapshots for UndoVolume, the last one is the newest.
func volumeUndoable(ctx context.Context, v storage.Volume) ([]storage.Snapshot, error) {
	kept, err := undoable(ctx, v)
	return slices.DeleteFunc(kept, func(s storage.Snapshot) bool { return strings.Contains(s.Name, partMark) }), err
}

// volumeGoesBack brings a volume to a snapshot. Doing is a verb, what is how undo calls
// it.
func (m *Manager) volumeGoesBack(ctx context.Context, v *lockedVolume, doing, snapshot, what string, o VolumeRestoreOptions) (err error) {
	note, err := json.Marshal(undoNote{what, deletion{m.cfg.Clock().UTC(), m.passed(ctx)}})
	if err != nil {
		return err
	}
	running, err := m.runnersOf(ctx, v.ref, v.users)
	if err != nil {
		return err
	}
	if len(running) > 0 && !o.Restart {
		name := running[0].inst.spec.Name
		return fault.New(fault.WrongState, "%q runs with it; stop it first, with brig stop %s, or have it stopped by force and started again, with --restart", name, name)
	}
	// While they still run.
	if err := m.roomToCopy(ctx, v.custom, "", snapshot); err != nil {
		return err
	}
	var resume []func(context.Context) error
	defer func() {
		m.sweepLater()
		v.release()
		for _, f := range resume {
			err = errors.Join(err, f(ctx))
		}
	}()
	for _, r := range running {
		force := StopOptions{Force: true}
		f, err := m.noteRestart(r.inst.spec, force)
		if err == nil {
			resume = append(resume, f)
			err = m.stop(ctx, r.inst, r.machine, force)
		}
		if err != nil {
			return fmt.Errorf("cannot stop %q: %w", r.inst.spec.Name, err)
		}
	}
	a := volumeRestoreArgs{v.ref.Pool, v.ref.Name, v.info.ID, snapshot, store.UndoPrefix + newID(), string(note)}
	return m.perform(ctx, "volume-"+doing, []string{v.ref.lock()}, a)
}

func (m *Manager) volumeRestoreOperation(a volumeRestoreArgs) *operation {
	ref := volumeRef{a.Pool, a.Name}
	return &operation{forward: true, turn: 1, steps: []step{
		{
			name: "keep",
			do:   func(ctx context.Context) error { return m.keepVolume(ctx, a) },
			undo: func(ctx context.Context) error {
				if a.Undo == "" {
					return nil
				}
				return m.dropVolumeSnapshot(ctx, part{a.Pool, a.Name, a.ID, a.Undo})
			},
		},
		{name: "volume", do: func(ctx context.Context) error {
			c, err := m.openVolume(ctx, ref)
			if err != nil {
				return err
			}
			return c.volume.Restore(ctx, a.Snapshot)
		}},
		{name: "size", do: func(ctx context.Context) error { return m.restoreSize(ctx, ref, a.Snapshot) }},
		{name: "forget", do: func(ctx context.Context) error {
			if a.Undo == "" {
				return nil
			}
			c, err := m.openVolume(ctx, ref)
			if err != nil {
				return err
			}
			return forgetVolumeUndo(ctx, c, func(s storage.Snapshot) bool { return s.Name != a.Undo })
		}},
	}, settled: func(ctx context.Context) bool {
		c, err := m.openPart(ctx, part{a.Pool, a.Name, a.ID, a.Snapshot})
		return err == nil && c != nil && wentBack(ctx, c.volume, a.Snapshot, a.Undo)
	}}
}

// keepVolume takes the snapshot of the state before.
func (m *Manager) keepVolume(ctx context.Context, a volumeRestoreArgs) error {
	if a.Undo == "" {
		return nil
	}
	c, err := m.openVolume(ctx, volumeRef{a.Pool, a.Name})
	if err != nil {
		return err
	}
	err = c.volume.Snapshot(ctx, a.Undo, storage.SnapshotOptions{Description: a.Note, CreatedAt: now()})
	if fault.Is(err, fault.AlreadyExists) {
		return nil
	}
	return err
}

// restoreSize notes that a block volume is as large again as its snapshot.
func (m *Manager) restoreSize(ctx context.Context, ref volumeRef, snapshot string) error {
	c, err := m.openVolume(ctx, ref)
	if err != nil || c.volume.Content() != storage.Disk {
		return err
	}
	then, err := c.infoAt(ctx, snapshot)
	if err != nil {
		return err
	}
	if c.info.Config[sizeKey] == then.Config[sizeKey] {
		return nil
	}
	c.info.Config[sizeKey] = then.Config[sizeKey]
	return c.save()
}

// forgetVolumeUndo drops those snapshots for UndoVolume that are meant.
func forgetVolumeUndo(ctx context.Context, c *custom, meant func(storage.Snapshot) bool) error {
	kept, err := volumeUndoable(ctx, c.volume)
	if err != nil {
		return err
	}
	for _, s := range kept {
		if !meant(s) {
			continue
		}
		if err := c.volume.DeleteSnapshot(ctx, s.Name); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

// expireVolumeUndo drops the snapshots for UndoVolume that were kept long enough, of
// the volumes of one pool.
func (m *Manager) expireVolumeUndo(ctx context.Context, in string, pool storage.Pool, passed time.Duration) error {
	names, err := customIn(ctx, pool)
	errs := []error{err}
	over := func(s storage.Snapshot) bool { return noteOf(s).over(passed, m.cfg.Clock()) }
	for _, name := range names {
		volume, err := pool.Open(ctx, volumeRef{in, name}.key())
		if err != nil {
			continue
		}
		if kept, _ := volumeUndoable(ctx, volume); !slices.ContainsFunc(kept, over) {
			continue
		}
		v, err := m.lockVolume(ctx, "sweep", volumeRef{in, name})
		if err == nil {
			err = forgetVolumeUndo(ctx, v.custom, over)
			v.release()
		}
		if !fault.Is(err, fault.NotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
