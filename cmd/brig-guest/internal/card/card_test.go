package card

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance"
)

// newNetwork gives the test a network namespace of its own, with links.
func newNetwork(t *testing.T, macs ...string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	// The thread is not unlocked: it ends with the test, and its namespace too.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	for i, mac := range macs {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		name := "eth" + string(rune('0'+i))
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}, PeerName: "peer" + name}
		if err := netlink.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
	}
}

// TestConfigureFindsLinksByTheirAddress has two links in the wrong
// order, so that they have to change names.
func TestConfigureFindsLinksByTheirAddress(t *testing.T) {
	newNetwork(t, "02:00:00:00:00:0b", "02:00:00:00:00:0a")
	nics := []instance.NIC{
		{Name: "eth0", MAC: "02:00:00:00:00:0a", MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.8.7/24")}, Gateway: netip.MustParseAddr("10.9.8.1")},
		{Name: "eth1", MAC: "02:00:00:00:00:0b", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")}},
	}
	if err := Configure(nics); err != nil {
		t.Fatal(err)
	}
	for _, nic := range nics {
		l, err := netlink.LinkByName(nic.Name)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != nic.Addresses[0].String() {
			t.Errorf("%s has the addresses %v, %v, want %v", nic.Name, addrs, err, nic.Addresses)
		}
		if a := l.Attrs(); a.HardwareAddr.String() != nic.MAC || a.Flags&net.FlagUp == 0 || nic.MTU != 0 && a.MTU != nic.MTU {
			t.Errorf("%s = %+v", nic.Name, a)
		}
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, r := range routes {
		found = found || r.Gw.String() == "10.9.8.1"
	}
	if !found {
		t.Errorf("routes = %v, want one by 10.9.8.1", routes)
	}
	if lo, err := netlink.LinkByName("lo"); err != nil || lo.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("lo = %v, %v, want it up", lo, err)
	}
}

func TestConfigureDoesWhatItCan(t *testing.T) {
	newNetwork(t, "02:00:00:00:00:0a")
	err := Configure([]instance.NIC{
		{Name: "eth7", MAC: "not an address"},
		{Name: "eth0", MAC: "02:00:00:00:00:0a", Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::7/64")}},
	})
	if err == nil || !strings.Contains(err.Error(), "eth7") || strings.Contains(err.Error(), "eth0") {
		t.Errorf("Configure = %v, want an error about eth7 alone", err)
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("eth0 = %v, %v, want it up", l, err)
	}
}

func TestAddGivesACardItsName(t *testing.T) {
	newNetwork(t, "02:00:00:00:00:0a")
	nic := instance.NIC{Name: "lan0", MAC: "02:00:00:00:00:0a", Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.8.7/24")}}
	if l, err := netlink.LinkByName("eth0"); err != nil || netlink.LinkSetUp(l) != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := Add(nic); err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkByName("lan0")
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "10.9.8.7/24" || l.Attrs().Flags&net.FlagUp == 0 {
			t.Errorf("lan0 = %+v with %v, %v", l.Attrs(), addrs, err)
		}
	}
}

func TestNetworkdIsTold(t *testing.T) {
	nic := instance.NIC{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateway: netip.MustParseAddr("10.0.0.1")}
	dns := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	const want = `[Network]
DHCP=no
KeepConfiguration=static
Address=10.0.0.2/24
DNS=10.0.0.1

[Route]
Gateway=10.0.0.1
GatewayOnLink=yes
`
	if got := network(nic, dns); got != want {
		t.Errorf("network = %q, want %q", got, want)
	}
}
