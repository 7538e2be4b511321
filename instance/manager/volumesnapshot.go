package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// partMark is what is between the name of an instance's snapshot and the
// instance's id in the name of the snapshot that was taken of a volume with it. It
// stays the same whatever instance and volume are called later.
const partMark = ".of-"

func partName(snapshot, id string) string { return snapshot + partMark + id }

// cutPart takes such a name apart.
func cutPart(name string) (snapshot, id string, ok bool) {
	snapshot, id, ok = strings.Cut(name, partMark)
	return snapshot, id, ok && len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// checkPart accepts the names that a snapshot of a volume may have.
func checkPart(name string) error {
	if snapshot, _, ok := cutPart(name); ok {
		return storage.CheckName("snapshot", snapshot)
	}
	return store.CheckSnapshotName(name)
}

// volumeSnapshots lists the snapshots of a volume but those for undo. Names gives the names of the
// instances by their ids, and is called only if one is needed.
func volumeSnapshots(ctx context.Context, c *custom, names func() map[string]string) ([]VolumeSnapshot, error) {
	list, err := c.volume.Snapshots(ctx)
	if err != nil {
		return nil, fmt.Errorf("cannot list the snapshots of volume %q: %w", c.ref.Name, err)
	}
	list = visible(list)
	found := make([]VolumeSnapshot, len(list))
	for i, s := range list {
		found[i] = VolumeSnapshot{Snapshot: instance.Snapshot(s)}
		if snapshot, id, ok := cutPart(s.Name); ok {
			found[i].With = cmp.Or(names()[id], id) + "/" + snapshot
		}
	}
	return found, nil
}

// instanceNames gives the names of the instances by their ids.
func (m *Manager) instanceNames(ctx context.Context) func() map[string]string {
	return sync.OnceValue(func() map[string]string {
		names := map[string]string{}
		views, _ := m.List(ctx) // without it there are ids
		for _, v := range views {
			names[v.Spec.ID] = v.Spec.Name
		}
		return names
	})
}

func (c *custom) hasSnapshot(ctx context.Context, name string) error {
	if err := checkPart(name); err != nil {
		return err
	}
	list, err := c.volume.Snapshots(ctx)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == name }) {
		return fault.New(fault.NotFound, "cannot find a snapshot named %q of volume %q: see brig storage volume snapshot list %s %s", name, c.ref.Name, c.ref.Pool, c.ref.Name)
	}
	return nil
}

// volumeSnapshotArgs name a snapshot of a custom volume, and who stood still for
// it: instances by their ids.
type volumeSnapshotArgs struct {
	Pool, Name, ID, Snapshot string
	Held                     map[string]string // name to id
}

// CreateVolumeSnapshot keeps the present state of a custom volume and gives the
// name of the snapshot: the given one, or snap0, snap1 and so on. Running
// instances that write to it stand still meanwhile.
func (m *Manager) CreateVolumeSnapshot(ctx context.Context, pool, name, snapshot string, r SnapshotRequest) (string, error) {
	if snapshot != "" {
		if err := store.CheckSnapshotName(snapshot); err != nil {
			return "", err
		}
		if strings.Contains(snapshot, partMark) {
			return "", fault.New(fault.Invalid, "cannot use %q as the name of a volume's snapshot: those with %q in it are of instances' snapshots", snapshot, partMark)
		}
	}
	v, err := m.lockVolume(ctx, "snapshot", refOf(pool, name))
	if err != nil {
		return "", err
	}
	defer v.release()
	if v.info.Content == instance.ContentISO {
		return "", fault.New(fault.Unsupported, "cannot snapshot volume %q: it is the image of a disc, which never changes", name)
	}
	list, err := v.volume.Snapshots(ctx)
	if err != nil {
		return "", fmt.Errorf("cannot snapshot volume %q: %w", name, err)
	}
	taken := make([]string, len(list))
	for i, s := range list {
		taken[i] = s.Name
	}
	if snapshot == "" {
		if snapshot, err = snapshotName(nil, false, m.cfg.Clock(), taken); err != nil {
			return "", err
		}
	} else if slices.Contains(taken, snapshot) {
		return "", fault.New(fault.AlreadyExists, "cannot snapshot volume %q: it has a snapshot named %q; choose another name, or delete that one", name, snapshot)
	}
	if err := m.takeVolumeSnapshot(ctx, v, snapshot, r); err != nil {
		return "", fmt.Errorf("cannot snapshot volume %q: %w", name, err)
	}
	return snapshot, nil
}

func (m *Manager) takeVolumeSnapshot(ctx context.Context, v *lockedVolume, snapshot string, r SnapshotRequest) error {
	running, err := m.runnersOf(ctx, v.ref, v.users)
	if err == nil {
		err = m.roomToCopy(ctx, v.custom, "")
	}
	if err != nil {
		return err
	}
	a := volumeSnapshotArgs{v.ref.Pool, v.ref.Name, v.info.ID, snapshot, standing(running)}
	names := slices.AppendSeq([]string{v.ref.lock()}, maps.Keys(a.Held))
	op := m.volumeSnapshotOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		return v.volume.Snapshot(ctx, snapshot, storage.SnapshotOptions{
			Description: r.Description, CreatedAt: keptAt(m.cfg.Clock()), ExpiresAt: r.ExpiresAt.UTC(),
			Live: m.livenessOf(running, ""),
		})
	}
	return m.performAs(ctx, "volume-snapshot", names, a, op)
}

func (m *Manager) volumeSnapshotOperation(a volumeSnapshotArgs) *operation {
	return &operation{steps: []step{{name: "take", undo: func(ctx context.Context) error {
		if err := m.dropVolumeSnapshot(ctx, part{a.Pool, a.Name, a.ID, a.Snapshot}); err != nil {
			return err
		}
		return m.letAllGo(ctx, a.Held)
	}}}}
}

// stands gives an instance, by name and id, that will be made to stand still while
// its volume is read: not one that does so already, since its owner wants that.
func (m *Manager) stands(inst *opened, live *storage.Live) map[string]string {
	if live == nil || m.state(inst.spec).Status == instance.Frozen {
		return nil
	}
	return map[string]string{inst.spec.Name: inst.spec.ID}
}

// standing is stands for those that run with a volume.
func standing(running []runner) map[string]string {
	held := map[string]string{}
	for _, r := range running {
		if r.state.Status != instance.Frozen {
			held[r.inst.spec.Name] = r.inst.spec.ID
		}
	}
	return held
}

// letAllGo lets instances go on, by name and id, that somebody held who was killed.
func (m *Manager) letAllGo(ctx context.Context, held map[string]string) error {
	for name, id := range held {
		if err := m.letGo(ctx, name, id); err != nil {
			return err
		}
	}
	return nil
}

// letGo lets an instance go on that somebody held who was killed.
func (m *Manager) letGo(ctx context.Context, name, id string) error {
	inst, err := m.open(ctx, name)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != id {
		return nil
	}
	if err != nil {
		return err
	}
	machine, _, err := m.live(inst, "resume")
	if err != nil {
		return nil
	}
	// Whatever its state is: it may be about to stand still.
	if err := inst.driver.Thaw(ctx, machine); !fault.Is(err, fault.WrongState) {
		return err
	}
	return nil // it has ended
}

// DeleteVolumeSnapshot drops a snapshot of a custom volume.
func (m *Manager) DeleteVolumeSnapshot(ctx context.Context, pool, name, snapshot string) error {
	v, err := m.lockVolume(ctx, "delete a snapshot of", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	if err := v.hasSnapshot(ctx, snapshot); err != nil {
		return err
	}
	if err := v.volume.DeleteSnapshot(ctx, snapshot); err != nil {
		return fmt.Errorf("cannot delete snapshot %q of volume %q: %w", snapshot, name, err)
	}
	m.sweepLater()
	return nil
}

// RenameVolumeSnapshot gives a snapshot of a custom volume another name.
func (m *Manager) RenameVolumeSnapshot(ctx context.Context, pool, name, snapshot, to string) error {
	if err := store.CheckSnapshotName(to); err != nil {
		return err
	}
	v, err := m.lockVolume(ctx, "rename a snapshot of", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	if err := v.hasSnapshot(ctx, snapshot); err != nil {
		return err
	}
	for _, s := range []string{snapshot, to} {
		if strings.Contains(s, partMark) {
			return fault.New(fault.Invalid, "cannot rename snapshot %q of volume %q to %q: names with %q in it are of instances' snapshots, and change with those", snapshot, name, to, partMark)
		}
	}
	if err := v.volume.RenameSnapshot(ctx, snapshot, to); err != nil {
		return fmt.Errorf("cannot rename snapshot %q of volume %q: %w", snapshot, name, err)
	}
	return nil
}
