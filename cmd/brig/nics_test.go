package main

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/instancetest"
)

// cards looks at the interfaces of an instance from inside.
type cards struct {
	*instancetest.Rig
	name string
}

func (c cards) mac(t testing.TB, nic string) string {
	t.Helper()
	res := c.Run(t, "exec", c.name, "--", "/bin/probe", "read", "/sys/class/net/"+nic+"/address")
	return strings.TrimSpace(res.Stdout)
}

func (c cards) addresses(t testing.TB) []string {
	t.Helper()
	var seen struct{ Addrs []string }
	if err := json.Unmarshal([]byte(c.Must(t, "exec", c.name, "--", "/bin/probe", "see")), &seen); err != nil {
		t.Fatal(err)
	}
	return seen.Addrs
}

// add adds a card and tells whether a running instance has it at once.
func (c cards) add(t testing.TB, device string, keys ...string) bool {
	t.Helper()
	res := c.Run(t, append([]string{"config", "device", "add", c.name, device, "nic"}, keys...)...)
	if res.Code != 0 {
		t.Fatalf("device add %s %q = %+v", device, keys, res)
	}
	return !strings.Contains(res.Stderr, "next start")
}

// TestMoreNetworkCards gives instances of both forms more than one card, before they
// start and while they run, and takes them away.
func TestMoreNetworkCards(t *testing.T) {
	for _, form := range []instance.Type{instance.Container, instance.VirtualMachine} {
		t.Run(string(form), func(t *testing.T) {
			r := instancetest.New(t, bin)
			launch := []string{"create", probeImage(t, r), "pet"}
			if form == instance.VirtualMachine {
				r.Kernels(t)
				launch = append(launch, "--vm", "-c", "limits.memory=256MiB")
			}
			moreCards(t, cards{r, "pet"}, form, launch)
		})
	}
}

func moreCards(t *testing.T, c cards, form instance.Type, launch []string) {
	c.Must(t, append(launch, "-d", "eth1,type=nic,hwaddr=02:00:00:0b:00:01")...)
	if !c.add(t, "second", "name=lan0") {
		t.Error("a stopped instance is to have a card later")
	}
	c.Must(t, "start", "pet", "--wait", "ready")
	if mac := c.mac(t, "eth1"); mac != "02:00:00:0b:00:01" {
		t.Errorf("eth1 has the hardware address %q", mac)
	}
	if c.mac(t, "lan0") == "" {
		t.Error("there is no lan0")
	}
	three := c.addresses(t)
	if len(three) != 3 {
		t.Fatalf("it has the addresses %v, want three", three)
	}

	// Another one while it runs, with an address of its owner's choice.
	last, err := netip.ParsePrefix(three[0])
	if err != nil {
		t.Fatal(err)
	}
	address := last.Addr()
	for slices.ContainsFunc(three, func(a string) bool { return strings.HasPrefix(a, address.String()+"/") }) {
		address = address.Next()
	}
	address = address.Next()
	if !c.add(t, "eth3", "ipv4.address="+address.String(), "hwaddr=02:00:00:0b:00:03") {
		t.Error("a running instance has the card only after its next start")
	}
	has := func(nic, mac string, want []string) {
		t.Helper()
		if got := c.mac(t, nic); got != mac {
			t.Errorf("%s has the hardware address %q, want %q", nic, got, mac)
		}
		got := c.addresses(t)
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("it has the addresses %v, want %v", got, want)
		}
	}
	four := append(slices.Clone(three), fmt.Sprintf("%v/%d", address, last.Bits()))
	has("eth3", "02:00:00:0b:00:03", four)
	var info struct {
		State struct {
			Network map[string]struct{ State, Hwaddr string }
		}
	}
	if err := json.Unmarshal([]byte(c.Must(t, "info", "pet", "-f", "json")), &info); err != nil {
		t.Fatal(err)
	}
	for _, nic := range []string{"eth0", "eth1", "lan0", "eth3"} {
		if n := info.State.Network[nic]; n.State != "up" || n.Hwaddr != c.mac(t, nic) {
			t.Errorf("info says of %s: %+v", nic, n)
		}
	}

	// It is connected: a kernel looks for neighbours by a card that is up.
	sends := func() bool {
		var now struct {
			State struct {
				Network map[string]struct {
					Counters struct {
						Sent int64 `json:"bytes_sent"`
					}
				}
			}
		}
		res := c.Run(t, "info", "pet", "-f", "json")
		return json.Unmarshal([]byte(res.Stdout), &now) == nil && now.State.Network["eth3"].Counters.Sent > 0
	}
	instancetest.Await(t, "something from eth3", sends)

	// What cannot be is refused, and changes nothing.
	before := c.Must(t, "config", "show", "pet")
	for _, bad := range []struct {
		code  int
		words []string
		keys  []string
	}{
		{4, []string{"eth3", "eth1", "hardware address"}, []string{"eth1", "hwaddr=02:00:00:0b:00:03"}},
		{4, []string{"second", "called lan0"}, []string{"eth1", "name=lan0"}},
		{4, []string{"address " + address.String()}, []string{"eth1", "ipv4.address=" + address.String()}},
		{2, []string{"no name"}, []string{"eth1", "name=../x"}},
		{2, []string{"no name"}, []string{"eth1", "name=a-name-that-is-far-too-long"}},
		{6, []string{"one network", "incusbr0"}, []string{"eth1", "network=incusbr0"}},
		{6, []string{"vlan"}, []string{"eth1", "vlan=5"}},
	} {
		c.Fails(t, bad.code, bad.words, append([]string{"config", "device", "set", "pet"}, bad.keys...)...)
	}
	if after := c.Must(t, "config", "show", "pet"); after != before {
		t.Errorf("what was refused changed something:\n%s\nwas\n%s", after, before)
	}

	// A card that it has had since its start goes while it runs, too, where no bus
	// holds it; after a reboot from inside all is as it was.
	since := 0
	if form == instance.Container {
		c.Must(t, "config", "device", "remove", "pet", "eth1")
	} else {
		c.Fails(t, 4, []string{"eth1", "stop it first"}, "config", "device", "remove", "pet", "eth1")
		since = 1
	}
	left := c.addresses(t)
	if mac := c.mac(t, "eth1"); len(left) != 3+since || (mac != "") != (since == 1) {
		t.Errorf("eth1 has the hardware address %q, and the addresses are %v", mac, left)
	}
	boots := c.Must(t, "exec", "pet", "--", "/bin/probe", "read", "/data/boots")
	c.Run(t, "exec", "pet", "--", "/bin/probe", "reboot")
	instancetest.Await(t, "the cards after a reboot", func() bool {
		now := c.Run(t, "exec", "pet", "--", "/bin/probe", "read", "/data/boots")
		return now.Code == 0 && now.Stdout == boots+"x" && c.mac(t, "eth3") != "" && len(c.addresses(t)) == len(left)
	})
	has("eth3", "02:00:00:0b:00:03", left)

	c.Must(t, "config", "device", "remove", "pet", "eth3")
	if mac, n := c.mac(t, "eth3"), len(c.addresses(t)); mac != "" || n != len(left)-1 {
		t.Errorf("eth3 has the hardware address %q, and there are %d addresses", mac, n)
	}
	c.Must(t, "stop", "-f", "pet")
	if since == 1 {
		c.Must(t, "config", "device", "remove", "pet", "eth1")
	}
	c.Must(t, "start", "pet", "--wait", "ready")
	if got := c.addresses(t); len(got) != 2 || !slices.Contains(three, got[0]) || !slices.Contains(three, got[1]) {
		t.Errorf("after a start it has the addresses %v, want two of %v", got, three)
	}
	// A copy has addresses of its own.
	c.Must(t, "stop", "-f", "pet")
	c.Must(t, "copy", "pet", "twin")
	c.Must(t, "start", "pet", "twin", "--wait", "ready")
	mine, others := c.addresses(t), cards{c.Rig, "twin"}.addresses(t)
	if len(others) != 2 || slices.ContainsFunc(others, func(a string) bool { return slices.Contains(mine, a) }) {
		t.Errorf("the copy has the addresses %v, and the original %v", others, mine)
	}
	c.Must(t, "delete", "-f", "--now", "pet", "twin")
	if list, err := os.ReadDir(filepath.Join(c.Dir, "state/addresses")); err != nil || len(list) != 0 {
		t.Errorf("nobody has an address, and claimed are %v, %v", list, err)
	}
}

// TestKilledWhilePlugging kills, or fails, what gives a running instance a card or takes
// it away. The next command brings it to an end.
func TestKilledWhilePlugging(t *testing.T) {
	points := []string{
		"nic.plug.before", "nic.plug.after", "nic.unplug.before", "nic.unplug.after",
		"reconfigure.configuration.after", "reconfigure.machines.before", "reconfigure.machines.after",
	}
	t.Run("container", func(t *testing.T) {
		r := instancetest.New(t, bin)
		launchUp(t, r, probeImage(t, r), "pet")
		killedWhilePlugging(t, cards{r, "pet"}, points, "kill", "error")
	})
	t.Run("virtual-machine", func(t *testing.T) {
		r := instancetest.New(t, bin)
		r.Kernels(t)
		r.Must(t, "launch", probeImage(t, r), "pet", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
		killedWhilePlugging(t, cards{r, "pet"}, points[:4], "kill")
	})
}

func killedWhilePlugging(t *testing.T, c cards, points []string, hows ...string) {
	add := []string{"config", "device", "add", "pet", "eth1", "nic"}
	remove := []string{"config", "device", "remove", "pet", "eth1"}
	c.With("BRIG_FAILPOINTS=nic.plug.before=error").Run(t, add...) // which leaves a note
	c.Must(t, "sweep")
	before := look(t, c.Rig)
	for _, point := range points {
		for _, how := range hows {
			t.Run(point+" "+how, func(t *testing.T) {
				args, codes := add, []int{0, 4}
				if strings.Contains(point, "unplug") {
					c.Must(t, add...)
					args, codes = remove, []int{0, 3}
				}
				res := c.With("BRIG_FAILPOINTS="+point+"="+how).Run(t, args...)
				if how == "kill" && res.Code != -int(syscall.SIGKILL) || how == "error" && res.Code != 1 {
					t.Fatalf("brig %q = %+v at the failpoint", args, res)
				}
				if res := c.Run(t, args...); !slices.Contains(codes, res.Code) {
					t.Errorf("brig %q again = %+v, want one of %v", args, res, codes)
				}
				there, addresses := c.mac(t, "eth1") != "", len(c.addresses(t))
				if gone := strings.Contains(point, "unplug"); there == gone || (addresses == 2) != there {
					t.Errorf("after brig %q was given again, the card is there: %v, and it has %d addresses", args, there, addresses)
				}
				c.Run(t, remove...)
				if mac := c.mac(t, "eth1"); mac != "" {
					t.Errorf("the card is there after all: %s", mac)
				}
				c.Must(t, "sweep")
				before.unchanged(t, c.Rig)
			})
		}
	}
}
