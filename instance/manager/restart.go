package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
)

// A command that stops a machine to start it again begins by noting that, in an
// intent of its own: if it is killed between, whoever comes next starts the machine.
// That takes locks, so it is done when those for the recovery of everything else have
// been let go of, and before anybody else gets the instance's.

// restartKind is the kind of these intents. They have no steps.
const restartKind = "restart"

// restartArgs name the instance, and say how it was to be stopped.
type restartArgs struct {
	Name, ID string
	Stop     StopOptions
}

// noteRestart notes that an instance, which the caller has locked and will stop, is to
// run again. Resume is called when the lock is released, whatever came between.
func (m *Manager) noteRestart(spec *instance.Spec, o StopOptions) (resume func(context.Context) error, err error) {
	raw, err := json.Marshal(restartArgs{spec.Name, spec.ID, o})
	if err != nil {
		return nil, fmt.Errorf("cannot record the intent to restart: %v", err)
	}
	i := store.Intent{ID: newID(), Kind: restartKind, Names: []string{spec.Name}, Args: raw, Since: time.Now()}
	if err := m.intents.Begin(i); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return m.resume(ctx, i) }, nil
}

// restartsOf gives the noted restarts of names.
func (m *Manager) restartsOf(names []string) ([]store.Intent, error) {
	all, err := m.intents.List()
	return slices.DeleteFunc(all, func(i store.Intent) bool {
		return i.Kind != restartKind || !slices.ContainsFunc(i.Names, func(n string) bool { return slices.Contains(names, n) })
	}), err
}

// resume starts an instance that was stopped to be started again, unless somebody has
// done so. That is tried once: one that cannot start is stopped.
func (m *Manager) resume(ctx context.Context, i store.Intent) error {
	var a restartArgs
	if err := json.Unmarshal(i.Args, &a); err != nil {
		return errors.Join(fault.New(fault.Internal, "cannot read the arguments of an interrupted restart: %v", err), m.intents.End(i.ID))
	}
	held, err := m.lockRecovered(ctx, "start", i.Names)
	if err != nil {
		return err
	}
	defer held.Release()
	if !m.unfinished(i.ID) {
		return nil // somebody else was faster
	}
	started, err := m.startStopped(ctx, a)
	if ctx.Err() != nil && err != nil {
		return err // whoever comes next tries it
	}
	if err = errors.Join(err, m.intents.End(i.ID)); err != nil || !started {
		return err
	}
	held.Release()
	return m.waitStarted(ctx, a.Name, StartOptions{})
}

// startStopped ends a stop that has begun, and starts the instance.
func (m *Manager) startStopped(ctx context.Context, a restartArgs) (started bool, err error) {
	inst, err := m.same(ctx, a.Name, a.ID)
	if err != nil || inst == nil {
		return false, err
	}
	// A guest that was asked to stop may yet do so; settle forgets that.
	_, notAsked := os.Lstat(filepath.Join(m.cfg.Dirs.RunOf(a.ID), instance.AskedFile))
	if err := m.settle(ctx, inst); err != nil {
		return false, err
	}
	if machine, _, err := m.live(inst, "restart"); err == nil {
		if notAsked != nil {
			return false, nil // it runs, and is to run on
		}
		if err := m.stop(ctx, inst, machine, a.Stop); err != nil {
			return false, err
		}
	} else if !fault.Is(err, fault.WrongState) {
		return false, err
	}
	if err := m.forgetAgain(a.ID); err != nil {
		return false, fmt.Errorf("cannot start %q: %w", a.Name, err)
	}
	if err := m.startLocked(ctx, inst); err != nil {
		return false, err
	}
	return true, nil
}
