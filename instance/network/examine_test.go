package network

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestRepairMendsWhatExamineFinds(t *testing.T) {
	l := newLab(t)
	n := l.network()
	alive := func(i string) bool { return i == id(1) }
	faults := func() string {
		t.Helper()
		found, err := n.Examine(alive)
		l.must(err)
		var lines []string
		for _, f := range found {
			lines = append(lines, f.ID+" "+f.Text)
		}
		return strings.Join(lines, "\n")
	}
	says := func(want ...string) {
		t.Helper()
		got := faults()
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("Examine = %q, want %q in it", got, w)
			}
		}
		if len(want) == 0 && got != "" {
			t.Errorf("Examine = %q, want nothing", got)
		}
	}
	mended := func() {
		t.Helper()
		l.must(n.Repair(t.Context(), alive))
		says()
	}
	says()
	nic := l.attach(n, id(1))
	says(id(1) + " the host's end of its network interface")
	l.connect(nic.HostName, l.outside, "guest", 1400)
	says("is not on the bridge")
	mended()

	bridge, err := netlink.LinkByName(n.Bridge())
	l.must(err)
	l.must(netlink.LinkSetDown(bridge))
	l.must(n.deleteTable())
	says("is down", "table")
	mended()
	addrs, err := netlink.AddrList(bridge, netlink.FAMILY_V4)
	l.must(err)
	l.must(netlink.AddrDel(bridge, &addrs[0]))
	says("addresses")
	mended()
	l.must(netlink.LinkDel(bridge))
	says("is gone, and instances use it")
	mended()
	if out, err := exec.Command("ip", "route", "get", nic.Addresses[0].Addr().String()).CombinedOutput(); err != nil || !strings.Contains(string(out), n.Bridge()) {
		t.Errorf("the way to the instance is %q, %v; want one by %q", out, err, n.Bridge())
	}

	l.attach(n, id(2))
	says(id(2) + " it is noted as a user of the network and does not run")
	mended()
	alive = func(string) bool { return false }
	says(id(1))
	mended()
	l.mustBeGone(n)
	l.mustForward(false)
}
