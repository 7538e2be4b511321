package runner

import (
	"brig/instance"
	"brig/instance/cgroup"
	"brig/instance/limits"
	"brig/qemu/machine"
)

// enter moves the keeper into the cgroup of m, with the limits that count there, so
// that QEMU begins in it. Leave moves it back, and removes the cgroup unless QEMU is
// in it still. A host without cgroups has machines without these limits.
func enter(m *instance.Machine) (leave func(), err error) {
	config := machine.OfCgroup(m.Config)
	h, err := cgroup.Find()
	if err != nil {
		if limits.Any(config) {
			return nil, err
		}
		return func() {}, nil
	}
	given, err := h.Given(m.ID, config)
	if err != nil {
		return nil, err
	}
	name := cgroup.Name(m)
	if err := h.Enter(name, given); err != nil {
		h.Leave(name)
		return nil, err
	}
	return func() { h.Leave(name) }, nil
}
