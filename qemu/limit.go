package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"

	"brig/instance"
	"brig/instance/cgroup"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/limits"
	"brig/qemu/machine"
	"brig/qemu/rundir"
	"brig/qemu/runner"
)

var (
	_ instance.Limiter = (*Driver)(nil)
	_ keeper.Cleaner   = (*Driver)(nil)
)

// CheckLimits refuses limits that a virtual machine cannot have on this host.
func (d *Driver) CheckLimits(id string, config map[string]string) error {
	if _, err := machine.CPUs(config); err != nil {
		return err
	}
	host, err := runner.HostMemory()
	if err != nil {
		return err
	}
	if _, err := machine.Memory(config, host); err != nil {
		return err
	}
	group := machine.OfCgroup(config)
	if !limits.Any(group) {
		return nil
	}
	h, err := cgroup.Find()
	if err != nil {
		return err
	}
	if v, ok := group[limits.KeyMemorySwap]; ok && v != "true" && !h.Unified {
		return fault.New(fault.Unsupported, "cannot use %s %q: the cgroups of this host are of version 1, which bound swap only together with memory, and that of a virtual machine is not bounded there", limits.KeyMemorySwap, v)
	}
	_, err = h.Given(id, group)
	return err
}

// Limit gives a running machine the limits that config says. The number of its
// processors is that of its start, and so is the most memory it can have.
func (d *Driver) Limit(ctx context.Context, m *instance.Machine, config map[string]string) (later []string, err error) {
	group, was := machine.OfCgroup(config), machine.OfCgroup(m.Config)
	now, err := machine.CPUs(m.Config)
	if err != nil {
		return nil, err
	}
	then, err := machine.CPUs(config)
	if err != nil {
		return nil, err
	}
	if now != then {
		later = append(later, machine.KeyCPU)
		delete(group, machine.KeyCPU)
		if v, ok := was[machine.KeyCPU]; ok {
			group[machine.KeyCPU] = v
		}
	}
	undo, err := d.limitGroup(m, group, was)
	if err != nil {
		return nil, err
	}
	live, err := d.balloon(ctx, m, config)
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	if !live {
		later = append(later, machine.KeyMemory)
	}
	return later, nil
}

// limitGroup changes what the cgroup of QEMU has. A machine that was started where
// there was none goes on without.
func (d *Driver) limitGroup(m *instance.Machine, group, was map[string]string) (undo func() error, err error) {
	none := func() error { return nil }
	h, err := cgroup.Find()
	if err != nil {
		if limits.Any(group) {
			return none, err
		}
		return none, nil
	}
	name := cgroup.Name(m)
	if !h.Has(name) {
		if limits.Any(group) {
			return none, fault.New(fault.WrongState, "it has no cgroup, which limits need: it was started by an older brig; stop and start it first")
		}
		return none, nil
	}
	return func() error { return h.Limit(name, m.ID, was) }, h.Limit(name, m.ID, group)
}

// Clean removes the cgroup of a machine that ended while no keeper was there.
func (d *Driver) Clean(m *instance.Machine) error {
	if _, err := os.Lstat(m.Path(instance.MachineFile)); err == nil {
		return nil // it has been started again
	}
	if held, err := rundir.Held(m.Path(rundir.Lock)); err != nil || held {
		return err
	}
	h, err := cgroup.Find()
	if err != nil {
		return nil // without cgroups there is nothing to remove
	}
	h.Leave(cgroup.Name(m))
	if h.Has(cgroup.Name(m)) {
		return fmt.Errorf("cannot remove the cgroup %q of %q: processes are in it", cgroup.Name(m), m.Name)
	}
	return nil
}
