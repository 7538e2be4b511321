package lxc

import (
	"context"
	"fmt"
	"time"

	"brig/instance"
	"brig/instance/fault"
)

// WaitReady returns when m's init answers.
func (d *Driver) WaitReady(ctx context.Context, m *instance.Machine) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		s := d.State(m)
		switch {
		case s.Status == instance.Broken:
			return fault.New(fault.Internal, "cannot wait for container %q: %s", m.Name, s.Reason)
		case s.Status == instance.Stopped:
			return fault.New(fault.WrongState, "cannot wait for container %q: it does not run", m.Name)
		case s.Status == instance.Running && s.Health == "ready":
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("container %q is not ready: %w", m.Name, ctx.Err())
		case <-tick.C:
		}
	}
}
