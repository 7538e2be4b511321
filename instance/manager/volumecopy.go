package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/transfer"
)

// VolumeCopyRequest names a custom volume and what its copy is called, or, for a
// move, what it is to be called and where it is to be.
type VolumeCopyRequest struct {
	Pool, Name string
	Snapshot   string // copy this; empty: the volume as it is now
	ToPool, To string
	VolumeOnly bool // leave the snapshots behind; in one pool a copy always does
}

// volumeCopyArgs are all that is needed to copy a custom volume, or to undo that.
// Between pools the copy is called Part until it is complete.
type volumeCopyArgs struct {
	Pool, Name, Snapshot string
	ToPool, To           string
	Part                 string
	Alone                bool
	Info                 *instance.Volume  // of the copy
	Mark                 string            // a snapshot of the source for the time of the copy
	Moves                bool              // the source will be deleted
	Held                 map[string]string // instances that stand still for it, name to id
}

// CopyVolume makes a custom volume with the data and configuration of another. One
// that running instances have is copied as it is at one moment.
func (m *Manager) CopyVolume(ctx context.Context, r VolumeCopyRequest) error {
	from, to := refOf(r.Pool, r.Name), refOf(cmp.Or(r.ToPool, r.Pool), r.To)
	if err := checkVolumeName(to.Name); err != nil {
		return err
	}
	if from == to {
		return fault.New(fault.AlreadyExists, "cannot copy volume %q onto itself: give the copy another name, or another pool", from.Name)
	}
	v, err := m.lockVolume(ctx, "copy", from, to.lock())
	if err != nil {
		return err
	}
	defer v.release()
	if r.Snapshot != "" {
		if err := v.hasSnapshot(ctx, r.Snapshot); err != nil {
			return err
		}
	}
	if err := m.volumeIsFree(ctx, to); err != nil {
		return err
	}
	info, err := v.infoAt(ctx, r.Snapshot)
	if err != nil {
		return err
	}
	info.ID, info.CreatedAt = newID(), now()
	a := volumeCopyArgs{
		Pool: from.Pool, Name: from.Name, Snapshot: r.Snapshot, ToPool: to.Pool, To: to.Name,
		Part: partPrefix + newID(), Alone: r.VolumeOnly, Info: info, Mark: store.RefreshPrefix + newID(),
	}
	if err := m.copyVolume(ctx, v, a); err != nil {
		return fmt.Errorf("cannot copy volume %q to %q in pool %q: %w", from.Name, to.Name, to.Pool, err)
	}
	return nil
}

func (m *Manager) copyVolume(ctx context.Context, v *lockedVolume, a volumeCopyArgs) error {
	var live *storage.Live
	if a.Snapshot == "" {
		running, err := m.runnersOf(ctx, v.ref, v.users)
		if err != nil {
			return err
		}
		live = m.livenessOf(running, "")
		a.Held = standing(running)
	}
	var err error
	if a.Pool != a.ToPool {
		err = m.roomForVolume(ctx, v, a, live)
	} else {
		err = m.roomToCopy(ctx, v.custom, a.Snapshot)
	}
	if err != nil {
		return err
	}
	op := m.copyVolumeOperation(a)
	op.steps[0].do = func(ctx context.Context) error { return m.writeVolume(ctx, a, live) }
	defer m.sweepLater()
	names := []string{v.ref.lock(), volumeRef{a.ToPool, a.To}.lock()}
	return m.performAs(ctx, "volume-copy", slices.AppendSeq(names, maps.Keys(a.Held)), a, op)
}

// infoAt gives what a volume, or a snapshot of it, says that it is.
func (c *custom) infoAt(ctx context.Context, snapshot string) (*instance.Volume, error) {
	if snapshot == "" {
		info := *c.info
		info.Config = maps.Clone(info.Config)
		return &info, nil
	}
	dir, err := c.volume.SnapshotDir(ctx, snapshot)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return store.LoadVolume(dir, c.ref.Name)
}

func (m *Manager) roomForVolume(ctx context.Context, v *lockedVolume, a volumeCopyArgs, live *storage.Live) error {
	pool, err := m.pool(ctx, a.ToPool)
	if err != nil {
		return err
	}
	need, err := transfer.Need(ctx, m.volumeTransfer(v.volume, pool, a, live))
	if err != nil {
		return fmt.Errorf("cannot tell how much space it needs: %w", err)
	}
	return room(ctx, pool, a.ToPool, need)
}

func (m *Manager) volumeTransfer(from storage.Volume, to storage.Pool, a volumeCopyArgs, live *storage.Live) transfer.Request {
	skip := func(s storage.Snapshot) bool {
		// What was kept with an instance is the original's.
		_, _, ofInstance := cutPart(s.Name)
		return ofInstance || hidden(s)
	}
	if a.Moves {
		skip = nil
	}
	return transfer.Request{
		Source: from, Snapshot: a.Snapshot, Alone: a.Alone, Live: live, Skip: skip,
		Pool: to, Key: storage.Key{Class: storage.Custom, Name: a.Part},
		Mark: transfer.Mark{Name: a.Mark, Description: "for the time of a copy"},
		Dir:  m.mountDir(),
		Edit: func(dir *os.Root, snapshot string) error {
			if snapshot == "" {
				return store.SaveVolume(dir, a.Info)
			}
			info, err := store.LoadVolume(dir, a.Name)
			if err != nil {
				return err
			}
			info.ID = a.Info.ID
			return store.SaveVolume(dir, info)
		},
	}
}

// copyVolumeOperation makes the copy, gives it its name, and limits it.
func (m *Manager) copyVolumeOperation(a volumeCopyArgs) *operation {
	to := volumeRef{a.ToPool, a.To}
	return &operation{steps: []step{
		{
			name: "data",
			do:   func(ctx context.Context) error { return m.writeVolume(ctx, a, nil) },
			undo: func(ctx context.Context) error {
				if err := m.dropWritten(ctx, a); err != nil {
					return err
				}
				return m.letAllGo(ctx, a.Held)
			},
		},
		{
			name: "name",
			do:   func(ctx context.Context) error { return m.nameVolume(ctx, a) },
			undo: func(ctx context.Context) error { return m.dropCustom(ctx, to, a.Info.ID) },
		},
	}}
}

// moveVolumeOperation copies a volume to another pool and deletes it where it was.
// Once that is done there is nothing to go back to.
func (m *Manager) moveVolumeOperation(a volumeCopyArgs) *operation {
	op := m.copyVolumeOperation(a)
	from, to := volumeRef{a.Pool, a.Name}, volumeRef{a.ToPool, a.To}
	op.steps[1].undo = func(ctx context.Context) error {
		pool, err := m.pool(ctx, a.Pool)
		if err != nil {
			return err
		}
		if _, err := pool.Open(ctx, from.key()); err != nil {
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		}
		return m.dropCustom(ctx, to, a.Info.ID)
	}
	op.steps = append(op.steps, step{name: "source", do: func(ctx context.Context) error { return m.dropCustom(ctx, from, a.Info.ID) }})
	return op
}

// writeVolume copies the data: at once in the same pool, else all of it.
func (m *Manager) writeVolume(ctx context.Context, a volumeCopyArgs, live *storage.Live) error {
	if a.Pool == a.ToPool {
		return m.cloneVolume(ctx, a, live)
	}
	from, err := m.openVolume(ctx, volumeRef{a.Pool, a.Name})
	if err != nil {
		return err
	}
	to, err := m.pool(ctx, a.ToPool)
	if err != nil {
		return err
	}
	task := m.cfg.Progress.Task("Copying to pool "+a.ToPool, 0, false)
	defer task.Done()
	return transfer.Copy(ctx, m.volumeTransfer(from.volume, to, a, live))
}

// dropWritten drops what a copy has made so far.
func (m *Manager) dropWritten(ctx context.Context, a volumeCopyArgs) error {
	pool, err := m.pool(ctx, a.ToPool)
	if err != nil {
		return err
	}
	if err := pool.Delete(ctx, storage.Key{Class: storage.Custom, Name: a.Part}); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	from, err := m.openVolume(ctx, volumeRef{a.Pool, a.Name})
	if err == nil {
		err = from.volume.DeleteSnapshot(ctx, a.Mark)
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

func (m *Manager) cloneVolume(ctx context.Context, a volumeCopyArgs, live *storage.Live) error {
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return err
	}
	from := storage.Source{Key: volumeRef{a.Pool, a.Name}.key(), Snapshot: a.Snapshot}
	_, err = pool.Clone(ctx, from, storage.Key{Class: storage.Custom, Name: a.Part}, storage.CloneOptions{
		Edit: func(dir *os.Root) error { return store.SaveVolume(dir, a.Info) },
		Live: live,
	})
	return err
}

// nameVolume limits a copy and gives it its name.
func (m *Manager) nameVolume(ctx context.Context, a volumeCopyArgs) error {
	pool, err := m.pool(ctx, a.ToPool)
	if err != nil {
		return err
	}
	part := storage.Key{Class: storage.Custom, Name: a.Part}
	volume, err := pool.Open(ctx, part)
	if err != nil {
		return err
	}
	if volume.Content() == storage.Tree {
		c := custom{volumeRef{a.ToPool, a.Part}, volume, a.Info}
		if err := c.limit(ctx); err != nil {
			return err
		}
	}
	return pool.Rename(ctx, part, a.To)
}

// MoveVolume brings a custom volume that no instance has, with its snapshots, to
// another pool, or gives it another name, or both.
func (m *Manager) MoveVolume(ctx context.Context, r VolumeCopyRequest) error {
	from, to := refOf(r.Pool, r.Name), refOf(cmp.Or(r.ToPool, r.Pool), cmp.Or(r.To, r.Name))
	if err := checkVolumeName(to.Name); err != nil {
		return err
	}
	if from == to {
		return fault.New(fault.Invalid, "cannot move volume %q: it is in pool %q and has that name already", from.Name, from.Pool)
	}
	v, err := m.lockVolume(ctx, "move", from, to.lock())
	if err != nil {
		return err
	}
	defer v.release()
	if err := m.unused(v, "move"); err != nil {
		return err
	}
	if err := m.volumeIsFree(ctx, to); err != nil {
		return err
	}
	if from.Pool == to.Pool {
		pool, err := m.pool(ctx, from.Pool)
		if err == nil {
			err = pool.Rename(ctx, from.key(), to.Name)
		}
		if err != nil {
			return fmt.Errorf("cannot rename volume %q to %q: %w", from.Name, to.Name, err)
		}
		m.announce("volume-move", []string{from.lock(), to.lock()})
		return nil
	}
	a := volumeCopyArgs{
		Pool: from.Pool, Name: from.Name, ToPool: to.Pool, To: to.Name,
		Part: partPrefix + newID(), Alone: r.VolumeOnly, Info: v.info, Mark: store.RefreshPrefix + newID(), Moves: true,
	}
	err = m.roomForVolume(ctx, v, a, nil)
	if err == nil {
		err = m.perform(ctx, "volume-move", []string{from.lock(), to.lock()}, a)
	}
	m.sweepLater()
	if err != nil {
		return fmt.Errorf("cannot move volume %q to %q in pool %q: %w", from.Name, to.Name, to.Pool, err)
	}
	return nil
}
