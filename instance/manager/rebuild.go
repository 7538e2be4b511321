package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/transfer"
)

// rebuildArgs are all that is needed to carry on with a rebuild, or to undo it.
type rebuildArgs struct {
	Spec   *instance.Spec // what the instance becomes
	Pool   string
	Image  storage.Key // of the volume with what it will hold
	Part   string      // a clone of that
	Mark   string      // a snapshot of the clone, and of the instance if it can have it
	Before restoreArgs // what is kept for Undo
}

// Rebuild makes a stopped instance new from an image, or from the one that it was made
// of. Its configuration, devices, addresses and snapshots stay, and Undo brings back
// what it held.
func (m *Manager) Rebuild(ctx context.Context, name, image string) error {
	if err := m.rebuild(ctx, name, image); err != nil {
		return fmt.Errorf("cannot rebuild %q: %w", name, err)
	}
	return nil
}

func (m *Manager) rebuild(ctx context.Context, name, image string) error {
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	if image == "" {
		image = inst.spec.Image.Reference
	}
	if image == "" {
		return fault.New(fault.Invalid, "it was made of no image: name one")
	}
	found, source, err := m.ensureImage(ctx, image, inst.spec.Type, inst.pool)
	if err != nil {
		return err
	}
	inst, held, err := m.openLocked(ctx, "rebuild", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if state := m.state(inst.spec); state.Status != instance.Stopped {
		return fault.New(fault.WrongState, "it is %s; stop it first with brig stop %s", stateWord(state.Status), name)
	}
	if err := m.roomToClone(ctx, inst, false); err != nil {
		return err
	}
	locked, err := m.lockUndoParts(ctx, inst)
	if err != nil {
		return err
	}
	defer locked.Release()
	spec := *inst.spec
	spec.Config = maps.Clone(spec.Config)
	describe(&spec, found, CreateRequest{Image: image})
	if spec.Renew = spec.MachineID != ""; !spec.Renew {
		if err := m.renewOfImage(ctx, &spec, found); err != nil {
			return err
		}
	}
	note, err := json.Marshal(undoNote{"rebuild", deletion{m.cfg.Clock().UTC(), m.passed(ctx)}})
	if err != nil {
		return err
	}
	id := newID()
	a := rebuildArgs{
		Spec: &spec, Pool: inst.pool, Image: source, Part: partPrefix + id, Mark: store.RefreshPrefix + id,
		Before: restoreArgs{Name: name, ID: spec.ID, Undo: store.UndoPrefix + id, Note: string(note)},
	}
	defer m.sweepLater()
	return m.perform(ctx, "rebuild", []string{name}, a)
}

// rebuildOperation has the image's data at hand before it touches the instance: as a
// snapshot of the instance where its pool can share data like that, which takes no time,
// and else in a volume whose files are copied.
func (m *Manager) rebuildOperation(a rebuildArgs) *operation {
	with := func(do func(ctx context.Context, pool storage.Pool, v storage.Volume) error) func(context.Context) error {
		return func(ctx context.Context) error {
			pool, err := m.pool(ctx, a.Pool)
			if err != nil {
				return err
			}
			v, err := pool.Open(ctx, instanceKey(a.Spec.Name))
			if err != nil {
				return err
			}
			return do(ctx, pool, v)
		}
	}
	tidy := func(ctx context.Context, pool storage.Pool, v storage.Volume) error {
		if err := v.DeleteSnapshot(ctx, a.Mark); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if err := pool.Delete(ctx, instanceKey(a.Part)); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	}
	return &operation{forward: true, turn: 1, steps: []step{
		{
			name: "keep",
			do:   func(ctx context.Context) error { return m.keepForUndo(ctx, a.Before) },
			undo: func(ctx context.Context) error { return m.dropForUndo(ctx, a.Before) },
		},
		{name: "image", do: with(func(ctx context.Context, pool storage.Pool, v storage.Volume) error {
			return stageImage(ctx, pool, v, a)
		}), undo: with(tidy)},
		{name: "volume", do: with(func(ctx context.Context, pool storage.Pool, v storage.Volume) error {
			err := v.Restore(ctx, a.Mark)
			if !fault.Is(err, fault.NotFound) {
				return err
			}
			part, err := pool.Open(ctx, instanceKey(a.Part))
			if err != nil {
				return err
			}
			return transfer.Put(ctx, part, v, m.mountDir())
		})},
		{name: "configuration", do: with(func(_ context.Context, _ storage.Pool, v storage.Volume) error { return saveSpec(v, a.Spec) })},
		{name: "forget", do: with(func(ctx context.Context, pool storage.Pool, v storage.Volume) error {
			if err := tidy(ctx, pool, v); err != nil {
				return err
			}
			return m.forgetUndo(ctx, a.Spec.Name, a.Before.Undo)
		})},
	}}
}

// stageImage clones the image, and has the instance share the clone's data if it can.
func stageImage(ctx context.Context, pool storage.Pool, v storage.Volume, a rebuildArgs) error {
	part, err := pool.Clone(ctx, storage.Source{Key: a.Image}, instanceKey(a.Part), storage.CloneOptions{
		Edit: func(dir *os.Root) error { return store.SaveSpec(dir, a.Spec) },
	})
	if fault.Is(err, fault.AlreadyExists) {
		part, err = pool.Open(ctx, instanceKey(a.Part))
	}
	if err != nil {
		return err
	}
	adopter, ok := v.(storage.Adopter)
	if !ok || !adopter.CanAdopt(part) {
		return nil
	}
	if err := part.Snapshot(ctx, a.Mark, storage.SnapshotOptions{CreatedAt: now()}); err != nil && !fault.Is(err, fault.AlreadyExists) {
		return err
	}
	err = adopter.Adopt(ctx, part, a.Mark, storage.Snapshot{Name: a.Mark, CreatedAt: now()}, nil)
	if fault.Is(err, fault.AlreadyExists) || fault.Is(err, fault.Unsupported) {
		return nil
	}
	return err
}
