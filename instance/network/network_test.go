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

// TestACrashAtAnyStepIsRepaired kills a process at each step of an attach and of
// the last detach, and looks what the next call makes of what that left.
func TestACrashAtAnyStepIsRepaired(t *testing.T) {
	l := newLab(t)
	steps := map[string][]string{}
	n := l.network()
	record := func(verb string) {
		n.reached = func(step string) { steps[verb] = append(steps[verb], step) }
	}
	record("attach")
	l.attach(n, id(1))
	record("detach")
	l.must(n.Detach(t.Context(), id(1)))
	if len(steps["attach"]) < 10 || len(steps["detach"]) < 4 {
		t.Fatalf("the steps are %v", steps)
	}

	alive := func(string) bool { return false }
	repairs := map[string]func(n *Network) error{
		"detach":    func(n *Network) error { return n.Detach(t.Context(), id(1)) },
		"reconcile": func(n *Network) error { return n.Reconcile(t.Context(), alive) },
		"attach": func(n *Network) error {
			l.attach(n, id(2))
			l.mustBeUp(n)
			l.must(n.Detach(t.Context(), id(2)))
			return n.Reconcile(t.Context(), alive)
		},
	}
	for verb := range steps {
		for _, step := range steps[verb] {
			for repair, do := range repairs {
				n := l.network()
				if verb == "detach" {
					l.attach(n, id(1))
				}
				l.crash(n, verb, step)
				l.must(do(n))
				l.mustBeGone(n)
				l.mustForward(false)
				if t.Failed() {
					t.Fatalf("after a crash of %s at %q and %s", verb, step, repair)
				}
			}
		}
	}
}

// crash lets another process do something with n until it dies at a step.
func (l *lab) crash(n *Network, verb, step string) {
	l.t.Helper()
	root := filepath.Dir(filepath.Dir(n.config))
	cmd := exec.Command(os.Args[0], "-test.run=^TestCrashInAnotherProcess$", "-test.v")
	cmd.Env = append(os.Environ(), "NETWORK_DIR="+root, "NETWORK_HOST="+l.hostDir, "NETWORK_VERB="+verb, "NETWORK_STEP="+step)
	out, err := cmd.CombinedOutput() // started by this thread, so in its namespace
	if cmd.ProcessState.ExitCode() != crashed {
		l.t.Fatalf("%s that shall die at %q: %v\n%s", verb, step, err, out)
	}
}

// crashed is the exit code of a process that died at the step it should.
const crashed = 77

// TestCrashInAnotherProcess is a part of TestACrashAtAnyStepIsRepaired.
func TestCrashInAnotherProcess(t *testing.T) {
	root := os.Getenv("NETWORK_DIR")
	if root == "" {
		t.Skip("runs as a part of TestACrashAtAnyStepIsRepaired")
	}
	n := New(store.DirsFor(root), os.Getenv("NETWORK_HOST"))
	n.reached = func(step string) {
		if step == os.Getenv("NETWORK_STEP") {
			os.Exit(crashed)
		}
	}
	var err error
	if os.Getenv("NETWORK_VERB") == "attach" {
		_, err = attach(t.Context(), n, id(1))
	} else {
		err = n.Detach(t.Context(), id(1))
	}
	t.Fatalf("it went on to the end, with %v", err)
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

func BenchmarkAttachWhileUp(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	n := New(store.DirsFor(b.TempDir()), b.TempDir())
	if _, err := attach(b.Context(), n, id(0)); err != nil {
		b.Fatal(err)
	}
	lease, err := n.Allocate(b.Context(), id(1), noneTaken)
	if err != nil {
		b.Fatal(err)
	}
	defer lease.Close()
	for b.Loop() {
		if _, err := n.Attach(b.Context(), Endpoint{id(1), lease.MAC, lease.Address}); err != nil {
			b.Fatal(err)
		}
		if err := n.Detach(b.Context(), id(1)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkFirstAttachAndLastDetach(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	n := New(store.DirsFor(b.TempDir()), b.TempDir())
	lease, err := n.Allocate(b.Context(), id(1), noneTaken)
	if err != nil {
		b.Fatal(err)
	}
	defer lease.Close()
	var up, down time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := n.Attach(b.Context(), Endpoint{id(1), lease.MAC, lease.Address}); err != nil {
			b.Fatal(err)
		}
		up += time.Since(start)
		start = time.Now()
		if err := n.Detach(b.Context(), id(1)); err != nil {
			b.Fatal(err)
		}
		down += time.Since(start)
	}
	b.ReportMetric(up.Seconds()*1000/float64(b.N), "up-ms/op")
	b.ReportMetric(down.Seconds()*1000/float64(b.N), "down-ms/op")
}
