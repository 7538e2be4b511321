package boot

import (
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/guest"
)

func TestExtentReadsWhatMkfsWrote(t *testing.T) {
	for _, c := range []struct {
		size    int64
		options []string
		blocks  uint64
		block   uint64
	}{
		{8 << 20, []string{"-b", "1024"}, 8192, 1024},
		{64 << 20, []string{"-b", "4096", "-O", "^64bit"}, 16384, 4096},
		{64 << 20, []string{"-b", "4096", "-O", "64bit"}, 16384, 4096},
	} {
		disk := filepath.Join(t.TempDir(), "disk")
		if err := os.WriteFile(disk, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(disk, c.size); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("mkfs.ext4", append(c.options, "-q", "-F", disk)...).CombinedOutput(); err != nil {
			t.Fatalf("mkfs.ext4: %v: %s", err, out)
		}
		f, err := os.Open(disk)
		if err != nil {
			t.Fatal(err)
		}
		super := make([]byte, 1024)
		_, err = f.ReadAt(super, 1024)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if blocks, block, err := extent(super); err != nil || blocks != c.blocks || block != c.block {
			t.Errorf("extent after %q = %d, %d, %v, want %d, %d", c.options, blocks, block, err, c.blocks, c.block)
		}
	}
	if _, _, err := extent(make([]byte, 1024)); err == nil {
		t.Error("extent of nothing = nil, want an error")
	}
}

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

// TestConfigureNetworkFindsLinksByTheirAddress has two links in the wrong
// order, so that they have to change names.
func TestConfigureNetworkFindsLinksByTheirAddress(t *testing.T) {
	newNetwork(t, "02:00:00:00:00:0b", "02:00:00:00:00:0a")
	nics := []instance.NIC{
		{Name: "eth0", MAC: "02:00:00:00:00:0a", MTU: 1400, Addresses: []netip.Prefix{netip.MustParsePrefix("10.9.8.7/24")}, Gateway: netip.MustParseAddr("10.9.8.1")},
		{Name: "eth1", MAC: "02:00:00:00:00:0b", Addresses: []netip.Prefix{netip.MustParsePrefix("192.0.2.9/32")}},
	}
	if err := configureNetwork(nics); err != nil {
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

func TestConfigureNetworkDoesWhatItCan(t *testing.T) {
	newNetwork(t, "02:00:00:00:00:0a")
	err := configureNetwork([]instance.NIC{
		{Name: "eth7", MAC: "not an address"},
		{Name: "eth0", MAC: "02:00:00:00:00:0a", Addresses: []netip.Prefix{netip.MustParsePrefix("fd00::7/64")}},
	})
	if err == nil || !strings.Contains(err.Error(), "eth7") || strings.Contains(err.Error(), "eth0") {
		t.Errorf("configureNetwork = %v, want an error about eth7 alone", err)
	}
	l, err := netlink.LinkByName("eth0")
	if err != nil || l.Attrs().Flags&net.FlagUp == 0 {
		t.Errorf("eth0 = %v, %v, want it up", l, err)
	}
}

func TestNetworkdIsTold(t *testing.T) {
	nic := instance.NIC{Name: "eth0", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}, Gateway: netip.MustParseAddr("10.0.0.1")}
	s := &guest.Settings{Boot: instance.Boot{DNS: []netip.Addr{netip.MustParseAddr("10.0.0.1")}}}
	const want = `[Network]
DHCP=no
KeepConfiguration=static
Address=10.0.0.2/24
DNS=10.0.0.1

[Route]
Gateway=10.0.0.1
GatewayOnLink=yes
`
	if got := network(nic, s); got != want {
		t.Errorf("network = %q, want %q", got, want)
	}
}
