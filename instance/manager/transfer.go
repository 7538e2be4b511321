package manager

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/transfer"
)

// transferArgs are all that is needed to copy an instance to another pool, or to
// undo that. The copy is called Part, which is no name of an instance, until it
// is complete.
type transferArgs struct {
	Spec         *instance.Spec // of the copy
	Source       string
	Snapshot     string // empty: as it is now
	InstanceOnly bool
	From, To     string // pools
	Part         string
	Mark         string // a snapshot of the source for the time of the copy
	Keep         bool   // it stays, for the copy to be refreshed later
	Moves        bool   // the source will be deleted

	Held map[string]string // instances that stand still for it, name to id
}

// partPrefix begins the names of volumes that are being made.
const partPrefix = "part_"

// halfDone tells whether a volume is no instance yet.
func halfDone(volume string) bool { return strings.HasPrefix(volume, partPrefix) }

// copyWhole makes the copy of src that spec describes, with its snapshots.
func (m *Manager) copyWhole(ctx context.Context, src *opened, spec *instance.Spec, r CopyRequest) error {
	a := transferArgs{
		Spec: spec, Source: r.Source, Snapshot: r.Snapshot, InstanceOnly: r.InstanceOnly,
		From: src.pool, To: cmp.Or(r.Pool, src.pool), Part: partPrefix + newID(), Mark: store.RefreshPrefix + newID(),
	}
	a.Keep = r.Refresh && a.From != a.To
	live, err := m.liveness(src)
	if err != nil {
		return err
	}
	if r.Snapshot != "" {
		live = nil
	}
	a.Held = m.stands(src, live)
	if err := m.roomFor(ctx, src, a, live); err != nil {
		return err
	}
	op := m.transferOperation(a)
	op.steps[1] = m.writePart(a, live)
	err = m.withAddress(ctx, spec, !spec.Address.IsValid(), func() error {
		return m.performAs(ctx, "transfer", []string{spec.Name, r.Source}, a, op)
	})
	m.sweepLater()
	return err
}

// Move brings a stopped instance with its snapshots to another pool, or gives it
// another name, or both. It stays the same instance: id, MAC and address do not
// change.
func (m *Manager) Move(ctx context.Context, r MoveRequest) error {
	if r.Name == "" {
		r.Name = r.Source
	}
	if err := store.CheckFullName(r.Name); err != nil {
		return err
	}
	admitted, err := m.admitNew(ctx, "move", r.Name)
	if err != nil {
		return err
	}
	defer admitted.release()
	src, held, err := m.openLocked(ctx, "move", r.Source, r.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	if r.Pool == "" || r.Pool == src.pool {
		held.Release()
		admitted.release()
		if r.Name == r.Source {
			return fault.New(fault.Invalid, "cannot move %q: it is in pool %q and has that name already; give another name, or another pool with --storage", r.Source, src.pool)
		}
		return m.Rename(ctx, r.Source, r.Name)
	}
	if r.Name != r.Source {
		if err := m.nameIsFree(ctx, r.Name); err != nil {
			return err
		}
		who, _, err := m.dependentsOn(ctx, r.Source)
		if err != nil {
			return err
		}
		if len(who) > 0 {
			return fault.New(fault.WrongState, "cannot move %q to another pool and name at once: %s depends on it; rename it first with brig rename %s %s, which changes that, too", r.Source, strings.Join(who, " and "), r.Source, r.Name)
		}
	}
	spec := *src.spec
	spec.Name = r.Name
	a := transferArgs{
		Spec: &spec, Source: r.Source, InstanceOnly: r.InstanceOnly,
		From: src.pool, To: r.Pool, Part: partPrefix + newID(), Mark: store.RefreshPrefix + newID(), Moves: true,
	}
	err = m.atRest(src)
	if err == nil {
		err = m.checkNewProject(ctx, admitted, src.spec, r.Name)
	}
	if err == nil {
		err = nestedStays(src)
	}
	if err == nil {
		err = m.noneMounted(src.spec, "move")
	}
	if err == nil {
		err = m.roomFor(ctx, src, a, nil)
	}
	if err == nil {
		err = m.perform(ctx, "move", []string{r.Source, r.Name}, a)
	}
	m.sweepLater()
	if err != nil {
		return fmt.Errorf("cannot move %q to pool %q: %w", r.Source, r.Pool, err)
	}
	return nil
}

// atRest gives a wrong-state error unless an instance is stopped.
func (m *Manager) atRest(inst *opened) error {
	if state := m.state(inst.spec); state.Status != instance.Stopped {
		return fault.New(fault.WrongState, "%q is %s, and only a stopped instance can be moved to another pool; stop it first with brig stop %s", inst.spec.Name, stateWord(state.Status), inst.spec.Name)
	}
	return nil
}

// roomFor refuses a copy that its pool has no room for.
func (m *Manager) roomFor(ctx context.Context, src *opened, a transferArgs, live *storage.Live) error {
	pool, err := m.pool(ctx, a.To)
	if err != nil {
		return err
	}
	need, err := transfer.Need(ctx, m.request(src.volume, pool, a, live))
	if err != nil {
		return fmt.Errorf("cannot tell how much space it needs: %w", err)
	}
	return room(ctx, pool, a.To, need)
}

// request says how the arguments are carried out.
func (m *Manager) request(from storage.Volume, to storage.Pool, a transferArgs, live *storage.Live) transfer.Request {
	skip := hidden
	if a.Moves {
		skip = nil // what is kept for undo belongs to it
	}
	return transfer.Request{
		Source: from, Snapshot: a.Snapshot, Alone: a.InstanceOnly, Live: live, Skip: skip,
		Pool: to, Same: a.From == a.To, Key: instanceKey(a.Part),
		Mark: transfer.Mark{Name: a.Mark, Description: markOf(a.Spec.ID)}, Keep: a.Keep,
		Dir: m.mountDir(),
		Edit: func(dir *os.Root, snapshot string) error {
			if snapshot == "" {
				return store.SaveSpec(dir, a.Spec)
			}
			spec, err := store.LoadSpec(dir, a.Source)
			if err != nil {
				return err
			}
			spec.ID, spec.Name, spec.MAC, spec.Address = a.Spec.ID, a.Spec.Name, a.Spec.MAC, a.Spec.Address
			return store.SaveSpec(dir, spec)
		},
	}
}

// transferOperation copies an instance with its snapshots.
func (m *Manager) transferOperation(a transferArgs) *operation {
	claim := step{
		name: "address",
		do:   func(context.Context) error { return m.claimAddress(a.Spec) },
		undo: func(context.Context) error { return m.releaseAddress(a.Spec) },
	}
	return &operation{steps: []step{claim, m.writePart(a, nil), {
		name: "name",
		do: func(ctx context.Context) error {
			if err := m.namePart(ctx, a); err != nil {
				return err
			}
			return m.freshenProfiles(ctx, a.Spec)
		},
		undo: func(ctx context.Context) error { return m.dropVolume(ctx, a.To, instanceKey(a.Spec.Name), a.Spec.ID) },
	}}}
}

// moveOperation copies an instance to another pool and deletes it where it was.
// Once that is done there is nothing to go back to.
func (m *Manager) moveOperation(a transferArgs) *operation {
	return &operation{steps: []step{m.writePart(a, nil), {
		name: "name",
		do:   func(ctx context.Context) error { return m.namePart(ctx, a) },
		undo: func(ctx context.Context) error {
			from, err := m.pool(ctx, a.From)
			if err != nil {
				return err
			}
			_, err = from.Open(ctx, instanceKey(a.Source))
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			if err != nil {
				return err
			}
			return m.dropVolume(ctx, a.To, instanceKey(a.Spec.Name), a.Spec.ID)
		},
	}, {
		name: "source",
		do:   func(ctx context.Context) error { return m.dropVolume(ctx, a.From, instanceKey(a.Source), a.Spec.ID) },
	}}}
}

// writePart is the step that copies the data.
func (m *Manager) writePart(a transferArgs, live *storage.Live) step {
	return step{
		name: "data",
		do: func(ctx context.Context) error {
			from, err := m.pool(ctx, a.From)
			if err != nil {
				return err
			}
			volume, err := from.Open(ctx, instanceKey(a.Source))
			if err != nil {
				return err
			}
			to, err := m.pool(ctx, a.To)
			if err != nil {
				return err
			}
			task := m.cfg.Progress.Task("Copying to pool "+a.To, 0, false)
			defer task.Done()
			return transfer.Copy(ctx, m.request(volume, to, a, live))
		},
		undo: func(ctx context.Context) error {
			pool, err := m.pool(ctx, a.To)
			if err != nil {
				return err
			}
			if err := pool.Delete(ctx, instanceKey(a.Part)); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
			if err := m.dropMark(ctx, a.From, instanceKey(a.Source), a.Mark); err != nil {
				return err
			}
			return m.letAllGo(ctx, a.Held)
		},
	}
}

func (m *Manager) namePart(ctx context.Context, a transferArgs) error {
	pool, err := m.pool(ctx, a.To)
	if err != nil {
		return err
	}
	return pool.Rename(ctx, instanceKey(a.Part), a.Spec.Name)
}

// dropMark deletes the snapshot of a source for the time of a copy.
func (m *Manager) dropMark(ctx context.Context, in string, key storage.Key, mark string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	volume, err := pool.Open(ctx, key)
	if err == nil {
		err = volume.DeleteSnapshot(ctx, mark)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// mountDir is a folder for what is mounted where nobody sees it. It is there: this
// command holds a lock in it.
func (m *Manager) mountDir() string { return filepath.Join(m.cfg.Dirs.Run, "locks") }
