package manager

import (
	"cmp"
	"context"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// untrashArgs are all that is needed to bring a deleted instance back or to
// leave it in the trash.
type untrashArgs struct {
	Spec  *instance.Spec // as it will be
	Pool  string
	Trash string
	Note  deletion
}

// RestoreTrash brings back what was deleted and is called like this, the newest if
// there are several, or has this id, under its old name or another, and tells what
// it is called now.
func (m *Manager) RestoreTrash(ctx context.Context, what, as string) (string, error) {
	m.tidy(ctx) // which may be about this
	found, err := m.inTrash(ctx, what)
	if err != nil {
		return "", err
	}
	t := found[0]
	name := cmp.Or(as, t.name)
	if t.class == storage.Custom {
		return t.pool + "/" + name, m.restoreVolume(ctx, t, name)
	}
	return name, m.restoreInstance(ctx, t, what, name)
}

// restoreInstance brings a deleted instance back. It has its old address again
// unless another instance has that now.
func (m *Manager) restoreInstance(ctx context.Context, t trashed, what, name string) error {
	if err := store.CheckFullName(name); err != nil {
		return err
	}
	admitted, err := m.admitNew(ctx, "restore", name)
	if err != nil {
		return err
	}
	defer admitted.release()
	held, err := m.lock(ctx, "restore", name, t.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	volume, err := m.openTrash(ctx, t)
	if err != nil {
		return fmt.Errorf("cannot restore %q from the trash: %w", what, err)
	}
	if err := m.nameIsFree(ctx, name); err != nil {
		if fault.Is(err, fault.AlreadyExists) {
			err = fault.New(fault.AlreadyExists, "cannot restore %q from the trash: there is an instance named %q; give it another name with --as", what, name)
		}
		return err
	}
	spec, err := m.loadSpec(volume, name)
	if err != nil {
		return err
	}
	if err := admitted.check(ctx, spec); err != nil {
		return fmt.Errorf("cannot restore %q from the trash: %w", what, err)
	}
	// A note that cannot be read is no reason to lose the instance.
	note, _ := readNote(volume)
	old := spec.Address
	err = m.withOldAddress(ctx, spec, func() error {
		return m.perform(ctx, "untrash", []string{name, t.lock()}, untrashArgs{spec, t.pool, t.volume, note})
	})
	if err != nil {
		return fmt.Errorf("cannot restore %q from the trash: %w", what, err)
	}
	if old != spec.Address {
		m.cfg.Notice(fmt.Sprintf("%s has the address %s now: its old one, %s, is taken.", name, spec.Address.Addr(), old.Addr()))
	}
	return nil
}

func (m *Manager) untrashOperation(a untrashArgs) *operation {
	return &operation{steps: []step{
		{
			name: "address",
			do:   func(context.Context) error { return m.claimAddress(a.Spec) },
			undo: func(context.Context) error { return m.releaseAddress(a.Spec) },
		},
		{
			name: "volume",
			do: func(ctx context.Context) error {
				pool, err := m.pool(ctx, a.Pool)
				if err != nil {
					return err
				}
				return pool.Rename(ctx, instanceKey(a.Trash), a.Spec.Name)
			},
			undo: func(ctx context.Context) error {
				return m.throwAway(ctx, deleteArgs{Spec: a.Spec, Pool: a.Pool, Trash: a.Trash, Note: a.Note})
			},
		},
		{name: "configuration", do: func(ctx context.Context) error {
			inst, err := m.open(ctx, a.Spec.Name)
			if err != nil {
				return err
			}
			if err := saveSpec(inst.volume, a.Spec); err != nil {
				return err
			}
			return dropNote(inst.volume)
		}},
	}, settled: func(ctx context.Context) bool {
		inst, err := m.open(ctx, a.Spec.Name)
		if err != nil || inst.spec.ID != a.Spec.ID {
			return false
		}
		_, err = readNote(inst.volume)
		return isGone(err)
	}}
}
