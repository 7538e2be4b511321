package network

import (
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"brig/instance/fault"
)

func TestLeftoverInterfacesAreRemoved(t *testing.T) {
	l := newLab(t)
	n := l.network()
	name := HostName(id(1), 0)
	veth := func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "peer"}))
	}
	tap := func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		l.must(netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP}))
	}
	for kind, leave := range map[string]func(){"veth": veth, "tap": tap} {
		leave()
		l.attach(n, id(1)) // frees the name
		if link, _ := netlink.LinkByName(name); link != nil {
			t.Errorf("Attach() keeps a leftover %s", kind)
		}
		leave()
		l.must(n.Detach(t.Context(), id(1)))
		if link, _ := netlink.LinkByName(name); link != nil {
			t.Errorf("Detach() keeps a leftover %s", kind)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	if _, err := attach(t.Context(), n, id(1)); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Attach() with the name taken = %v, want already-exists", err)
	}
	mustLink(t, name)
	l.mustBeGone(n)
}

func TestABridgeOfSomebodyElseIsLeftAlone(t *testing.T) {
	l := newLab(t)
	n := l.network()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.bridge
	l.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	if _, err := attach(t.Context(), n, id(1)); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Attach() = %v, want already-exists", err)
	}
	l.must(n.Detach(t.Context(), id(1)))
	l.must(n.Reconcile(t.Context(), func(string) bool { return false }))
	l.must(netlink.LinkDel(mustLink(t, n.bridge)))
	l.mustForward(false)
	l.attach(n, id(1))
	l.must(n.Detach(t.Context(), id(1)))
	l.mustBeGone(n)
}

func TestASubnetThatTheHostUsesByNowIsRefused(t *testing.T) {
	l := newLab(t)
	n := l.network()
	lease, err := n.Allocate(t.Context(), id(1), noneTaken)
	l.must(err)
	lease.Close()
	subnet := lease.Address.Masked()
	e := Endpoint{ID: id(1), MAC: lease.MAC, Address: lease.Address}
	uplink := mustLink(t, "uplink").Attrs().Index

	wide := &netlink.Route{Dst: ipNet(netip.PrefixFrom(subnet.Addr(), 12).Masked()), LinkIndex: uplink}
	l.must(netlink.RouteAdd(wide))
	_, err = n.Attach(t.Context(), e)
	l.must(err)
	l.must(n.Detach(t.Context(), id(1)))

	narrow := &netlink.Route{Dst: ipNet(netip.PrefixFrom(subnet.Addr(), 24)), LinkIndex: uplink}
	l.must(netlink.RouteAdd(narrow))
	_, err = n.Attach(t.Context(), e)
	if !fault.Is(err, fault.Busy) || !strings.Contains(err.Error(), `"uplink"`) {
		t.Errorf("Attach() = %v, want busy because of uplink", err)
	}
	l.mustBeGone(n)
	l.mustForward(false)

	// The way out that the error names: another subnet, another address.
	l.must(os.Remove(n.config))
	l.attach(n, id(2))
	if ok, err := n.Holds(lease.Address); ok || err != nil {
		t.Errorf("Holds(%v) = %v, %v after the subnet has changed, want false", lease.Address, ok, err)
	}
	if _, err = n.Attach(t.Context(), e); !fault.Is(err, fault.WrongState) {
		t.Errorf("Attach() with an address of the old subnet = %v, want wrong-state", err)
	}
	l.mustBeUp(n)
}

func TestSettingsThatAreLostOrChangedWhileInstancesRun(t *testing.T) {
	l := newLab(t)
	n := l.network()
	nic := l.attach(n, id(1))
	l.must(os.Remove(n.config))
	if again := l.attach(n, id(2)); again.Addresses[0].Masked() != nic.Addresses[0].Masked() {
		t.Errorf("the subnet changes from %v to %v under a running instance", nic.Addresses[0], again.Addresses[0])
	}
	l.must(n.save(netip.MustParsePrefix("10.20.0.0/24")))
	if _, err := attach(t.Context(), n, id(3)); !fault.Is(err, fault.Busy) {
		t.Errorf("Attach() with another subnet while instances run = %v, want busy", err)
	}
	l.must(n.Detach(t.Context(), id(1)))
	l.must(n.Detach(t.Context(), id(2)))
	if nic := l.attach(n, id(3)); nic.Gateway != netip.MustParseAddr("10.20.0.1") {
		t.Errorf("the gateway is %v, want 10.20.0.1", nic.Gateway)
	}
}

func TestForwardingIsLeftAsOthersNeedIt(t *testing.T) {
	l := newLab(t)
	n := l.network()
	bridge := func(name string) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		l.must(netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	}
	up := func(meanwhile func()) {
		l.attach(n, id(1))
		l.mustForward(true)
		meanwhile()
		l.must(n.Detach(t.Context(), id(1)))
		l.mustBeGone(n)
	}
	bridge("old0")
	up(func() {})
	l.mustForward(false)
	up(func() { l.must(setForwarding("0")); l.attach(n, id(1)); l.mustForward(true) })
	l.mustForward(false)
	up(func() { bridge("new0") })
	l.mustForward(true) // new0's owner found it on
	up(func() {})
	l.mustForward(true) // it was on before
}
