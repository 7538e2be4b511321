package lxc

import "brig/instance"

var _ instance.Meter = (*Driver)(nil)

// Use tells what m uses, as its cgroups count it. What the host does not count
// is zero.
func (d *Driver) Use(m *instance.Machine) (instance.Use, error) {
	c, err := d.cgroup(m)
	if err != nil {
		return instance.Use{}, err
	}
	return c.h.Use(c.names.Payload), nil
}
