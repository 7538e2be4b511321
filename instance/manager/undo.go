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

// Whatever replaces the state of an instance takes a snapshot before, which no
// list shows and Undo goes back to. There is one: the next replaces it.

// undoNote is the description of such a snapshot.
type undoNote struct {
	Before string `json:"before"` // what was done then
	deletion
}

// undoOf begins what an undoing is called.
const undoOf = "undo of the "

// visible leaves out the snapshots that brig takes by itself.
func visible(list []storage.Snapshot) []storage.Snapshot {
	return slices.DeleteFunc(list, hidden)
}

func hidden(s storage.Snapshot) bool { return forUndo(s) || forRefresh(s) }

func forUndo(s storage.Snapshot) bool { return strings.HasPrefix(s.Name, store.UndoPrefix) }

// Undo brings an instance back to what it was before the last restore, or back
// from the trash if it was deleted, and tells what it undid. The undoing of a
// restore can be undone in the same way.
func (m *Manager) Undo(ctx context.Context, name string) (string, error) {
	admitted, err := m.admit(ctx, "undo", name)
	if err != nil {
		return "", err
	}
	defer admitted.release()
	inst, held, err := m.openLocked(ctx, "undo", name)
	if fault.Is(err, fault.NotFound) {
		if found, _ := m.findTrash(ctx, name); len(found) > 0 {
			admitted.release()
			_, err = m.RestoreTrash(ctx, name, "")
			return "delete", err
		}
	}
	if err != nil {
		return "", err
	}
	defer held.Release()
	kept, err := undoable(ctx, inst.volume)
	if err != nil {
		return "", fmt.Errorf("cannot undo anything on %q: %w", name, err)
	}
	if len(kept) == 0 {
		return "", fault.New(fault.WrongState, "cannot undo anything on %q: no restore was done in the last %d days", name, int(keptFor.Hours()/24))
	}
	last := kept[len(kept)-1]
	what, next := undoing(last)
	if err := m.checkGoBack(ctx, admitted, inst, last.Name); err != nil {
		return "", fmt.Errorf("cannot undo anything on %q: %w", name, err)
	}
	parts, err := m.findParts(ctx, inst.spec.ID, last.Name)
	if err != nil {
		return "", fmt.Errorf("cannot undo anything on %q: %w", name, err)
	}
	return what, m.goBack(ctx, inst, held, "undo", last.Name, next, parts)
}

// ForgetUndo frees what is kept for Undo.
func (m *Manager) ForgetUndo(ctx context.Context, name string) error {
	inst, held, err := m.openLocked(ctx, "forget the undo of", name)
	if err != nil {
		return err
	}
	defer held.Release()
	locked, err := m.lockUndoParts(ctx, inst)
	if err != nil {
		return err
	}
	defer locked.Release()
	if err := m.forgetUndo(ctx, name, ""); err != nil {
		return fmt.Errorf("cannot forget what undo of %q keeps: %w", name, err)
	}
	m.sweepLater()
	return nil
}

// undoable lists the snapshots for Undo, the last one is the newest.
func undoable(ctx context.Context, v storage.Volume) ([]storage.Snapshot, error) {
	list, err := v.Snapshots(ctx)
	return slices.DeleteFunc(list, func(s storage.Snapshot) bool { return !forUndo(s) }), err
}

// undoing tells what going back to a snapshot for undo undoes, and how undoing that
// again is called: to undo an undoing is to do it again.
func undoing(s storage.Snapshot) (what, next string) {
	what = noteOf(s).Before
	next, again := strings.CutPrefix(what, undoOf)
	if !again {
		next = undoOf + what
	}
	return what, next
}

func noteOf(s storage.Snapshot) (note undoNote) {
	if json.Unmarshal([]byte(s.Description), &note) != nil || note.Before == "" {
		note = undoNote{"last change", deletion{At: s.CreatedAt}}
	}
	return note
}

// goBack brings an instance, which the caller has locked, to a snapshot. Doing is
// the kind of the operation, what is how Undo calls it. Parts are brought back with
// it.
func (m *Manager) goBack(ctx context.Context, inst *opened, held *store.Held, doing, snapshot, what string, parts []part) (err error) {
	name := inst.spec.Name
	note, err := json.Marshal(undoNote{what, deletion{m.cfg.Clock().UTC(), m.passed(ctx)}})
	if err != nil {
		return fmt.Errorf("cannot %s %q: %v", doing, name, err)
	}
	// While it still runs.
	if err := m.roomToClone(ctx, inst, false); err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, name, err)
	}
	names, locked, err := m.lockToGoBack(ctx, inst, parts)
	if err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, name, err)
	}
	defer locked.Release()
	if err := m.roomForParts(ctx, parts); err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, name, err)
	}
	machine, _, err := m.live(inst, "stop")
	if err == nil {
		force := StopOptions{Force: true}
		resume, err := m.noteRestart(inst.spec, force)
		if err != nil {
			return fmt.Errorf("cannot %s %q: %w", doing, name, err)
		}
		// Also if it does not come to anything.
		defer func() {
			locked.Release()
			held.Release()
			err = errors.Join(err, resume(ctx))
		}()
		if err := m.stop(ctx, inst, machine, force); err != nil {
			return fmt.Errorf("cannot %s %q: %w", doing, name, err)
		}
	}
	args := restoreArgs{name, inst.spec.ID, snapshot, store.UndoPrefix + newID(), string(note), parts}
	if err := m.perform(ctx, doing, append([]string{name}, names...), args); err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, name, err)
	}
	m.sweepLater()
	return nil
}

// keepForUndo takes the snapshot of the state before.
func (m *Manager) keepForUndo(ctx context.Context, a restoreArgs) error {
	if a.Undo == "" {
		return nil
	}
	inst, err := m.open(ctx, a.Name)
	if err != nil {
		return err
	}
	err = inst.volume.Snapshot(ctx, a.Undo, storage.SnapshotOptions{Description: a.Note, CreatedAt: now()})
	if err != nil && !fault.Is(err, fault.AlreadyExists) {
		return err
	}
	return m.keepParts(ctx, a)
}

// dropForUndo drops it when the state did not change after all: what was kept
// before it is worth more.
func (m *Manager) dropForUndo(ctx context.Context, a restoreArgs) error {
	if err := m.dropKeptParts(ctx, a); err != nil {
		return err
	}
	inst, err := m.open(ctx, a.Name)
	if err != nil {
		return err
	}
	err = inst.volume.DeleteSnapshot(ctx, a.Undo)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// forgetUndo drops the snapshots for Undo but one.
func (m *Manager) forgetUndo(ctx context.Context, name, but string) error {
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	kept, err := undoable(ctx, inst.volume)
	if err != nil {
		return err
	}
	for _, s := range kept {
		if s.Name == but {
			continue
		}
		if err := m.forgetState(ctx, inst, s.Name); err != nil {
			return err
		}
	}
	return nil
}

// forgetState drops a snapshot for Undo, and the parts of it before: as long as
// they are there it is.
func (m *Manager) forgetState(ctx context.Context, inst *opened, snapshot string) error {
	parts, err := m.findParts(ctx, inst.spec.ID, snapshot)
	if err == nil {
		err = m.dropParts(ctx, parts)
	}
	if err != nil {
		return err
	}
	if err := inst.volume.DeleteSnapshot(ctx, snapshot); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// restored tells that a restore was over and at most the dropping of older
// snapshots was not.
func (m *Manager) restored(ctx context.Context, a restoreArgs) bool {
	inst, err := m.open(ctx, a.Name)
	return err == nil && wentBack(ctx, inst.volume, a.Snapshot, a.Undo)
}

// wentBack tells that a volume was brought back to a snapshot for undo: that is
// dropped in the end, when the one of the state before is kept.
func wentBack(ctx context.Context, v storage.Volume, to, kept string) bool {
	list, err := v.Snapshots(ctx)
	has := func(name string) bool {
		return slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == name })
	}
	return err == nil && kept != "" && has(kept) && !has(to)
}

// expireUndo drops the snapshots for Undo that were kept long enough.
func (m *Manager) expireUndo(ctx context.Context, passed time.Duration) error {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err != nil {
			continue // whoever looks into the trash has said so
		}
		errs = append(errs, m.expireVolumeUndo(ctx, in, pool, passed))
		names, _, err := volumesIn(ctx, pool)
		errs = append(errs, err)
		for _, name := range names {
			volume, err := pool.Open(ctx, instanceKey(name))
			if err != nil {
				continue
			}
			kept, _ := undoable(ctx, volume)
			if slices.ContainsFunc(kept, func(s storage.Snapshot) bool { return noteOf(s).over(passed, m.cfg.Clock()) }) {
				errs = append(errs, m.dropUndo(ctx, name, passed))
			}
		}
	}
	return errors.Join(errs...)
}

// dropUndo drops those of one instance.
func (m *Manager) dropUndo(ctx context.Context, name string, passed time.Duration) error {
	held, err := m.lock(ctx, "sweep", name)
	if err != nil {
		return err
	}
	defer held.Release()
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil // it is gone, or not to be touched
	}
	locked, err := m.lockUndoParts(ctx, inst)
	if err != nil {
		return err
	}
	defer locked.Release()
	kept, err := undoable(ctx, inst.volume)
	for _, s := range kept {
		if noteOf(s).over(passed, m.cfg.Clock()) {
			err = errors.Join(err, m.forgetState(ctx, inst, s.Name))
		}
	}
	return err
}
