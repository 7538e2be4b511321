package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/network"
)

// nicName is the network card that every instance has.
const nicName = "eth0"

// nicDevice is what an instance says itself of a network card. What a profile says of
// one is passed over: profiles of Incus name its networks.
type nicDevice struct {
	name    string     // of the interface inside
	mac     string     // empty: brig's own
	address netip.Addr // not valid: the one that it has
	on      []string   // networks or bridges that are named
}

var nicKeys = []string{"type", "name", "nictype", "parent", "network", "hwaddr", "ipv4.address"}

// parseNIC understands a device that is a network card.
func parseNIC(device string, keys map[string]string) (n nicDevice, err error) {
	for key, value := range keys {
		if !slices.Contains(nicKeys, key) {
			return n, fault.New(fault.Unsupported, "the key %q is not known; those of a network card are %s", key, strings.Join(nicKeys, ", "))
		}
		if strings.ContainsFunc(value, isControl) || len(value) > 255 {
			return n, fault.New(fault.Invalid, "the value of %q is too long or has a control character", key)
		}
	}
	n.name = cmp.Or(keys["name"], device)
	if device == nicName && n.name != nicName {
		return n, fault.New(fault.Unsupported, "its name is %q, and the first card of every instance is called %s in it", n.name, nicName)
	}
	if err := checkNICName(n.name); err != nil {
		return n, err
	}
	if v := keys["nictype"]; v != "" && v != "bridged" {
		return n, fault.New(fault.Unsupported, "its nictype is %q, and brig connects instances by its bridge: use bridged", v)
	}
	for _, key := range []string{"network", "parent"} {
		if v := keys[key]; v != "" {
			n.on = append(n.on, v)
		}
	}
	if v := keys["hwaddr"]; v != "" {
		mac, err := net.ParseMAC(v)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 || slices.Equal(mac, make(net.HardwareAddr, 6)) {
			return n, fault.New(fault.Invalid, "hwaddr is %q: want the address of one card, such as 02:00:00:01:02:03", v)
		}
		n.mac = mac.String()
	}
	if v := keys["ipv4.address"]; v != "" {
		if n.address, err = netip.ParseAddr(v); err != nil || !n.address.Is4() {
			return n, fault.New(fault.Invalid, "ipv4.address is %q: want an address such as 10.1.2.3", v)
		}
	}
	return n, nil
}

// nicOf gives the card that an instance says it has.
func nicOf(spec *instance.Spec) nicDevice {
	n, err := parseNIC(nicName, spec.Devices[nicName])
	if err != nil {
		return nicDevice{name: nicName} // a newer brig knows more
	}
	return n
}

// checkNICName refuses what the kernel takes for no interface's name.
func checkNICName(name string) error {
	bad := func(r rune) bool { return r <= ' ' || r >= 0x7f || strings.ContainsRune("/:%", r) }
	if name == "" || len(name) > 15 || name == "." || name == ".." || name == "lo" || strings.ContainsFunc(name, bad) {
		return fault.New(fault.Invalid, "%q is no name for a network interface: use 1 to 15 letters, digits, hyphens and underscores; name= gives it another one than its device has", name)
	}
	return nil
}

// wantedNIC gives the hardware address and the address that an instance is to have.
func wantedNIC(spec *instance.Spec) (mac string, address netip.Prefix) {
	n := nicOf(spec)
	mac, address = cmp.Or(n.mac, network.MAC(spec.ID)), spec.Address
	if n.address.IsValid() && address.IsValid() {
		address = netip.PrefixFrom(n.address, address.Bits())
	}
	return mac, address
}

// checkNIC refuses cards that an instance cannot have, as far as they are others than it
// had: of a network that there is not, or with addresses that are somebody else's.
func (m *Manager) checkNIC(ctx context.Context, was, is *instance.Spec) error {
	if err := apartNICs(is); err != nil {
		return err
	}
	for device, n := range allNICs(is) {
		if was != nil {
			if old, had := allNICs(was)[device]; had && nicSame(old, n) {
				continue
			}
		}
		if err := m.checkOneNIC(ctx, was, is, device, n); err != nil {
			return fmt.Errorf("cannot use the device %q: %w", device, err)
		}
	}
	return nil
}

func (m *Manager) checkOneNIC(ctx context.Context, was, is *instance.Spec, device string, n nicDevice) error {
	for _, on := range n.on {
		if bridge := m.cfg.Network.Bridge(); on != bridge {
			return fault.New(fault.Unsupported, "there is one network, with the bridge %s, and not %q", bridge, on)
		}
	}
	if device == nicName && was != nil && !is.Address.IsValid() && (n.mac != "" || n.address.IsValid()) {
		return fault.New(fault.WrongState, "it was made without a network card")
	}
	if n.address.IsValid() {
		subnet, err := m.cfg.Network.Subnet()
		if err != nil {
			return err
		}
		if holds, err := m.cfg.Network.Holds(netip.PrefixFrom(n.address, max(subnet.Bits(), 0))); err != nil {
			return err
		} else if subnet.IsValid() && !holds {
			return fault.New(fault.Invalid, "%v is no address for an instance in the subnet %v", n.address, subnet)
		}
		if owner := m.ownerOf(n.address); owner != "" && owner != is.ID {
			return fault.New(fault.AlreadyExists, "the address %v is that of %s", n.address, m.nameOf(ctx, owner))
		}
	}
	return m.onlyMAC(ctx, is, n.mac)
}

func nicSame(a, b nicDevice) bool {
	return a.name == b.name && a.mac == b.mac && a.address == b.address && slices.Equal(a.on, b.on)
}

// onlyMAC refuses a hardware address that another instance has or is to have.
func (m *Manager) onlyMAC(ctx context.Context, is *instance.Spec, mac string) error {
	if mac == "" {
		return nil
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	for _, v := range views {
		if v.Spec.ID != is.ID && (v.Spec.MAC == mac || slices.Contains(macsOf(v.Spec), mac)) {
			return fault.New(fault.AlreadyExists, "the hardware address %s is that of %q", mac, v.Spec.Name)
		}
	}
	return nil
}

// ownerOf gives the id of the instance that has claimed an address, or nothing.
func (m *Manager) ownerOf(address netip.Addr) string {
	owner, err := os.ReadFile(filepath.Join(m.addressDir(), address.String()))
	if err != nil {
		return ""
	}
	id, _ := claimant(string(owner))
	return id
}

// nameOf names the instance of an id for messages.
func (m *Manager) nameOf(ctx context.Context, id string) string {
	views, _ := m.List(ctx)
	for _, v := range views {
		if v.Spec.ID == id {
			return fmt.Sprintf("%q", v.Spec.Name)
		}
	}
	return "another instance, which may be in the trash"
}

// takeNIC gives an instance that is about to start the addresses that it says it has.
func (m *Manager) takeNIC(ctx context.Context, a startArgs) error {
	inst, err := m.open(ctx, a.Name)
	if err != nil || inst.spec.ID != a.ID {
		return err
	}
	spec := inst.spec
	if err := m.takeMore(ctx, spec); err != nil || !spec.Address.IsValid() {
		return err
	}
	mac, address := wantedNIC(spec)
	if mac == spec.MAC && address == spec.Address {
		return nil
	}
	if err := m.checkNIC(ctx, nil, spec); err != nil {
		return err
	}
	if address != spec.Address {
		lease, err := m.cfg.Network.Reallocate(ctx, spec.ID, address, func() ([]netip.Addr, error) { return m.claimedByOthers(spec.ID) })
		if err != nil {
			return err
		}
		defer lease.Close()
		if lease.Address != address {
			return fault.New(fault.AlreadyExists, "cannot use the device %q: the address %v is taken, or none of the subnet %v", nicName, address.Addr(), address.Masked())
		}
	}
	spec.MAC, spec.Address = mac, address
	if err := m.claimAddress(spec); err != nil {
		return err
	}
	if err := saveSpec(inst.volume, spec); err != nil {
		return err
	}
	return m.keepOneAddress(spec)
}

// keepNIC gives back what a start that did not come to its end has claimed.
func (m *Manager) keepNIC(ctx context.Context, a startArgs) error {
	inst, err := m.open(ctx, a.Name)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != a.ID {
		return nil
	}
	if err != nil || nicSame(nicOf(inst.spec), nicDevice{name: nicName}) && len(moreNICs(inst.spec)) == 0 {
		return err
	}
	return m.keepOneAddress(inst.spec)
}

// claimedByOthers lists the addresses of all other instances.
func (m *Manager) claimedByOthers(id string) ([]netip.Addr, error) {
	all, err := m.claimed()
	return slices.DeleteFunc(all, func(a netip.Addr) bool { return m.ownerOf(a) == id }), err
}

// keepOneAddress gives back the addresses of an instance but those that its cards have.
func (m *Manager) keepOneAddress(spec *instance.Spec) error {
	all, err := m.claimed()
	if err != nil {
		return err
	}
	for _, a := range all {
		id, device := m.claimantOf(a)
		if id != spec.ID || device == "" && a == spec.Address.Addr() {
			continue
		}
		if n, has := moreNICs(spec)[device]; has && (!n.address.IsValid() || n.address == a) {
			continue
		}
		err = errors.Join(err, m.giveBack(a, id))
	}
	return err
}
