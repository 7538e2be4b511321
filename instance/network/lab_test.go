package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/store"
)

// A lab is a host of its own for one test: a network namespace in which the
// test's goroutine runs, with a way out to another namespace. Threads in those
// namespaces end with the test, and the kernel cleans up after them.
type lab struct {
	t       *testing.T
	hostDir string
	host    netns.NsHandle
	outside netns.NsHandle
}

var (
	uplinkAddr  = netip.MustParseAddr("198.51.100.1")
	outsideAddr = netip.MustParseAddr("198.51.100.2")
)

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	l := &lab{t: t, hostDir: filepath.Join(t.TempDir(), "host")}
	l.host = newNamespace(t)
	if err := netns.Set(l.host); err != nil {
		t.Fatal(err)
	}
	// A new namespace starts with what the host's own has.
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	l.outside = newNamespace(t)
	l.connect("uplink", l.outside, "outside0", 1400)
	l.configure("uplink", uplinkAddr)
	l.in(l.outside, func() { l.configure("outside0", outsideAddr) })
	l.must(netlink.RouteAdd(&netlink.Route{Gw: outsideAddr.AsSlice()}))
	return l
}

// newNamespace makes a network namespace with its loopback up.
func newNamespace(t *testing.T) netns.NsHandle {
	t.Helper()
	var ns netns.NsHandle
	var err error
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if ns, err = netns.New(); err != nil {
			return
		}
		var lo netlink.Link
		if lo, err = netlink.LinkByName("lo"); err == nil {
			err = netlink.LinkSetUp(lo)
		}
	}()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

// in runs do on a thread in ns.
func (l *lab) in(ns netns.NsHandle, do func()) {
	l.t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			l.t.Error(err)
			return
		}
		do()
	}()
	<-done
	if l.t.Failed() {
		l.t.FailNow()
	}
}

func (l *lab) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

// connect makes a veth between here and ns.
func (l *lab) connect(name string, ns netns.NsHandle, peer string, mtu int) {
	l.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	l.must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerMTU: uint32(mtu), PeerNamespace: netlink.NsFd(ns)}))
}

func (l *lab) configure(name string, addr netip.Addr) {
	l.t.Helper()
	link, err := netlink.LinkByName(name)
	l.must(err)
	l.must(netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(addr, 24))}))
	l.must(netlink.LinkSetUp(link))
}

// network gives the network of a new brig.
func (l *lab) network() *Network {
	return New(store.DirsFor(l.t.TempDir()), l.hostDir)
}

// attach gives an instance an address and attaches it.
func (l *lab) attach(n *Network, id string) instance.NIC {
	l.t.Helper()
	nic, err := attach(l.t.Context(), n, id)
	l.must(err)
	return nic
}

func attach(ctx context.Context, n *Network, id string) (instance.NIC, error) {
	lease, err := n.Allocate(ctx, id, func() ([]netip.Addr, error) { return nil, nil })
	if err != nil {
		return instance.NIC{}, err
	}
	defer lease.Close()
	return n.Attach(ctx, Endpoint{ID: id, MAC: lease.MAC, Address: lease.Address})
}

// guest does what a driver does with a NIC: it makes a namespace with an
// interface on the bridge.
func (l *lab) guest(nic instance.NIC) netns.NsHandle {
	l.t.Helper()
	ns := newNamespace(l.t)
	l.connect(nic.HostName, ns, nic.Name, nic.MTU)
	link, err := netlink.LinkByName(nic.HostName)
	l.must(err)
	bridge, err := netlink.LinkByName(nic.Bridge)
	l.must(err)
	l.must(netlink.LinkSetMaster(link, bridge))
	l.must(netlink.LinkSetUp(link))
	l.in(ns, func() {
		link, err := netlink.LinkByName(nic.Name)
		l.must(err)
		mac, err := net.ParseMAC(nic.MAC)
		l.must(err)
		l.must(netlink.LinkSetHardwareAddr(link, mac))
		l.must(netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(nic.Addresses[0])}))
		l.must(netlink.LinkSetUp(link))
		l.must(netlink.RouteAdd(&netlink.Route{Gw: nic.Gateway.AsSlice()}))
	})
	return ns
}

// echo answers each TCP connection in ns with the address it came from.
func (l *lab) echo(ns netns.NsHandle) (port uint16) {
	l.t.Helper()
	var listener net.Listener
	l.in(ns, func() {
		var err error
		listener, err = net.Listen("tcp4", ":0")
		l.must(err)
	})
	l.t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(conn, conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr())
			conn.Close()
		}
	}()
	return listener.Addr().(*net.TCPAddr).AddrPort().Port()
}

// dial connects from ns to an echo and tells what that answers.
func (l *lab) dial(ns netns.NsHandle, addr netip.Addr, port uint16, timeout time.Duration) (seen string, err error) {
	l.t.Helper()
	l.in(ns, func() {
		d := net.Dialer{Timeout: timeout}
		var conn net.Conn
		conn, err = d.Dial("tcp4", netip.AddrPortFrom(addr, port).String())
		if err != nil {
			return
		}
		defer conn.Close()
		var text []byte
		text, err = io.ReadAll(conn)
		seen = string(text)
	})
	return seen, err
}

// mustReach checks that a connection from ns works, and as whom it is seen.
func (l *lab) mustReach(ns netns.NsHandle, addr netip.Addr, port uint16, as netip.Addr) {
	l.t.Helper()
	seen, err := l.dial(ns, addr, port, 10*time.Second)
	if err != nil || seen != as.String() {
		l.t.Fatalf("connecting to %v was seen from %q, %v; want %v", addr, seen, err, as)
	}
}

// mustBeUp checks the parts of a network that is up.
func (l *lab) mustBeUp(n *Network) {
	l.t.Helper()
	h, err := open()
	l.must(err)
	defer h.Close()
	subnet, err := n.Subnet()
	l.must(err)
	if _, ok := n.healthy(h, subnet); !ok {
		l.t.Errorf("the network %q is not healthy", n.bridge)
	}
}

// mustBeGone checks that nothing of a network is left.
func (l *lab) mustBeGone(n *Network) {
	l.t.Helper()
	if _, err := netlink.LinkByName(n.bridge); !errors.As(err, new(netlink.LinkNotFoundError)) {
		l.t.Errorf("looking for bridge %q = %v, want it to be gone", n.bridge, err)
	}
	if n.hasTable() {
		l.t.Errorf("the table %q is left", n.table)
	}
	if _, err := os.Stat(n.dir); !errors.Is(err, fs.ErrNotExist) {
		entries, _ := filepath.Glob(n.dir + "/*")
		l.t.Errorf("the run directory is left, with %v", entries)
	}
	if _, err := os.Stat(filepath.Join(n.forwardDir(), n.bridge)); !errors.Is(err, fs.ErrNotExist) {
		l.t.Errorf("forwarding is still held for %q", n.bridge)
	}
}

// mustForward checks the host's switch.
func (l *lab) mustForward(want bool) {
	l.t.Helper()
	if got := forwarding(); got != want {
		l.t.Errorf("forwarding is %v, want %v", got, want)
	}
}

// id makes the id of an instance.
func id(i int) string { return fmt.Sprintf("%016x", 0xabcdef0000000000+uint64(i)<<20) }

// dropNetAdmin takes the right to change the network from the thread.
func dropNetAdmin(t *testing.T) {
	t.Helper()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	data[0].Permitted &^= 1 << unix.CAP_NET_ADMIN
	if err := unix.Capset(&header, &data[0]); err != nil {
		t.Fatal(err)
	}
}
