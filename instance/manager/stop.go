package manager

import (
	"context"
	"errors"
	"fmt"
	"time"

	"brig/instance"
	"brig/instance/fault"
)

// stopTimeout is how long a guest gets to stop by itself when nobody says.
const stopTimeout = 30 * time.Second

// Stop stops a running instance: it asks the guest, waits as long as o says,
// and then ends it by force.
func (m *Manager) Stop(ctx context.Context, name string, o StopOptions) error {
	return m.stopNamed(ctx, name, o, false)
}

// stopNamed is Stop. An ephemeral instance goes unless it is started again.
func (m *Manager) stopNamed(ctx context.Context, name string, o StopOptions, again bool) error {
	inst, held, err := m.openLocked(ctx, "stop", name)
	if err != nil && !fault.Is(err, fault.Busy) {
		if spec := m.startedAs(name); spec != nil {
			return m.stopLost(ctx, spec, o)
		}
	}
	if err != nil {
		return err
	}
	defer held.Release()
	machine, _, err := m.live(inst, "stop")
	if err != nil && !again {
		return m.stopStopped(inst.spec)
	}
	if err != nil {
		return fault.New(fault.WrongState, "cannot stop %q: it is already stopped", name)
	}
	stop := m.stopForGood
	if again {
		stop = m.stop
	}
	if err := stop(ctx, inst, machine, o); err != nil {
		return fmt.Errorf("cannot stop %q: %w", name, err)
	}
	if inst.spec.Ephemeral && !again && m.noneMounted(inst.spec, "delete") == nil {
		if err := m.remove(ctx, inst, true, false); err != nil {
			return err
		}
		m.sweepLater()
	}
	return nil
}

// stopStopped is the stop of an instance that does not run: it ends the plan to
// start it again, and the wish that it runs after the next boot.
func (m *Manager) stopStopped(spec *instance.Spec) error {
	planned, meant := !m.readAgain(spec.ID).Due.IsZero(), m.cfg.Dirs.Power().Has(spec.ID)
	if err := errors.Join(m.cfg.Dirs.Power().Clear(spec.ID), m.forgetAgain(spec.ID)); err != nil {
		return fmt.Errorf("cannot stop %q: %w", spec.Name, err)
	}
	switch {
	case planned:
		m.cfg.Notice(fmt.Sprintf("%s had failed, and is not started again.", spec.Name))
	case meant:
		m.cfg.Notice(fmt.Sprintf("%s had failed; brig boot does not start it any more.", spec.Name))
	default:
		return fault.New(fault.WrongState, "cannot stop %q: it is already stopped", spec.Name)
	}
	return nil
}

// stopForGood is stop for a machine that is not meant to run any more. That is noted
// before it ends: if this process is killed, nothing brings the machine back.
func (m *Manager) stopForGood(ctx context.Context, inst *opened, machine *instance.Machine, o StopOptions) error {
	power := m.cfg.Dirs.Power()
	meant := power.Has(machine.ID)
	// A disk that is full or read-only is no reason not to stop.
	if err := errors.Join(power.Clear(machine.ID), m.forgetAgain(machine.ID)); err != nil {
		m.cfg.Notice(fmt.Sprintf("%s may be started by the next brig boot: %v.", machine.Name, err))
	}
	err := m.stop(ctx, inst, machine, o)
	if err != nil && meant {
		err = errors.Join(err, power.Set(machine.ID))
	}
	return err
}

// stop ends a machine that runs. Its keeper cleans up; if there is none any
// more, this does.
func (m *Manager) stop(ctx context.Context, inst *opened, machine *instance.Machine, o StopOptions) error {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = stopTimeout
	}
	stop := instance.StopOptions{Force: o.Force, Timeout: max(timeout, 0)}
	goesOn := asked(machine)
	if !o.Force {
		// A frozen guest cannot hear that it should stop.
		if inst.driver.State(machine).Status == instance.Frozen {
			if err := inst.driver.Thaw(ctx, machine); err != nil {
				goesOn()
				return err
			}
		}
	}
	err := inst.driver.Stop(ctx, machine, stop)
	if !o.Force && fault.Is(err, fault.Timeout) && ctx.Err() == nil {
		m.cfg.Notice(fmt.Sprintf("%s did not stop within %s and is ended by force.", machine.Name, timeout))
		err = inst.driver.Stop(ctx, machine, instance.StopOptions{Force: true})
	}
	if err != nil {
		goesOn()
		return err
	}
	return m.cleanUp(ctx, machine)
}

// Restart stops an instance, if it runs, and starts it again.
func (m *Manager) Restart(ctx context.Context, name string, o StopOptions) error {
	inst, held, err := m.openLocked(ctx, "restart", name)
	if err != nil {
		return err
	}
	defer held.Release()
	machine, _, err := m.live(inst, "stop")
	if fault.Is(err, fault.WrongState) {
		held.Release()
		return m.Start(ctx, name, StartOptions{})
	}
	var resume func(context.Context) error
	if err == nil {
		resume, err = m.noteRestart(inst.spec, o)
	}
	if err != nil {
		return fmt.Errorf("cannot restart %q: %w", name, err)
	}
	stopped := m.stop(ctx, inst, machine, o)
	held.Release()
	if err = resume(ctx); stopped != nil {
		err = errors.Join(fmt.Errorf("cannot stop %q: %w", name, stopped), err)
	}
	return err
}
