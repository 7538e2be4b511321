package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
	"brig/storage"
)

// Copy makes a stopped instance with the data, configuration and snapshots of
// another, or with those of one of its snapshots. The copy has an identity of its
// own: id, MAC and address, and unless the request says otherwise a machine id and SSH
// host keys. With Refresh, a copy that is there already is brought up to date.
func (m *Manager) Copy(ctx context.Context, r CopyRequest) (*instance.Spec, error) {
	if r.Name == "" {
		r.Name = project.Full(r.Project, generatedName(newID()))
	}
	if err := store.CheckFullName(r.Name); err != nil {
		return nil, err
	}
	if r.Snapshot != "" {
		if err := store.CheckSnapshotName(r.Snapshot); err != nil {
			return nil, err
		}
	}
	if r.Refresh && r.Snapshot != "" {
		return nil, fault.New(fault.Invalid, "cannot refresh %q from snapshot %q: a copy is refreshed from the instance as it is", r.Name, r.Snapshot)
	}
	if r.Name == r.Source {
		return nil, fault.New(fault.AlreadyExists, "cannot copy %q to itself: it exists already; give the copy another name", r.Source)
	}
	admitted, err := m.admitNew(ctx, "copy", r.Name)
	if err != nil {
		return nil, err
	}
	defer admitted.release()
	src, held, err := m.openLocked(ctx, "copy", r.Source, r.Name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	if r.Refresh {
		switch _, _, err := m.find(ctx, instanceKey(r.Name)); {
		case err == nil:
			return m.refresh(ctx, src, r, admitted)
		case !fault.Is(err, fault.NotFound):
			return nil, err
		}
	}
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
	m.noteNested(src)
	spec := *from
	spec.ID, spec.Name, spec.CreatedAt = newID(), r.Name, now()
	spec.Config, spec.Profiles, spec.Devices = maps.Clone(from.Config), slices.Clone(from.Profiles), maps.Clone(from.Devices)
	if r.Profiles != nil {
		spec.Profiles = r.Profiles
	}
	err = m.withProfiles(&spec)
	if err == nil {
		err = admitted.check(ctx, &spec)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot copy %q to %q: %w", r.Source, r.Name, err)
	}
	spec.SeedID = seedID(from)
	if !r.KeepIdentity {
		spec.SeedID = ""
		m.renew(&spec)
	}
	whole, err := m.wholeCopy(ctx, src, r)
	if err != nil {
		return nil, fmt.Errorf("cannot copy %q to %q: %w", r.Source, r.Name, err)
	}
	if whole {
		if err := m.copyWhole(ctx, src, &spec, r); err != nil {
			return nil, fmt.Errorf("cannot copy %q to %q in pool %q: %w", r.Source, r.Name, cmp.Or(r.Pool, src.pool), err)
		}
		return &spec, nil
	}
	args := createArgs{Spec: &spec, Pool: src.pool, From: sourceOf(r.Source, r.Snapshot)}
	var live *storage.Live
	if r.Snapshot == "" {
		live, err = m.liveness(src)
		args.Held = m.stands(src, live)
	}
	if err == nil {
		err = m.roomToClone(ctx, src, live != nil)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot copy %q: %w", r.Source, err)
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

// wholeCopy tells whether a copy takes more than a clone: it is for another pool, or
// has snapshots, which a driver that cannot share them leaves behind.
func (m *Manager) wholeCopy(ctx context.Context, src *opened, r CopyRequest) (bool, error) {
	if r.Pool != "" && r.Pool != src.pool {
		return true, nil
	}
	if a, ok := src.volume.(storage.Adopter); r.Snapshot != "" || r.InstanceOnly || !ok || !a.CanAdopt(src.volume) {
		return false, nil
	}
	list, err := src.volume.Snapshots(ctx)
	return len(visible(list)) > 0, err
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
	Dependents         []dependent // they are to depend on To
}

// Rename gives a stopped instance another name. Those that depend on it at boot go
// with it.
func (m *Manager) Rename(ctx context.Context, name, to string) error {
	if err := store.CheckFullName(to); err != nil {
		return err
	}
	admitted, err := m.admitNew(ctx, "rename", to)
	if err != nil {
		return err
	}
	defer admitted.release()
	inst, held, dependents, err := m.lockToRename(ctx, name, to)
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
	err = m.checkRename(ctx, name, to)
	if err == nil {
		err = m.checkNewProject(ctx, admitted, inst.spec, to)
	}
	if err != nil {
		return fmt.Errorf("cannot rename %q to %q: %w", name, to, err)
	}
	locks := []string{name, to}
	for _, d := range dependents {
		locks = append(locks, d.Name)
	}
	if err := m.perform(ctx, "rename", locks, renameArgs{inst.spec.ID, inst.pool, name, to, dependents}); err != nil {
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
		{name: "dependents", do: func(ctx context.Context) error { return m.followRename(ctx, a) }},
	}}
}
