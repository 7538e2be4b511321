package main

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestNetworkCard gives instances of both forms hardware addresses and addresses of their
// owner's choice, and looks from inside.
func TestNetworkCard(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	inside := func(name string) (mac, address string) {
		t.Helper()
		mac = strings.TrimSpace(r.Must(t, "exec", name, "--", "/bin/probe", "read", "/sys/class/net/eth0/address"))
		var seen struct{ Addrs []string }
		if err := json.Unmarshal([]byte(r.Must(t, "exec", name, "--", "/bin/probe", "see")), &seen); err != nil || len(seen.Addrs) != 1 {
			t.Fatalf("%s has the addresses %q, %v", name, seen.Addrs, err)
		}
		return mac, seen.Addrs[0]
	}
	r.Must(t, "launch", app, "pet", "--wait", "ready")
	oldMAC, old := inside("pet")
	was, err := netip.ParsePrefix(old)
	if err != nil {
		t.Fatal(err)
	}
	next := was.Addr().Next().Next()
	want := netip.PrefixFrom(next, was.Bits()).String()
	const mac = "02:00:00:0a:0b:0c"
	res := r.Run(t, "config", "device", "add", "pet", "eth0", "nic", "hwaddr="+mac, "ipv4.address="+next.String())
	if res.Code != 0 || !strings.Contains(res.Stderr, "next start") {
		t.Errorf("device add = %+v, want it to wait for the next start", res)
	}
	if m, a := inside("pet"); m != oldMAC || a != old {
		t.Errorf("a running instance has %s, %s by now", m, a)
	}
	r.Must(t, "stop", "-f", "pet")
	r.Must(t, "start", "pet", "--wait", "ready")
	if m, a := inside("pet"); m != mac || a != want {
		t.Errorf("the card has %s, %s, want %s, %s", m, a, mac, want)
	}
	if list := r.Must(t, "list", "pet", "-f", "csv", "-c", "4"); !strings.Contains(list, next.String()) {
		t.Errorf("list says %s", list)
	}

	// A virtual machine, with what the first one has given back; nobody gets what is taken.
	r.Must(t, "launch", app, "box", "--vm", "-c", "limits.memory=256MiB", "-d", "eth0,type=nic,hwaddr=02:00:00:0a:0b:0d,ipv4.address="+was.Addr().String(), "--wait", "ready")
	if m, a := inside("box"); m != "02:00:00:0a:0b:0d" || a != old {
		t.Errorf("the machine's card has %s, %s, want %s", m, a, old)
	}
	before := r.Must(t, "config", "show", "box")
	for _, c := range []struct {
		code  int
		words []string
		key   string
	}{
		{4, []string{"pet", next.String()}, "ipv4.address=" + next.String()},
		{4, []string{"pet", mac}, "hwaddr=" + mac},
		{2, []string{"subnet"}, "ipv4.address=192.0.2.1"},
		{2, []string{"address"}, "ipv4.address=here"},
		{2, []string{"one card"}, "hwaddr=01:00:00:00:00:01"},
		{6, []string{"macvlan", "bridged"}, "nictype=macvlan"},
		{6, []string{"one network", "incusbr0"}, "network=incusbr0"},
		{6, []string{"called eth0"}, "name=eth7"},
		{6, []string{"limits.egress"}, "limits.egress=1Mbit"},
	} {
		r.Fails(t, c.code, c.words, "config", "device", "set", "box", "eth0", c.key)
	}
	if after := r.Must(t, "config", "show", "box"); after != before {
		t.Errorf("what was refused changed something:\n%s\nwas\n%s", after, before)
	}
	r.Must(t, "stop", "-f", "box", "pet")

	// A copy says what the original says, and has to say something else.
	r.Must(t, "copy", "pet", "twin")
	r.Fails(t, 4, []string{"twin", "pet"}, "start", "twin")
	r.Must(t, "config", "device", "remove", "twin", "eth0")
	r.Must(t, "start", "twin", "--wait", "ready")
	if m, a := inside("twin"); m == mac || slices.Contains([]string{want, old}, a) {
		t.Errorf("the copy has %s, %s", m, a)
	}
	// Without it the card has brig's hardware address again, and keeps its address.
	r.Must(t, "config", "device", "remove", "pet", "eth0")
	r.Must(t, "start", "pet", "--wait", "ready")
	if m, a := inside("pet"); m != oldMAC || a != want {
		t.Errorf("without the device the card has %s, %s, want %s, %s", m, a, oldMAC, want)
	}
}
