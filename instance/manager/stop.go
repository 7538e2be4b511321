package manager

import (
	"context"
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
	if err != nil {
		return fault.New(fault.WrongState, "cannot stop %q: it is already stopped", name)
	}
	if err := m.stop(ctx, inst, machine, o); err != nil {
		return fmt.Errorf("cannot stop %q: %w", name, err)
	}
	if inst.spec.Ephemeral && !again && m.noneMounted(inst.spec, "delete") == nil {
		if err := m.remove(ctx, inst, true); err != nil {
			return err
		}
		m.sweepLater()
	}
	return nil
}

// stop ends a machine that runs. Its keeper cleans up; if there is none any
// more, this does.
func (m *Manager) stop(ctx context.Context, inst *opened, machine *instance.Machine, o StopOptions) error {
	timeout := o.Timeout
	if timeout == 0 {
		timeout = stopTimeout
	}
	stop := instance.StopOptions{Force: o.Force, Timeout: max(timeout, 0)}
	if !o.Force {
		// A frozen guest cannot hear that it should stop.
		if inst.driver.State(machine).Status == instance.Frozen {
			if err := inst.driver.Thaw(ctx, machine); err != nil {
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
		return err
	}
	return m.cleanUp(ctx, machine)
}

// Restart stops an instance, if it runs, and starts it again.
func (m *Manager) Restart(ctx context.Context, name string, o StopOptions) error {
	err := m.stopNamed(ctx, name, o, true)
	if err != nil && !fault.Is(err, fault.WrongState) {
		return err
	}
	return m.Start(ctx, name, StartOptions{})
}
