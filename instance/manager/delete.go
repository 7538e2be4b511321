package manager

import (
	"context"
	"errors"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
)

// deleteArgs are all that is needed to carry on with a delete.
type deleteArgs struct {
	Spec  *instance.Spec
	Pool  string
	Trash string // what its volume is called in the trash; empty: it goes for good
	Note  deletion

	Damaged bool // its volume cannot be opened
	Stop    bool // it runs, and is stopped by force
}

// Delete moves an instance with its snapshots to the trash, or removes it for
// good. A running one is refused unless forced.
func (m *Manager) Delete(ctx context.Context, name string, o DeleteOptions) error {
	inst, held, err := m.openLocked(ctx, "delete", name)
	if err != nil && !fault.Is(err, fault.Busy) && m.damaged(ctx, name) {
		if !o.Force {
			return fmt.Errorf("%w; to delete it nevertheless, use brig delete --force %s", err, name)
		}
		return m.deleteDamaged(ctx, name, o)
	}
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.noneMounted(inst.spec, "delete"); err != nil {
		return err
	}
	state := m.state(inst.spec)
	if state.Status != instance.Stopped && !o.Force {
		return fault.New(fault.WrongState, "cannot delete %q: it is %s; stop it first, or delete it with --force", name, stateWord(state.Status))
	}
	dependents, _, _ := m.dependentsOn(ctx, name) // what cannot be looked into is no reason to keep it
	if err := m.remove(ctx, inst, o.Now, state.Status != instance.Stopped); err != nil {
		return err
	}
	m.tellDependents(name, dependents)
	m.sweepLater()
	if !o.Now {
		m.tellOfSpace(ctx, inst.pool, inst.spec.Name)
	}
	return nil
}

// remove deletes an instance that is stopped, or is to be stopped by force. The caller
// holds its lock.
func (m *Manager) remove(ctx context.Context, inst *opened, forGood, stop bool) error {
	name := inst.spec.Name
	args, names := deleteArgs{Spec: inst.spec, Pool: inst.pool, Damaged: inst.volume == nil, Stop: stop}, []string{name}
	if !forGood {
		args.Trash, args.Note = trashName(inst.spec), deletion{At: m.cfg.Clock().UTC(), Passed: m.passed(ctx)}
		names = append(names, trashLock(args.Trash))
	}
	if err := m.perform(ctx, "delete", names, args); err != nil {
		return fmt.Errorf("cannot delete %q: %w", name, err)
	}
	if forGood {
		m.forgetParts(ctx, inst.spec.ID)
	}
	return nil
}

// dropEphemeral deletes the ephemeral instances that have ended by themselves.
// One that never ran stays, and so does one that somebody works on.
func (m *Manager) dropEphemeral(ctx context.Context) error {
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range views {
		if !v.Spec.Ephemeral || v.State.Status != instance.Stopped || v.State.ExitCode == nil {
			continue
		}
		if failed, _ := m.failed(ctx, v.Spec.ID, v.Spec.Name); failed != nil && !m.readAgain(v.Spec.ID).GaveUp {
			continue // it is started again
		}
		held, err := m.tries.Lock(ctx, "delete", v.Spec.Name)
		if err != nil {
			continue
		}
		inst, err := m.open(ctx, v.Spec.Name)
		if err == nil {
			err = m.settle(ctx, inst) // its end may be noted, and still go on
		}
		if err == nil && inst.spec.ID == v.Spec.ID && m.noneMounted(inst.spec, "delete") == nil && m.state(inst.spec).Status == instance.Stopped {
			errs = append(errs, m.remove(ctx, inst, true, false))
		}
		held.Release()
	}
	return errors.Join(errs...)
}

// tellOfSpace says how to free what is in the trash now and called like this, when
// its pool has next to nothing left: that may be why it was deleted.
func (m *Manager) tellOfSpace(ctx context.Context, in, called string) {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return
	}
	if info, err := pool.Info(ctx); err == nil && info.Free < info.Total/50 {
		m.cfg.Notice(fmt.Sprintf("%s is in the trash and still takes space in pool %s, which is full; brig trash empty %s frees it.", called, in, called))
	}
}

func (m *Manager) deleteOperation(a deleteArgs) *operation {
	return &operation{forward: true, turn: 1, steps: []step{
		{name: "stop", do: func(ctx context.Context) error {
			if !a.Stop {
				return nil
			}
			return m.stopDeleted(ctx, a.Spec)
		}},
		{name: "volume", do: func(ctx context.Context) error {
			if a.Damaged {
				return m.dropDamaged(ctx, a)
			}
			if a.Trash != "" {
				return m.throwAway(ctx, a)
			}
			return m.dropVolume(ctx, a.Pool, instanceKey(a.Spec.Name), a.Spec.ID)
		}},
		{name: "files", do: func(context.Context) error { return m.dropFiles(a.Spec.ID) }},
		{name: "address", do: func(context.Context) error { return m.releaseAddress(a.Spec) }},
	}}
}

// stopDeleted ends the machine of an instance that is being deleted, if it is there yet.
func (m *Manager) stopDeleted(ctx context.Context, spec *instance.Spec) error {
	inst, err := m.same(ctx, spec.Name, spec.ID)
	if err != nil || inst == nil {
		return err
	}
	machine, _, err := m.live(inst, "stop")
	if err == nil {
		err = m.stop(ctx, inst, machine, StopOptions{Force: true})
	}
	if fault.Is(err, fault.WrongState) {
		return nil
	}
	return err
}

// dropDamaged deletes a volume that cannot be opened.
func (m *Manager) dropDamaged(ctx context.Context, a deleteArgs) error {
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return err
	}
	if _, err := pool.Open(ctx, instanceKey(a.Spec.Name)); err == nil {
		return nil // it is another one
	}
	if err := pool.Delete(ctx, instanceKey(a.Spec.Name)); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
