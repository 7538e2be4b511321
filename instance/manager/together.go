package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// A snapshot of an instance is one of its custom volumes, too, those excepted that
// it only reads: they are taken while it stands still, under one intent, so that
// all of them are there or none. In a volume such a part is a snapshot with a name
// of its own (partName), and it goes with the instance's snapshot.

// partsToTake gives the parts that a snapshot of an instance is to have, and locks
// their volumes.
func (m *Manager) partsToTake(ctx context.Context, inst *opened, snapshot string) ([]part, *store.Held, error) {
	var writable []diskDevice
	for _, d := range volumesOf(inst.spec) {
		if !d.readOnly {
			writable = append(writable, d)
		}
	}
	if len(writable) == 0 {
		return nil, new(store.Held), nil
	}
	held, err := m.lock(ctx, "snapshot", volumeLocks(writable, func(d diskDevice) volumeRef { return d.ref })...)
	if err != nil {
		return nil, nil, err
	}
	var parts []part
	for _, d := range writable {
		c, err := m.openVolume(ctx, d.ref)
		if fault.Is(err, fault.NotFound) {
			m.cfg.Notice(fmt.Sprintf("The volume %s of pool %s is gone, and is not in this snapshot of %s.", d.ref.Name, d.ref.Pool, inst.spec.Name))
			continue
		}
		if err == nil {
			err = m.roomToCopy(ctx, c, "")
		}
		if err != nil {
			held.Release()
			return nil, nil, err
		}
		parts = append(parts, part{d.ref.Pool, d.ref.Name, c.info.ID, partName(snapshot, inst.spec.ID)})
	}
	return parts, held, nil
}

// together takes a snapshot of an instance and of its volumes.
type together struct {
	m    *Manager
	inst *opened
	args snapshotArgs
	o    storage.SnapshotOptions
	let  func() error // lets a running instance go on; may be called twice
}

// take makes the instance stand still and takes its own part.
func (t *together) take(ctx context.Context) error {
	machine, state, err := t.m.live(t.inst, "snapshot")
	if err != nil && !fault.Is(err, fault.WrongState) {
		return err
	}
	o := t.o
	if err == nil {
		if t.let, err = t.m.hold(ctx, runner{inst: t.inst, machine: machine, state: state}); err != nil {
			return err
		}
		if o.Live, err = t.m.liveness(t.inst); err != nil {
			return err
		}
	}
	if o.Live != nil {
		o.Live.Freeze = func(context.Context) (func() error, error) {
			return func() error { return nil }, nil
		}
	}
	return t.inst.volume.Snapshot(ctx, t.args.Snapshot, o)
}

// volumes takes the volumes' parts and lets the instance go on.
func (t *together) volumes(ctx context.Context) error {
	for _, p := range t.args.Volumes {
		if err := t.m.takePart(ctx, t.inst, p, t.o); err != nil {
			return fmt.Errorf("volume %q: %w", p.Volume, err)
		}
	}
	return t.release()
}

// standingWith gives the running instances that have volumes, name to id.
func (m *Manager) standingWith(ctx context.Context, parts []part) (map[string]string, error) {
	held := map[string]string{}
	for _, p := range parts {
		users, err := m.usersOf(ctx, p.ref())
		if err != nil {
			return nil, err
		}
		running, err := m.runnersOf(ctx, p.ref(), users)
		if err != nil {
			return nil, err
		}
		maps.Copy(held, standing(running))
	}
	return held, nil
}

func (t *together) release() error {
	if t.let == nil {
		return nil
	}
	return t.let()
}

// takePart takes the snapshot of one volume, while its instance stands still.
func (m *Manager) takePart(ctx context.Context, inst *opened, p part, o storage.SnapshotOptions) error {
	c, err := m.openVolume(ctx, p.ref())
	if err != nil {
		return err
	}
	users, err := m.usersOf(ctx, p.ref())
	if err != nil {
		return err
	}
	running, err := m.runnersOf(ctx, p.ref(), users)
	if err != nil {
		return err
	}
	o.Live = m.livenessOf(running, inst.spec.ID)
	return c.volume.Snapshot(ctx, p.Snapshot, o)
}

// dropSnapshot drops a snapshot of an instance and the parts of it.
func (m *Manager) dropSnapshot(ctx context.Context, inst *opened, snapshot string) error {
	parts, err := m.findParts(ctx, inst.spec.ID, snapshot)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return inst.volume.DeleteSnapshot(ctx, snapshot)
	}
	held, err := m.lock(ctx, "delete a snapshot of", partLocks(parts)...)
	if err != nil {
		return err
	}
	defer held.Release()
	a := snapshotArgs{Name: inst.spec.Name, ID: inst.spec.ID, Snapshot: snapshot, Volumes: parts}
	return m.perform(ctx, "snapshot-delete", append([]string{a.Name}, partLocks(parts)...), a)
}

func (m *Manager) deleteSnapshotOperation(a snapshotArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "instance", do: func(ctx context.Context) error { return m.dropTaken(ctx, a) }},
		{name: "volumes", do: func(ctx context.Context) error { return m.dropParts(ctx, a.Volumes) }},
	}}
}

// dropTaken drops the instance's own part of a snapshot.
func (m *Manager) dropTaken(ctx context.Context, a snapshotArgs) error {
	inst, err := m.open(ctx, a.Name)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != a.ID {
		return nil
	}
	if err != nil {
		return err
	}
	if err := inst.volume.DeleteSnapshot(ctx, a.Snapshot); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// snapshotRenameArgs name a snapshot of an instance and what it is to be called.
type snapshotRenameArgs struct {
	Name, ID, From, To string
	Volumes            []part // as they are called before
}

// renameSnapshot renames a snapshot of an instance and the parts of it.
func (m *Manager) renameSnapshot(ctx context.Context, inst *opened, snapshot, to string) error {
	parts, err := m.findParts(ctx, inst.spec.ID, snapshot)
	if err != nil {
		return err
	}
	if len(parts) == 0 {
		return inst.volume.RenameSnapshot(ctx, snapshot, to)
	}
	list, err := inst.volume.Snapshots(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == to }) {
		return fault.New(fault.AlreadyExists, "there is a snapshot %q already", to)
	}
	held, err := m.lock(ctx, "rename a snapshot of", partLocks(parts)...)
	if err != nil {
		return err
	}
	defer held.Release()
	a := snapshotRenameArgs{inst.spec.Name, inst.spec.ID, snapshot, to, parts}
	return m.perform(ctx, "snapshot-rename", append([]string{a.Name}, partLocks(parts)...), a)
}

func (m *Manager) renameSnapshotOperation(a snapshotRenameArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "instance", do: func(ctx context.Context) error {
			inst, err := m.open(ctx, a.Name)
			if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != a.ID {
				return nil
			}
			if err != nil {
				return err
			}
			return renamed(ctx, inst.volume, a.From, a.To)
		}},
		{name: "volumes", do: func(ctx context.Context) error {
			for _, p := range a.Volumes {
				c, err := m.openPart(ctx, p)
				if err == nil && c != nil {
					err = renamed(ctx, c.volume, p.Snapshot, partName(a.To, a.ID))
				}
				if err != nil {
					return err
				}
			}
			return nil
		}},
	}}
}

// renamed renames a snapshot, unless that is done.
func renamed(ctx context.Context, v storage.Volume, from, to string) error {
	err := v.RenameSnapshot(ctx, from, to)
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	list, listErr := v.Snapshots(ctx)
	if slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == to }) {
		return nil
	}
	return errors.Join(err, listErr)
}

// forgetParts drops all that volumes keep of an instance which goes for good. What
// cannot be dropped can be deleted by hand, and is no reason to keep the instance.
func (m *Manager) forgetParts(ctx context.Context, id string) {
	parts, err := m.findParts(ctx, id, "")
	if err == nil && len(parts) > 0 {
		var held *store.Held
		if held, err = m.lock(ctx, "delete a snapshot of", partLocks(parts)...); err == nil {
			err = m.dropParts(ctx, parts)
			held.Release()
		}
	}
	if err != nil {
		m.cfg.Notice(fmt.Sprintf("Snapshots of volumes that were taken with an instance are left: %v; delete them with brig storage volume snapshot delete", err))
	}
}
