package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/network"
)

// Besides the card that every instance has, it can have more: devices of type nic that
// it says itself. They are on the same network. Their addresses are claimed when it
// starts, or is given them while it runs.

// moreNICs gives those cards by their devices' names. What a newer brig knows more is
// left out.
func moreNICs(spec *instance.Spec) map[string]nicDevice {
	more := map[string]nicDevice{}
	for device, keys := range spec.Devices {
		if device == nicName || keys["type"] != "nic" {
			continue
		}
		if n, err := parseNIC(device, keys); err == nil {
			more[device] = n
		}
	}
	return more
}

// allNICs is moreNICs with the first card.
func allNICs(spec *instance.Spec) map[string]nicDevice {
	all := moreNICs(spec)
	all[nicName] = nicOf(spec)
	return all
}

// macOf is the hardware address that a card is to have.
func (n nicDevice) macOf(id, device string) string {
	return cmp.Or(n.mac, network.DeviceMAC(id, device))
}

// macsOf gives the hardware addresses of all cards.
func macsOf(spec *instance.Spec) (list []string) {
	for device, n := range allNICs(spec) {
		list = append(list, n.macOf(spec.ID, device))
	}
	return list
}

// apartNICs refuses cards that get into each other's way.
func apartNICs(spec *instance.Spec) error {
	all := allNICs(spec)
	if len(all) > network.MaxNICs {
		return fault.New(fault.Unsupported, "it would have %d network cards, and can have %d", len(all), network.MaxNICs)
	}
	devices := slices.Sorted(maps.Keys(all))
	for i, device := range devices {
		for _, other := range devices[:i] {
			a, b := all[device], all[other]
			what := ""
			switch {
			case a.name == b.name:
				what = "called " + a.name
			case a.macOf(spec.ID, device) == b.macOf(spec.ID, other):
				what = "of the hardware address " + a.macOf(spec.ID, device)
			case a.address.IsValid() && a.address == b.address:
				what = "of the address " + a.address.String()
			default:
				continue
			}
			return fault.New(fault.AlreadyExists, "the devices %q and %q would both be %s", other, device, what)
		}
	}
	return nil
}

// takeMore claims addresses for the cards of an instance that is about to start.
func (m *Manager) takeMore(ctx context.Context, spec *instance.Spec) error {
	more := moreNICs(spec)
	if len(more) == 0 {
		return nil
	}
	if err := m.checkNIC(ctx, nil, spec); err != nil {
		return err
	}
	for _, device := range slices.Sorted(maps.Keys(more)) {
		if _, err := m.takeFor(ctx, spec, device, more[device]); err != nil {
			return err
		}
	}
	return m.keepOneAddress(spec)
}

// takeFor claims the address of one card, the one that it has if it can keep that.
func (m *Manager) takeFor(ctx context.Context, spec *instance.Spec, device string, n nicDevice) (address netip.Prefix, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot use the device %q: %w", device, err)
		}
	}()
	has, err := m.claimedFor(spec.ID)
	if err != nil {
		return address, err
	}
	subnet, err := m.cfg.Network.Subnet()
	if err != nil {
		return address, err
	}
	want := n.address
	if !want.IsValid() {
		want = has[device]
	}
	if want.IsValid() && subnet.IsValid() {
		address = netip.PrefixFrom(want, subnet.Bits())
	}
	if holds, err := m.cfg.Network.Holds(address); err == nil && holds && has[device] == want && address.IsValid() {
		return address, nil
	}
	others := func() ([]netip.Addr, error) {
		all, err := m.claimed()
		return slices.DeleteFunc(all, func(a netip.Addr) bool { id, of := m.claimantOf(a); return id == spec.ID && of == device }), err
	}
	lease, err := m.cfg.Network.Reallocate(ctx, spec.ID, address, others)
	if err != nil {
		return address, err
	}
	defer lease.Close()
	if n.address.IsValid() && lease.Address.Addr() != n.address {
		return address, fault.New(fault.AlreadyExists, "the address %v is taken, or none of the subnet %v", n.address, lease.Address.Masked())
	}
	return lease.Address, m.claim(lease.Address.Addr(), spec.ID+"/"+device)
}

// machineNICs describes the cards of an instance that is about to start.
func (m *Manager) machineNICs(spec *instance.Spec) (list []instance.NIC, err error) {
	if spec.Address.IsValid() {
		list = append(list, instance.NIC{MAC: spec.MAC, Addresses: []netip.Prefix{spec.Address}})
	}
	more := moreNICs(spec)
	if len(more) == 0 {
		return list, nil
	}
	has, err := m.claimedFor(spec.ID)
	if err != nil {
		return nil, err
	}
	subnet, err := m.cfg.Network.Subnet()
	if err != nil {
		return nil, err
	}
	for _, device := range slices.Sorted(maps.Keys(more)) {
		n, address := more[device], has[device]
		if !address.IsValid() {
			return nil, fault.New(fault.Unavailable, "the address of the device %q has been given back meanwhile; try again", device)
		}
		list = append(list, instance.NIC{Name: n.name, MAC: n.macOf(spec.ID, device), Addresses: []netip.Prefix{netip.PrefixFrom(address, subnet.Bits())}})
	}
	return list, nil
}

// is tells whether a machine has a card as it is described here.
func (n nicDevice) is(nic instance.NIC, id, device string) bool {
	return n.name == nic.Name && n.macOf(id, device) == nic.MAC && !nic.Half &&
		(!n.address.IsValid() || slices.ContainsFunc(nic.Addresses, func(p netip.Prefix) bool { return p.Addr() == n.address }))
}

// pendingNICs tells which cards a running machine has, or has not, only until its next
// start.
func pendingNICs(spec *instance.Spec, machine *instance.Machine) (list []string) {
	more := moreNICs(spec)
	for device, n := range more {
		if !slices.ContainsFunc(machine.NICs, func(nic instance.NIC) bool { return n.is(nic, spec.ID, device) }) {
			list = append(list, "device "+device)
		}
	}
	for _, nic := range machine.NICs {
		known := func(n nicDevice) bool { return n.name == nic.Name }
		if !first(nic) && !slices.ContainsFunc(slices.Collect(maps.Values(more)), known) {
			list = append(list, "device "+nic.Name)
		}
	}
	return list
}

// first tells whether a card is the one that every instance has.
func first(nic instance.NIC) bool { return nic.Name == nicName || nic.Name == "" }

// conformNICs gives a running machine the network cards that it is to have, and takes
// others away, where its driver can do that. Each is noted before it is changed, so that
// one that was left half way can be told, and goes.
func (m *Manager) conformNICs(ctx context.Context, inst *opened, machine *instance.Machine, state instance.State) error {
	driver, ok := inst.driver.(instance.NICAttacher)
	if !ok {
		return nil
	}
	more := moreNICs(inst.spec)
	wanted := func(nic instance.NIC) bool {
		for device, n := range more {
			if n.is(nic, inst.spec.ID, device) {
				return true
			}
		}
		return first(nic)
	}
	for _, nic := range slices.Clone(machine.NICs) {
		if wanted(nic) || !driver.AttachesNIC(ctx, machine, nic) {
			continue
		}
		if err := notFrozen(state, inst.spec.Name); err != nil {
			return err
		}
		if err := m.unplugNIC(ctx, driver, machine, nic); err != nil {
			return err
		}
	}
	for _, device := range slices.Sorted(maps.Keys(more)) {
		n := more[device]
		there := slices.ContainsFunc(machine.NICs, func(nic instance.NIC) bool { return nic.Name == n.name })
		if there || !driver.AttachesNIC(ctx, machine, instance.NIC{Name: n.name, MAC: n.macOf(inst.spec.ID, device)}) {
			continue
		}
		if err := notFrozen(state, inst.spec.Name); err != nil {
			return err
		}
		if err := m.plugNIC(ctx, driver, inst.spec, machine, device, n); err != nil {
			return err
		}
	}
	return m.keepOneAddress(inst.spec)
}

// canLose refuses to take away a card that a running machine has had since its start, if
// its driver cannot do that.
func (m *Manager) canLose(ctx context.Context, inst *opened, device string) error {
	machine, _, err := m.live(inst, "detach from")
	if err != nil {
		return nil // it does not run
	}
	n, known := moreNICs(inst.spec)[device]
	i := slices.IndexFunc(machine.NICs, func(nic instance.NIC) bool { return known && nic.Name == n.name })
	if i < 0 {
		return nil
	}
	if driver, ok := inst.driver.(instance.NICAttacher); !ok || !driver.AttachesNIC(ctx, machine, machine.NICs[i]) {
		return keeps(inst, device)
	}
	return nil
}

func (m *Manager) unplugNIC(ctx context.Context, driver instance.NICAttacher, machine *instance.Machine, nic instance.NIC) error {
	same := func(n instance.NIC) bool { return n.HostName == nic.HostName }
	machine.NICs[slices.IndexFunc(machine.NICs, same)].Half = true
	err := keeper.Save(machine)
	if err == nil {
		err = m.atNIC("unplug", func() error { return driver.DetachNIC(ctx, machine, nic) })
	}
	if err != nil {
		return err
	}
	machine.NICs = slices.DeleteFunc(machine.NICs, same)
	return keeper.Save(machine)
}

// atNIC does something to a card between two failpoints.
func (m *Manager) atNIC(what string, do func() error) error {
	if err := m.cfg.Failpoints.hit("nic." + what + ".before"); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	return m.cfg.Failpoints.hit("nic." + what + ".after")
}

func (m *Manager) plugNIC(ctx context.Context, driver instance.NICAttacher, spec *instance.Spec, machine *instance.Machine, device string, n nicDevice) error {
	address, err := m.takeFor(ctx, spec, device, n)
	if err != nil {
		return err
	}
	nic, err := m.cfg.Network.Attach(ctx, network.Endpoint{
		ID: spec.ID, MAC: n.macOf(spec.ID, device), Address: address, Name: n.name, Index: freeIndex(machine),
	})
	if err != nil {
		return err
	}
	nic.Half = true
	machine.NICs = append(machine.NICs, nic)
	if err := keeper.Save(machine); err != nil {
		return err
	}
	if err := m.atNIC("plug", func() error { return driver.AttachNIC(ctx, machine, nic) }); err != nil {
		return err
	}
	machine.NICs[len(machine.NICs)-1].Half = false
	return keeper.Save(machine)
}

// freeIndex is that of an interface that a machine has not. The first is that of the
// first card.
func freeIndex(machine *instance.Machine) int {
	for i := 1; ; i++ {
		name := network.HostName(machine.ID, i)
		if !slices.ContainsFunc(machine.NICs, func(n instance.NIC) bool { return n.HostName == name }) {
			return i
		}
	}
}
