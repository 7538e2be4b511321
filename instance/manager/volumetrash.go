package manager

import (
	"context"
	"fmt"

	"brig/instance/fault"
	"brig/storage"
)

// VolumeDeleteOptions tell how a custom volume is deleted.
type VolumeDeleteOptions struct {
	Now bool // for good, without keeping it in the trash
}

// volumeTrashArgs are all that is needed to carry on with the delete of a custom
// volume, or to bring it back, or to leave it in the trash.
type volumeTrashArgs struct {
	Pool, Name, ID string
	Trash          string // what it is called in the trash
	Note           deletion
}

// DeleteVolume moves a custom volume that no instance has to the trash, with its
// snapshots, or removes it for good.
func (m *Manager) DeleteVolume(ctx context.Context, pool, name string, o VolumeDeleteOptions) error {
	v, err := m.lockVolume(ctx, "delete", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	if err := m.unused(v, "delete"); err != nil {
		return err
	}
	if o.Now {
		err = m.dropCustom(ctx, v.ref, v.info.ID)
	} else {
		err = m.throwVolumeAway(ctx, v)
	}
	if err != nil {
		return fmt.Errorf("cannot delete volume %q: %w", name, err)
	}
	m.sweepLater()
	if o.Now {
		m.announce("volume-delete", []string{v.ref.lock()})
	} else {
		m.tellOfSpace(ctx, v.ref.Pool, v.ref.Pool+"/"+v.ref.Name)
	}
	return nil
}

func (m *Manager) throwVolumeAway(ctx context.Context, v *lockedVolume) error {
	a := volumeTrashArgs{
		Pool: v.ref.Pool, Name: v.ref.Name, ID: v.info.ID,
		Trash: v.ref.Name + trashMark + v.info.ID, Note: deletion{At: m.cfg.Clock().UTC(), Passed: m.passed(ctx)},
	}
	return m.perform(ctx, "volume-delete", []string{v.ref.lock(), volumeTrashLock(a.Pool, a.Trash)}, a)
}

func (m *Manager) deleteVolumeOperation(a volumeTrashArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "volume", do: func(ctx context.Context) error { return m.volumeToTrash(ctx, a) }},
	}}
}

// volumeToTrash does nothing if the volume is not there any more, or another is.
func (m *Manager) volumeToTrash(ctx context.Context, a volumeTrashArgs) error {
	c, err := m.openVolume(ctx, volumeRef{a.Pool, a.Name})
	if fault.Is(err, fault.NotFound) || err == nil && c.info.ID != a.ID {
		return nil
	}
	if err != nil {
		return err
	}
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return err
	}
	return toTrash(ctx, pool, c.volume, a.Trash, a.Note)
}

// restoreVolume brings a deleted custom volume back under a name.
func (m *Manager) restoreVolume(ctx context.Context, t trashed, name string) error {
	ref := volumeRef{t.pool, name}
	if err := checkVolumeName(name); err != nil {
		return err
	}
	held, err := m.lock(ctx, "restore", ref.lock(), t.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	volume, err := m.openTrash(ctx, t)
	if err != nil {
		return fmt.Errorf("cannot restore %q from the trash: %w", t.called(), err)
	}
	if err := m.volumeIsFree(ctx, ref); err != nil {
		if fault.Is(err, fault.AlreadyExists) {
			err = fault.New(fault.AlreadyExists, "cannot restore %q from the trash: there is a volume named %q in pool %q; give it another name with --as", t.called(), name, t.pool)
		}
		return err
	}
	// A note that cannot be read is no reason to lose the volume.
	note, _ := readNote(volume)
	a := volumeTrashArgs{Pool: t.pool, Name: name, ID: t.id, Trash: t.volume, Note: note}
	if err := m.perform(ctx, "volume-untrash", []string{ref.lock(), t.lock()}, a); err != nil {
		return fmt.Errorf("cannot restore %q from the trash: %w", t.called(), err)
	}
	return nil
}

func (m *Manager) untrashVolumeOperation(a volumeTrashArgs) *operation {
	ref := volumeRef{a.Pool, a.Name}
	return &operation{steps: []step{
		{
			name: "volume",
			do: func(ctx context.Context) error {
				pool, err := m.pool(ctx, a.Pool)
				if err != nil {
					return err
				}
				return pool.Rename(ctx, storage.Key{Class: storage.Custom, Name: a.Trash}, a.Name)
			},
			undo: func(ctx context.Context) error { return m.volumeToTrash(ctx, a) },
		},
		{name: "note", do: func(ctx context.Context) error {
			c, err := m.openVolume(ctx, ref)
			if err != nil {
				return err
			}
			return dropNote(c.volume)
		}},
	}, settled: func(ctx context.Context) bool {
		c, err := m.openVolume(ctx, ref)
		if err != nil || c.info.ID != a.ID {
			return false
		}
		_, err = readNote(c.volume)
		return isGone(err)
	}}
}
