package lxc

import (
	"context"
	"errors"
	"fmt"
	"time"

	"brig/instance"
	"brig/instance/fault"
)

// freezeTimeout bounds how long processes may take to come to a halt.
const freezeTimeout = 10 * time.Second

// Freeze stops m's processes.
func (d *Driver) Freeze(ctx context.Context, m *instance.Machine) error {
	return d.setFrozen(ctx, m, true)
}

// Thaw lets m's processes go on.
func (d *Driver) Thaw(ctx context.Context, m *instance.Machine) error {
	return d.setFrozen(ctx, m, false)
}

func (d *Driver) setFrozen(ctx context.Context, m *instance.Machine, on bool) error {
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	verb := "thaw"
	if on {
		verb = "freeze"
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	err = until(ctx, func() (bool, error) {
		// Asked again each time: v1 forgets those that were not ready for it.
		if err := c.freeze(on); err != nil {
			return false, err
		}
		return c.settled(on)
	})
	switch {
	case err == nil:
		return nil
	case ignoreMissing(err) == nil:
		return fault.New(fault.WrongState, "cannot %s container %q: it does not run", verb, m.Name)
	case on:
		err = errors.Join(err, c.freeze(false))
	}
	return fmt.Errorf("cannot %s container %q: %w", verb, m.Name, err)
}
