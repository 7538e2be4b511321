package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/store"
)

// refusedFor is how long a test waits for what shall not come. The same test
// shows that it would come within that time.
const refusedFor = 300 * time.Millisecond

func TestInstancesReachTheOutsideAndEachOther(t *testing.T) {
	l := newLab(t)
	n := l.network()
	nic1, nic2 := l.attach(n, id(1)), l.attach(n, id(2))
	if nic1.MTU != 1400 {
		t.Errorf("the MTU is %d, want 1400 as on the way out", nic1.MTU)
	}
	guest1, guest2 := l.guest(nic1), l.guest(nic2)
	addr1, addr2 := nic1.Addresses[0].Addr(), nic2.Addresses[0].Addr()

	l.mustReach(guest1, outsideAddr, l.echo(l.outside), uplinkAddr)
	l.mustReach(guest1, addr2, l.echo(guest2), addr1)
	l.mustReach(guest2, nic2.Gateway, l.echo(l.host), addr2)
	l.mustReach(l.host, addr1, l.echo(guest1), nic1.Gateway)

	state, err := n.State(nic1)
	l.must(err)
	if !state.Up || state.MTU != 1400 || state.Sent.Packets == 0 || state.Received.Packets == 0 {
		t.Errorf("State() = %+v, want an interface that is up and was used", state)
	}
	link, err := netlink.LinkByName(nic1.HostName)
	l.must(err)
	if stats := link.Attrs().Statistics; state.Sent.Bytes > stats.RxBytes || state.Received.Bytes > stats.TxBytes {
		t.Errorf("State() = %+v, but the host's end has received %d bytes and sent %d", state, stats.RxBytes, stats.TxBytes)
	}
	ipv6, err := netlink.AddrList(mustLink(t, nic1.Bridge), unix.AF_INET6)
	l.must(err)
	if len(ipv6) > 0 {
		t.Errorf("the bridge has IPv6 addresses: %v", ipv6)
	}

	for range 2 {
		l.must(n.Detach(t.Context(), id(1)))
	}
	l.mustReach(guest2, outsideAddr, l.echo(l.outside), uplinkAddr)
	l.must(n.Detach(t.Context(), id(2)))
	l.mustBeGone(n)
	l.mustForward(false)
	if _, err := n.State(nic1); err == nil {
		// Its namespace is still held by this test, so the veth stays.
		l.must(netlink.LinkDel(link))
	}
	if _, err := n.State(nic1); !fault.Is(err, fault.NotFound) {
		t.Errorf("State() of an instance that does not run = %v, want not-found", err)
	}
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestGuestsCannotBeReachedFromOutsideOrSendAsOthers(t *testing.T) {
	l := newLab(t)
	n := l.network()
	nic := l.attach(n, id(1))
	guest := l.guest(nic)
	guestPort, outsidePort := l.echo(guest), l.echo(l.outside)
	subnet := ipNet(nic.Addresses[0].Masked())
	other := netip.MustParseAddr("203.0.113.9")
	l.in(l.outside, func() {
		l.must(netlink.RouteAdd(&netlink.Route{Dst: subnet, Gw: uplinkAddr.AsSlice()}))
		l.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(other, 32)), Gw: uplinkAddr.AsSlice()}))
	})
	l.must(netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(other, 32)), LinkIndex: mustLink(t, nic.Bridge).Attrs().Index}))
	sendAsOther := func() (err error) {
		l.in(guest, func() {
			d := net.Dialer{Timeout: refusedFor, LocalAddr: &net.TCPAddr{IP: other.AsSlice()}}
			var conn net.Conn
			if conn, err = d.Dial("tcp4", netip.AddrPortFrom(outsideAddr, outsidePort).String()); err == nil {
				conn.Close()
			}
		})
		return err
	}
	l.in(guest, func() {
		l.must(netlink.AddrAdd(mustLink(t, nic.Name), &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(other, 32))}))
	})

	if seen, err := l.dial(l.outside, nic.Addresses[0].Addr(), guestPort, refusedFor); err == nil {
		t.Errorf("the outside reaches a guest, as %q", seen)
	}
	if err := sendAsOther(); err == nil {
		t.Error("a guest can send from an address that is not its subnet's")
	}
	l.must(n.deleteTable())
	if _, err := l.dial(l.outside, nic.Addresses[0].Addr(), guestPort, 10*time.Second); err != nil {
		t.Errorf("without the table the outside does not reach a guest either: %v", err)
	}
	if err := sendAsOther(); err != nil {
		t.Errorf("without the table a guest cannot send as another either: %v", err)
	}

	l.attach(n, id(2))
	if seen, err := l.dial(l.outside, nic.Addresses[0].Addr(), guestPort, refusedFor); err == nil {
		t.Errorf("the next Attach does not repair the table: the outside reaches a guest, as %q", seen)
	}
}

func TestTwoBrigsOnOneHostDoNotDisturbEachOther(t *testing.T) {
	l := newLab(t)
	a, b := l.network(), l.network()
	nicA, nicB := l.attach(a, id(1)), l.attach(b, id(2))
	if nicA.Bridge == nicB.Bridge || a.table == b.table {
		t.Errorf("both have bridge %q or table %q", nicA.Bridge, a.table)
	}
	if nicA.Addresses[0].Masked().Overlaps(nicB.Addresses[0].Masked()) {
		t.Errorf("the subnets %v and %v overlap", nicA.Addresses[0], nicB.Addresses[0])
	}
	guestA, guestB := l.guest(nicA), l.guest(nicB)
	if seen, err := l.dial(guestA, nicB.Addresses[0].Addr(), l.echo(guestB), refusedFor); err == nil {
		t.Errorf("a guest reaches one of another brig, as %q", seen)
	}
	l.must(a.Detach(t.Context(), id(1)))
	l.mustBeGone(a)
	l.mustForward(true)
	l.mustReach(guestB, outsideAddr, l.echo(l.outside), uplinkAddr)
	l.must(b.Detach(t.Context(), id(2)))
	l.mustBeGone(b)
	l.mustForward(false)
}

func TestSubnetsOfBrigsThatAreDownAreAvoided(t *testing.T) {
	l := newLab(t)
	a := l.network()
	l.attach(a, id(1))
	l.must(a.Detach(t.Context(), id(1)))
	subnet, err := a.Subnet()
	l.must(err)

	b := l.network()
	l.must(os.MkdirAll(filepath.Dir(b.config), 0o700))
	l.must(b.save(subnet))
	if _, err := attach(t.Context(), b, id(2)); !fault.Is(err, fault.Busy) {
		t.Errorf("Attach() with the subnet of another brig = %v, want busy", err)
	}
	l.mustBeGone(b)
	l.must(os.RemoveAll(filepath.Dir(a.config)))
	l.attach(b, id(2))
	l.must(b.Detach(t.Context(), id(2)))
}

func TestManyInstancesStartAndStopAtOnce(t *testing.T) {
	l := newLab(t)
	n := l.network()
	const count = 16
	var mutex sync.Mutex
	given := map[netip.Prefix]bool{} // guarded by mutex
	each := func(do func(i int) error) {
		var wg sync.WaitGroup
		for i := range count {
			wg.Go(func() {
				runtime.LockOSThread()
				if err := netns.Set(l.host); err != nil {
					t.Error(err)
				} else if err := do(i); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
	}
	each(func(i int) error {
		nic, err := attach(t.Context(), n, id(i))
		if err != nil {
			return err
		}
		mutex.Lock()
		defer mutex.Unlock()
		given[nic.Addresses[0]] = true
		return nil
	})
	l.mustBeUp(n)
	if got := len(n.users()); got != count {
		t.Errorf("%d users, want %d", got, count)
	}
	each(func(i int) error { return n.Detach(t.Context(), id(i)) })
	l.mustBeGone(n)
	l.mustForward(false)
	each(func(i int) error {
		if _, err := attach(t.Context(), n, id(i)); err != nil {
			return err
		}
		return n.Detach(t.Context(), id(i))
	})
	l.mustBeGone(n)
	l.mustForward(false)
}

func TestReconcileKeepsWhatRuns(t *testing.T) {
	l := newLab(t)
	n := l.network()
	l.attach(n, id(1))
	l.attach(n, id(2))
	// An instance of the boot before the last one: this run directory is on a disk.
	l.must(os.WriteFile(filepath.Join(n.usersDir(), id(3)), []byte("another boot"), 0o600))
	l.must(n.Reconcile(t.Context(), func(i string) bool { return i == id(2) }))
	l.mustBeUp(n)
	if users := n.users(); len(users) != 1 || users[0] != id(2) {
		t.Errorf("the users are %v, want %v", users, id(2))
	}
	l.must(n.Reconcile(t.Context(), func(string) bool { return false }))
	l.mustBeGone(n)
	l.must(n.Reconcile(t.Context(), func(string) bool { return false }))
	l.mustBeGone(n)
}

func TestWithoutTheRightToChangeTheNetworkIsForbidden(t *testing.T) {
	l := newLab(t)
	n := l.network()
	l.in(l.host, func() {
		dropNetAdmin(t)
		if _, err := attach(t.Context(), n, id(1)); !fault.Is(err, fault.Forbidden) {
			t.Errorf("Attach() = %v, want forbidden", err)
		}
	})
	l.mustBeGone(n)
}

func TestCallersCanGiveUpWaiting(t *testing.T) {
	l := newLab(t)
	n := l.network()
	lock, err := n.lock(t.Context())
	l.must(err)
	defer lock.Release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := attach(ctx, n, id(1)); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Attach() = %v, want cancelled", err)
	}
	if err := n.Detach(ctx, id(1)); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Detach() = %v, want cancelled", err)
	}
}

func TestIDsThatAreNoIDsAreRefused(t *testing.T) {
	n := New(store.DirsFor(t.TempDir()), t.TempDir())
	for _, bad := range []string{"", "../../etc/passwd", "0123456789abcde", "0123456789abcdefg", "0123456789abcde/"} {
		_, err := n.Attach(t.Context(), Endpoint{ID: bad})
		_, err2 := n.Allocate(t.Context(), bad, noneTaken)
		for _, err := range []error{err, err2, n.Detach(t.Context(), bad)} {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("with id %q = %v, want invalid", bad, err)
			}
		}
	}
}

func TestHindranceNamesAFirewallThatDrops(t *testing.T) {
	l := newLab(t)
	n := l.network()
	l.attach(n, id(1))
	if text, err := n.Hindrance(); text != "" || err != nil {
		t.Errorf("Hindrance() = %q, %v, want nothing", text, err)
	}
	for chain, args := range map[string][]string{
		"FORWARD": {"-P", "FORWARD", "DROP"}, "DOCKER-USER": {"-N", "DOCKER-USER"},
	} {
		if out, err := exec.Command("iptables", args...).CombinedOutput(); err != nil {
			t.Skipf("iptables %s: %v: %s", chain, err, out)
		}
	}
	text, err := n.Hindrance()
	if want := fmt.Sprintf("iptables -I DOCKER-USER -i %s -j ACCEPT", n.bridge); err != nil || !strings.Contains(text, want) {
		t.Errorf("Hindrance() = %q, %v, want %q", text, err, want)
	}
}
