package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// Copy makes a stopped instance with the data and configuration of another, or
// of one of its snapshots. The copy has an identity of its own: id, MAC and
// address.
func (m *Manager) Copy(ctx context.Context, r CopyRequest) (*instance.Spec, error) {
	if r.Name == "" {
		r.Name = generatedName(newID())
	}
	if err := store.CheckName(r.Name); err != nil {
		return nil, err
	}
	if r.Snapshot != "" {
		if err := store.CheckSnapshotName(r.Snapshot); err != nil {
			return nil, err
		}
	}
	src, held, err := m.openLocked(ctx, "copy", r.Source, r.Name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	if err := m.nameIsFree(ctx, r.Name); err != nil {
		return nil, err
	}
	from := src.spec
	if r.Snapshot != "" {
		if err := hasSnapshot(ctx, src, r.Snapshot); err != nil {
			return nil, err
		}
		if from, err = snapshotSpec(ctx, src, r.Snapshot); err != nil {
			return nil, fmt.Errorf("cannot copy %q: %w", r.Source, err)
		}
	}
	spec := *from
	spec.ID, spec.Name, spec.CreatedAt = newID(), r.Name, now()
	spec.Config, spec.Profiles = maps.Clone(from.Config), slices.Clone(from.Profiles)
	if r.Pool != "" && r.Pool != src.pool {
		if err := m.copyAcross(ctx, src, &spec, r); err != nil {
			return nil, fmt.Errorf("cannot copy %q to %q in pool %q: %w", r.Source, r.Name, r.Pool, err)
		}
		return &spec, nil
	}
	args := createArgs{Spec: &spec, Pool: src.pool, From: sourceOf(r.Source, r.Snapshot)}
	var live *storage.Live
	if r.Snapshot == "" {
		var err error
		if live, err = m.liveness(src); err != nil {
			return nil, fmt.Errorf("cannot copy %q: %w", r.Source, err)
		}
	}
	op := m.cloneOperation(args, live)
	err = m.withAddress(ctx, &spec, !from.Address.IsValid(), func() error {
		return m.performAs(ctx, "copy", []string{r.Name, r.Source}, args, op)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot copy %q to %q: %w", r.Source, r.Name, err)
	}
	return &spec, nil
}

func snapshotSpec(ctx context.Context, src *opened, snapshot string) (*instance.Spec, error) {
	dir, err := src.volume.SnapshotDir(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return store.LoadSpec(dir, src.spec.Name)
}

// renameArgs are all that is needed to carry on with a rename.
type renameArgs struct {
	ID, Pool, From, To string
}

// Rename gives a stopped instance another name.
func (m *Manager) Rename(ctx context.Context, name, to string) error {
	if err := store.CheckName(to); err != nil {
		return err
	}
	inst, held, err := m.openLocked(ctx, "rename", name, to)
	if err != nil {
		return err
	}
	defer held.Release()
	if state := m.state(inst.spec); state.Status != instance.Stopped {
		return fault.New(fault.WrongState, "cannot rename %q: it is %s; stop it first", name, stateWord(state.Status))
	}
	if err := m.nameIsFree(ctx, to); err != nil {
		return err
	}
	if err := m.perform(ctx, "rename", []string{name, to}, renameArgs{inst.spec.ID, inst.pool, name, to}); err != nil {
		return fmt.Errorf("cannot rename %q to %q: %w", name, to, err)
	}
	return nil
}

func (m *Manager) renameOperation(a renameArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "volume", do: func(ctx context.Context) error {
			if inst, err := m.open(ctx, a.To); err == nil && inst.spec.ID == a.ID {
				return nil
			}
			pool, err := m.pool(ctx, a.Pool)
			if err != nil {
				return err
			}
			return pool.Rename(ctx, instanceKey(a.From), a.To)
		}},
		{name: "configuration", do: func(ctx context.Context) error {
			inst, err := m.open(ctx, a.To)
			if err != nil {
				return err
			}
			return saveSpec(inst.volume, inst.spec)
		}},
	}}
}
