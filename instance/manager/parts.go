package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// part is a snapshot of a custom volume, by the volume's name and id.
type part struct {
	Pool, Volume, ID, Snapshot string
}

func (p part) ref() volumeRef { return volumeRef{p.Pool, p.Volume} }

// partLocks are the locks of the parts' volumes.
func partLocks(parts []part) []string { return volumeLocks(parts, part.ref) }

// openPart opens the volume of a part, or gives nil if that is gone.
func (m *Manager) openPart(ctx context.Context, p part) (*custom, error) {
	c, err := m.openVolume(ctx, p.ref())
	if fault.Is(err, fault.NotFound) || err == nil && c.info.ID != p.ID {
		return nil, nil
	}
	return c, err
}

func (m *Manager) dropVolumeSnapshot(ctx context.Context, p part) error {
	c, err := m.openPart(ctx, p)
	if err != nil || c == nil {
		return err
	}
	if err := c.volume.DeleteSnapshot(ctx, p.Snapshot); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

func (m *Manager) dropParts(ctx context.Context, parts []part) error {
	for _, p := range parts {
		if err := m.dropVolumeSnapshot(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// findParts gives the parts of an instance's snapshot, by the instance's id, or of
// all its snapshots where that is empty. A pool that cannot be used has none.
func (m *Manager) findParts(ctx context.Context, id, snapshot string) ([]part, error) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	var found []part
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err != nil {
			continue
		}
		names, err := customIn(ctx, pool)
		if err != nil {
			continue
		}
		for _, name := range names {
			c, err := m.openVolume(ctx, volumeRef{in, name})
			if err != nil {
				continue
			}
			list, err := c.volume.Snapshots(ctx)
			if err != nil {
				return nil, err
			}
			for _, s := range list {
				if taken, of, ok := cutPart(s.Name); ok && of == id && (snapshot == "" || taken == snapshot) {
					found = append(found, part{in, name, c.info.ID, s.Name})
				}
			}
		}
	}
	return found, ctx.Err()
}

// lockToGoBack locks the volumes that a return to another state changes: those of
// the parts that come back with it, and those that keep a state for Undo, which is
// dropped then. None that comes back may be in use by another running instance.
func (m *Manager) lockToGoBack(ctx context.Context, inst *opened, parts []part) (names []string, held *store.Held, err error) {
	kept, err := m.undoParts(ctx, inst)
	if err != nil {
		return nil, nil, err
	}
	names = partLocks(append(kept, parts...))
	if len(names) == 0 {
		return nil, new(store.Held), nil
	}
	if held, err = m.lock(ctx, "restore", names...); err != nil {
		return nil, nil, err
	}
	if err := m.usedByNoOther(ctx, inst, parts); err != nil {
		held.Release()
		return nil, nil, err
	}
	return names, held, nil
}

// undoParts gives the parts of all that is kept for Undo.
func (m *Manager) undoParts(ctx context.Context, inst *opened) ([]part, error) {
	all, err := m.findParts(ctx, inst.spec.ID, "")
	return slices.DeleteFunc(all, func(p part) bool { return !strings.HasPrefix(p.Snapshot, store.UndoPrefix) }), err
}

// lockUndoParts locks the volumes of those.
func (m *Manager) lockUndoParts(ctx context.Context, inst *opened) (*store.Held, error) {
	_, held, err := m.lockToGoBack(ctx, inst, nil)
	return held, err
}

func (m *Manager) usedByNoOther(ctx context.Context, inst *opened, parts []part) error {
	if len(parts) == 0 {
		return nil
	}
	users, err := m.volumeUsers(ctx)
	if err != nil {
		return fault.New(fault.Unavailable, "it is not known who uses its volumes: %w", err)
	}
	for _, p := range parts {
		running, err := m.runnersOf(ctx, p.ref(), users[p.ref()])
		if err != nil {
			return err
		}
		for _, r := range running {
			if r.inst.spec.ID != inst.spec.ID {
				return fault.New(fault.WrongState, "%q runs with the volume %q; stop it first", r.inst.spec.Name, p.Volume)
			}
		}
	}
	return nil
}

// onlyAttached leaves out the parts of volumes that an instance does not have any
// more: they may hold another's data by now.
func (m *Manager) onlyAttached(inst *opened, parts []part) []part {
	devices := volumesOf(inst.spec)
	return slices.DeleteFunc(parts, func(p part) bool {
		has := slices.ContainsFunc(devices, func(d diskDevice) bool { return d.ref == p.ref() })
		if !has {
			m.cfg.Notice(fmt.Sprintf("The volume %s of pool %s is not attached to %s any more, and stays as it is.", p.Volume, p.Pool, inst.spec.Name))
		}
		return !has
	})
}

// roomForParts refuses to bring volumes back, and to keep what they are now, where
// there is no room for it.
func (m *Manager) roomForParts(ctx context.Context, parts []part) error {
	for _, p := range parts {
		c, err := m.openPart(ctx, p)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := m.roomToCopy(ctx, c, "", p.Snapshot); err != nil {
			return err
		}
	}
	return nil
}

// undoPart is the part of the state before a restore.
func (a restoreArgs) undoPart(p part) part {
	p.Snapshot = partName(a.Undo, a.ID)
	return p
}

// keepParts keeps the state of the volumes before a restore.
func (m *Manager) keepParts(ctx context.Context, a restoreArgs) error {
	for _, p := range a.Volumes {
		c, err := m.openVolume(ctx, p.ref())
		if err != nil {
			return err
		}
		err = c.volume.Snapshot(ctx, a.undoPart(p).Snapshot, storage.SnapshotOptions{Description: "kept for brig undo", CreatedAt: now()})
		if err != nil && !fault.Is(err, fault.AlreadyExists) {
			return err
		}
	}
	return nil
}

func (m *Manager) dropKeptParts(ctx context.Context, a restoreArgs) error {
	for _, p := range a.Volumes {
		if err := m.dropVolumeSnapshot(ctx, a.undoPart(p)); err != nil {
			return err
		}
	}
	return nil
}

// restoreParts brings the volumes back.
func (m *Manager) restoreParts(ctx context.Context, a restoreArgs) error {
	for _, p := range a.Volumes {
		c, err := m.openPart(ctx, p)
		if err != nil {
			return err
		}
		if c == nil {
			continue
		}
		if err := c.volume.Restore(ctx, p.Snapshot); err != nil {
			return fmt.Errorf("volume %q: %w", p.Volume, err)
		}
		if err := m.restoreSize(ctx, p.ref(), p.Snapshot); err != nil {
			return err
		}
	}
	return nil
}
