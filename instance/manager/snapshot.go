package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/schedule"
	"brig/instance/store"
	"brig/storage"
)

// CreateSnapshot keeps the present state of an instance and gives the name of
// the snapshot: the given one, or one by the instance's pattern, or snap0, snap1
// and so on.
func (m *Manager) CreateSnapshot(ctx context.Context, name, snapshot string, r SnapshotRequest) (string, error) {
	if snapshot != "" {
		if err := store.CheckSnapshotName(snapshot); err != nil {
			return "", err
		}
	}
	inst, held, err := m.openLocked(ctx, "snapshot", name)
	if err != nil {
		return "", err
	}
	defer held.Release()
	if err := m.allowedTo(name, "restricted.snapshots"); err != nil {
		return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
	}
	return m.takeSnapshot(ctx, inst, snapshot, r)
}

// takeSnapshot is CreateSnapshot of an instance whose lock is held.
func (m *Manager) takeSnapshot(ctx context.Context, inst *opened, snapshot string, r SnapshotRequest) (_ string, err error) {
	name := inst.spec.Name
	list, err := inst.volume.Snapshots(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
	}
	taken := make([]string, len(list))
	for i, s := range list {
		taken[i] = s.Name
	}
	at := m.cfg.Clock()
	switch {
	case snapshot == "":
		if snapshot, err = snapshotName(inst.spec.Effective.Config, r.Auto, at, taken); err != nil {
			return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
		}
	case slices.Contains(taken, snapshot):
		return "", fault.New(fault.AlreadyExists, "cannot snapshot %q: it has a snapshot named %q; choose another name, or delete that one", name, snapshot)
	}
	live, err := m.liveness(inst)
	if err == nil {
		err = m.roomToClone(ctx, inst, live != nil)
	}
	if err != nil {
		return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
	}
	parts, locked := []part(nil), new(store.Held)
	if !r.alone {
		if parts, locked, err = m.partsToTake(ctx, inst, snapshot); err != nil {
			return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
		}
	}
	defer locked.Release()
	args := snapshotArgs{Name: name, ID: inst.spec.ID, Snapshot: snapshot, Volumes: parts}
	o := storage.SnapshotOptions{Description: r.Description, CreatedAt: keptAt(at), ExpiresAt: r.ExpiresAt.UTC(), Auto: r.Auto}
	op := m.snapshotOperation(args)
	args.Held = live != nil && m.state(inst.spec).Status == instance.Running
	if len(parts) == 0 {
		o.Live = live
		op.steps[0].do = func(ctx context.Context) error { return inst.volume.Snapshot(ctx, snapshot, o) }
	} else {
		if args.Others, err = m.standingWith(ctx, parts); err != nil {
			return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
		}
		t := &together{m: m, inst: inst, args: args, o: o}
		op.steps[0].do, op.steps[1].do = t.take, t.volumes
		defer func() { err = errors.Join(err, t.release()) }()
	}
	names := slices.AppendSeq(append([]string{name}, partLocks(parts)...), maps.Keys(args.Others))
	if err := m.performAs(ctx, "snapshot", names, args, op); err != nil {
		return "", fmt.Errorf("cannot snapshot %q: %w", name, err)
	}
	if long(inst.volume) {
		m.sweepSoon()
	}
	return snapshot, nil
}

// snapshotName makes a name that is not taken, by the instance's pattern if it
// has one.
func snapshotName(config map[string]string, auto bool, at time.Time, taken []string) (string, error) {
	if text := config["snapshots.pattern"]; text != "" || auto {
		p, err := schedule.ParsePattern(text, store.CheckSnapshotName)
		if err != nil {
			return "", err
		}
		return p.Name(at, taken), nil
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("snap%d", i); !slices.Contains(taken, name) {
			return name, nil
		}
	}
}

// snapshotArgs name a snapshot of an instance and its parts in volumes.
type snapshotArgs struct {
	Name, ID, Snapshot string
	Volumes            []part
	Held               bool              // the instance runs, and stands still for it
	Others             map[string]string // so do these that have its volumes, name to id
}

// snapshotOperation is what recovery needs of a snapshot: it cannot be taken by
// another, so it is dropped if it was taken.
func (m *Manager) snapshotOperation(a snapshotArgs) *operation {
	return &operation{steps: []step{
		{
			name: "take",
			undo: func(ctx context.Context) error {
				err := m.dropTaken(ctx, a)
				if err == nil {
					err = m.letAllGo(ctx, a.Others)
				}
				if err != nil || !a.Held {
					return err
				}
				return m.letGo(ctx, a.Name, a.ID)
			},
		},
		{
			name: "volumes",
			do:   func(context.Context) error { return nil },
			undo: func(ctx context.Context) error { return m.dropParts(ctx, a.Volumes) },
		},
	}}
}

// liveness says how a running instance's volume is made consistent; nil for a
// stopped one.
func (m *Manager) liveness(inst *opened) (*storage.Live, error) {
	machine, err := m.running(inst.spec)
	if err != nil || machine == nil {
		return nil, err
	}
	state := inst.driver.State(machine)
	if state.Status == instance.Stopped {
		return nil, nil
	}
	live := &storage.Live{
		Freeze: func(ctx context.Context) (func() error, error) {
			if state.Status == instance.Frozen {
				return func() error { return nil }, nil
			}
			if err := m.standStill(ctx, inst.driver, machine); err != nil {
				return nil, err
			}
			return func() error { return inst.driver.Thaw(context.WithoutCancel(ctx), machine) }, nil
		},
	}
	if d, ok := inst.driver.(instance.DiskSwitcher); ok {
		live.SwitchDisk = func(ctx context.Context, path string) error {
			_, err := d.SwitchDisk(ctx, machine, instance.Disk{Path: path, Format: "qcow2"})
			return err
		}
	}
	if d, ok := inst.driver.(instance.DiskRebaser); ok {
		live.RebaseDisk = func(ctx context.Context, path, backing string) error {
			return d.RebaseDisk(ctx, machine, instance.Disk{Path: path, Format: "qcow2"}, instance.Disk{Path: backing, Format: "qcow2"})
		}
	}
	return live, nil
}

// Snapshots lists the snapshots of an instance, oldest first.
func (m *Manager) Snapshots(ctx context.Context, name string) ([]instance.Snapshot, error) {
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil, err
	}
	return snapshots(ctx, inst.volume)
}

func snapshots(ctx context.Context, v storage.Volume) ([]instance.Snapshot, error) {
	list, err := v.Snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list the snapshots of %q: %w", v.Key().Name, err)
	}
	list = visible(list)
	found := make([]instance.Snapshot, len(list))
	for i, s := range list {
		found[i] = instance.Snapshot(s)
	}
	return found, nil
}

// restoreArgs are all that is needed to carry on with a restore, or with the
// undoing of one.
type restoreArgs struct {
	Name, ID, Snapshot string
	Undo               string // the snapshot of the state before
	Note               string // its description
	Volumes            []part // brought back with it
}

// RestoreSnapshot brings an instance back to a snapshot, configuration
// included. All snapshots stay, newer ones too, and Undo brings back the state
// before. A running instance is stopped by force for it and started again. Its
// volumes stay as they are unless o says otherwise.
func (m *Manager) RestoreSnapshot(ctx context.Context, name, snapshot string, o RestoreOptions) error {
	if err := store.CheckSnapshotName(snapshot); err != nil {
		return err
	}
	admitted, err := m.admit(ctx, "restore", name)
	if err != nil {
		return err
	}
	defer admitted.release()
	inst, held, err := m.openLocked(ctx, "restore", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := hasSnapshot(ctx, inst, snapshot); err != nil {
		return err
	}
	if err := m.checkGoBack(ctx, admitted, inst, snapshot); err != nil {
		return fmt.Errorf("cannot restore %q: %w", name, err)
	}
	var parts []part
	if o.Volumes {
		found, err := m.findParts(ctx, inst.spec.ID, snapshot)
		if err != nil {
			return fmt.Errorf("cannot restore %q: %w", name, err)
		}
		parts = m.onlyAttached(inst, found)
	}
	return m.goBack(ctx, inst, held, "restore", snapshot, fmt.Sprintf("restore to %q", snapshot), parts)
}

func hasSnapshot(ctx context.Context, inst *opened, snapshot string) error {
	list, err := inst.volume.Snapshots(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == snapshot }) {
		return fault.New(fault.NotFound, "cannot find a snapshot named %q of %q: see brig snapshot list %s", snapshot, inst.spec.Name, inst.spec.Name)
	}
	return nil
}

func (m *Manager) restoreOperation(a restoreArgs) *operation {
	return &operation{forward: true, turn: 1, steps: []step{
		{
			name: "keep",
			do:   func(ctx context.Context) error { return m.keepForUndo(ctx, a) },
			undo: func(ctx context.Context) error { return m.dropForUndo(ctx, a) },
		},
		{name: "volume", do: func(ctx context.Context) error {
			inst, err := m.open(ctx, a.Name)
			if err != nil {
				return err
			}
			return inst.volume.Restore(ctx, a.Snapshot)
		}},
		{name: "volumes", do: func(ctx context.Context) error { return m.restoreParts(ctx, a) }},
		{name: "configuration", do: func(ctx context.Context) error { return m.restoreSpec(ctx, a) }},
		{name: "forget", do: func(ctx context.Context) error {
			if a.Undo == "" {
				return nil
			}
			return m.forgetUndo(ctx, a.Name, a.Undo)
		}},
	}, settled: func(ctx context.Context) bool { return m.restored(ctx, a) }}
}

// restoreSpec brings back what a snapshot says the instance is. What belongs to
// the instance as it is known on this host stays: name, id, addresses.
func (m *Manager) restoreSpec(ctx context.Context, a restoreArgs) error {
	inst, err := m.open(ctx, a.Name)
	if err != nil {
		return err
	}
	dir, err := inst.volume.SnapshotDir(ctx, a.Snapshot)
	if err != nil {
		return err
	}
	defer dir.Close()
	spec, err := store.LoadSpec(dir, a.Name)
	if err != nil {
		return err
	}
	spec.ID, spec.MAC, spec.Address = inst.spec.ID, inst.spec.MAC, inst.spec.Address
	spec.CreatedAt, spec.LastUsedAt = inst.spec.CreatedAt, inst.spec.LastUsedAt
	keepIdentity(spec, inst.spec)
	return saveSpec(inst.volume, spec)
}

// DeleteSnapshot drops a snapshot of an instance.
func (m *Manager) DeleteSnapshot(ctx context.Context, name, snapshot string) error {
	if err := store.CheckSnapshotName(snapshot); err != nil {
		return err
	}
	inst, held, err := m.openLocked(ctx, "delete a snapshot of", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := hasSnapshot(ctx, inst, snapshot); err != nil {
		return err
	}
	if err := m.notMounted(inst, "delete", snapshot); err != nil {
		return err
	}
	if err := m.dropSnapshot(ctx, inst, snapshot); err != nil {
		return fmt.Errorf("cannot delete snapshot %q of %q: %w", snapshot, name, err)
	}
	m.sweepLater()
	return nil
}

// RenameSnapshot gives a snapshot of an instance another name.
func (m *Manager) RenameSnapshot(ctx context.Context, name, snapshot, to string) error {
	for _, s := range []string{snapshot, to} {
		if err := store.CheckSnapshotName(s); err != nil {
			return err
		}
	}
	inst, held, err := m.openLocked(ctx, "rename a snapshot of", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := hasSnapshot(ctx, inst, snapshot); err != nil {
		return err
	}
	if err := m.notMounted(inst, "rename", snapshot); err != nil {
		return err
	}
	if err := m.renameSnapshot(ctx, inst, snapshot, to); err != nil {
		return fmt.Errorf("cannot rename snapshot %q of %q: %w", snapshot, name, err)
	}
	return nil
}
