package lxc

import (
	"context"

	"brig/instance"
)

var _ instance.Limiter = (*Driver)(nil)

// CheckLimits refuses limits that a container cannot have on this host.
func (d *Driver) CheckLimits(id string, config map[string]string) error {
	h, err := d.hierarchies()
	if err != nil {
		return err
	}
	_, err = h.Given(id, config)
	return err
}

// Limit gives a running container the limits that config says.
func (d *Driver) Limit(_ context.Context, m *instance.Machine, config map[string]string) (later []string, err error) {
	c, err := d.cgroup(m)
	if err != nil {
		return nil, err
	}
	return nil, c.h.Limit(c.names.Payload, m.ID, config)
}
