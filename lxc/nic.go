package lxc

import (
	"context"
	"fmt"

	"brig/instance"
	"brig/instance/network"
)

var _ instance.NICAttacher = (*Driver)(nil)

// AttachesNIC is true: a container takes any number.
func (d *Driver) AttachesNIC(context.Context, *instance.Machine, instance.NIC) bool { return true }

// AttachNIC gives a running container the other end of a pair of interfaces.
func (d *Driver) AttachNIC(_ context.Context, m *instance.Machine, nic instance.NIC) error {
	pid, err := d.awake(m)
	if err == nil {
		err = network.Plug(nic, pid)
	}
	if err != nil {
		return fmt.Errorf("cannot change container %q: %w", m.Name, err)
	}
	return nil
}

// DetachNIC removes the host's end, with which the other one goes.
func (d *Driver) DetachNIC(_ context.Context, m *instance.Machine, nic instance.NIC) error {
	if err := network.Unplug(nic.HostName); err != nil {
		return fmt.Errorf("cannot take the network interface %q away from container %q: %w", nic.Name, m.Name, err)
	}
	return nil
}
