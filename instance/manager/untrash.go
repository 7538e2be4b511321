package manager

import (
	"cmp"
	"context"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
)

// untrashArgs are all that is needed to bring a deleted instance back or to
// leave it in the trash.
type untrashArgs struct {
	Spec  *instance.Spec // as it will be
	Pool  string
	Trash string
	Note  deletion
}

// RestoreTrash brings back the deleted instance with a name, the newest if
// there are several, or with an id, under its old name or another. It has its
// old address again unless another instance has that now.
func (m *Manager) RestoreTrash(ctx context.Context, what, as string) (*instance.Spec, error) {
	m.tidy(ctx) // which may be about this instance
	found, err := m.inTrash(ctx, what)
	if err != nil {
		return nil, err
	}
	t := found[0]
	name := cmp.Or(as, t.name)
	if err := store.CheckName(name); err != nil {
		return nil, err
	}
	held, err := m.lock(ctx, "restore", name, trashLock(t.volume))
	if err != nil {
		return nil, err
	}
	defer held.Release()
	volume, err := m.openTrash(ctx, t)
	if err != nil {
		return nil, fmt.Errorf("cannot restore %q from the trash: %w", what, err)
	}
	if err := m.nameIsFree(ctx, name); err != nil {
		if fault.Is(err, fault.AlreadyExists) {
			err = fault.New(fault.AlreadyExists, "cannot restore %q from the trash: there is an instance named %q; give it another name with --as", what, name)
		}
		return nil, err
	}
	spec, err := loadSpec(volume, name)
	if err != nil {
		return nil, err
	}
	// A note that cannot be read is no reason to lose the instance.
	note, _ := readNote(volume)
	old := spec.Address
	err = m.withOldAddress(ctx, spec, func() error {
		return m.perform(ctx, "untrash", []string{name, trashLock(t.volume)}, untrashArgs{spec, t.pool, t.volume, note})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot restore %q from the trash: %w", what, err)
	}
	if old != spec.Address {
		m.cfg.Notice(fmt.Sprintf("%s has the address %s now: its old one, %s, is taken.", name, spec.Address.Addr(), old.Addr()))
	}
	return spec, nil
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
