package network

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/instance/store"
)

func noneTaken() ([]netip.Addr, error) { return nil, nil }

func prefixes(list ...string) []network {
	var taken []network
	for _, p := range list {
		taken = append(taken, network{netip.MustParsePrefix(p), "test"})
	}
	return taken
}

func TestPickAvoidsWhatIsTaken(t *testing.T) {
	for name, c := range map[string]struct {
		taken []network
		in    string // where the subnet shall be; empty: there is none
	}{
		"a quiet place first":                    {nil, "10.128.0.0/10"},
		"the rest of ten":                        {prefixes("10.128.0.0/10"), "10.0.0.0/8"},
		"a default route in halves is no matter": {prefixes("0.0.0.0/1", "128.0.0.0/1"), "10.128.0.0/10"},
		"ten is taken":                           {prefixes("10.0.0.0/8"), "172.16.0.0/12"},
		"one place is left":                      {prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17", "192.168.128.0/18", "192.168.208.0/20", "192.168.224.0/19"), "192.168.192.0/20"},
		"all is taken by larger networks":        {prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), "10.128.0.0/10"},
		"larger ones, with a host in each":       {append(prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), hosts(t, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/17", "192.168.128.0/18", "192.168.208.0/20", "192.168.224.0/19")...), "192.168.192.0/20"},
		"nothing is left":                        {hosts(t, "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"), ""},
	} {
		t.Run(name, func(t *testing.T) {
			for _, seed := range []uint32{0, 1, 12345, 1<<32 - 1} {
				got, ok := pick(seed, c.taken)
				if c.in == "" {
					if ok {
						t.Errorf("pick(%d) = %v, want none", seed, got)
					}
					continue
				}
				in := netip.MustParsePrefix(c.in)
				if !ok || got.Bits() != subnetBits || got != got.Masked() || !in.Contains(got.Addr()) || clash(got, c.taken) >= 0 {
					t.Errorf("pick(%d) = %v, %v, want a free /%d in %v", seed, got, ok, subnetBits, in)
				}
			}
		})
	}
}

// hosts gives a host in each subnet that could be chosen in the ranges.
func hosts(t *testing.T, ranges ...string) []network {
	t.Helper()
	var taken []network
	for _, text := range ranges {
		r := netip.MustParsePrefix(text)
		for a := r.Addr(); r.Contains(a); a = add(a, 1<<(32-subnetBits)) {
			taken = append(taken, network{netip.PrefixFrom(add(a, 77), 32), "test"})
		}
	}
	return taken
}

func TestFreeGivesEveryAddressOnceAndNoReservedOne(t *testing.T) {
	subnet := netip.MustParsePrefix("10.1.2.16/28")
	used := map[netip.Addr]bool{}
	for i := range 13 {
		addr, ok := free(subnet, id(i), used)
		last := netip.MustParseAddr("10.1.2.31")
		if !ok || used[addr] || !subnet.Contains(addr) || addr == subnet.Addr() || addr == gateway(subnet) || addr == last {
			t.Fatalf("free() = %v, %v, with %v used", addr, ok, used)
		}
		used[addr] = true
	}
	if addr, ok := free(subnet, id(13), used); ok {
		t.Errorf("free() in a full subnet = %v, want none", addr)
	}
}

func TestParseResolv(t *testing.T) {
	const text = `# a comment
; another
search example.org
nameserver 127.0.0.53
nameserver ::1
nameserver 0.0.0.0
nameserver fe80::1%eth0
  nameserver	192.0.2.53
nameserver 192.0.2.53
nameserver ::ffff:192.0.2.54
nameserver 2001:db8::53
nameserver
nameserver nonsense
nameservers 192.0.2.55
`
	want := []netip.Addr{
		netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("192.0.2.54"), netip.MustParseAddr("2001:db8::53"),
	}
	if got := parseResolv(strings.NewReader(text)); !slices.Equal(got, want) {
		t.Errorf("parseResolv() = %v, want %v", got, want)
	}
}

func TestDNSGivesServersThatInstancesCanReach(t *testing.T) {
	n := New(store.DirsFor(t.TempDir()), t.TempDir())
	dir := t.TempDir()
	n.resolv = []string{filepath.Join(dir, "missing"), filepath.Join(dir, "stub"), filepath.Join(dir, "real")}
	write := func(path string, servers ...string) {
		t.Helper()
		text := "nameserver " + strings.Join(servers, "\nnameserver ") + "\n"
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(n.resolv[1], "127.0.0.53")
	if got := n.DNS(); len(got) != 0 {
		t.Errorf("DNS() = %v, want none", got)
	}
	write(n.resolv[2], "2001:db8::1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
	if got := fmt.Sprint(n.DNS()); got != "[192.0.2.1 192.0.2.2 192.0.2.3]" {
		t.Errorf("DNS() = %v, want the first three with IPv4", got)
	}
}

func TestNamesFitAndDiffer(t *testing.T) {
	if got := HostName("0123456789abcdef", 0); got != "b0123456789ab0" {
		t.Errorf("HostName() = %q", got)
	}
	if got := HostName("0123456789abcdef", 255); len(got) > 15 {
		t.Errorf("HostName() = %q, which is too long", got)
	}
	a, b := New(store.Default, ""), New(store.DirsFor("/srv/brig"), "")
	if a.bridge != "brig0" || a.table != "brig" {
		t.Errorf("the default brig has bridge %q and table %q", a.bridge, a.table)
	}
	if len(b.bridge) > 15 || b.bridge == a.bridge || b.table == a.table || slices.Equal(a.mac, b.mac) {
		t.Errorf("another brig has bridge %q, table %q and MAC %v", b.bridge, b.table, b.mac)
	}
	mac, err := net.ParseMAC(MAC("0123456789abcdef"))
	if err != nil || mac[0]&3 != 2 {
		t.Errorf("MAC() = %v, %v, want one that is local and of one host", mac, err)
	}
	if MAC(id(1)) != MAC(id(1)) || MAC(id(1)) == MAC(id(2)) {
		t.Error("MAC() does not follow the id")
	}
}

func TestSettingsAreChecked(t *testing.T) {
	for text, want := range map[string]fault.Class{
		`{"version":1,"subnet":"10.20.0.0/24"}`:      "",
		`{"version":1,"subnet":"10.20.0.1/24"}`:      fault.Invalid,
		`{"version":1,"subnet":"10.20.0.0/30"}`:      fault.Invalid,
		`{"version":1,"subnet":"0.0.0.0/0"}`:         fault.Invalid,
		`{"version":1,"subnet":"fd00::/64"}`:         fault.Invalid,
		`{"version":1,"subnet":"x"}`:                 fault.Invalid,
		`{"version":1}`:                              fault.Invalid,
		`{"version":2,"subnet":"10.20.0.0/24"}`:      fault.Unsupported,
		``:                                           fault.Invalid,
		strings.Repeat(" ", maxSettings) + `{"v":1}`: fault.Invalid,
	} {
		if _, err := readSettings(strings.NewReader(text), "network.json"); fault.Of(err) != want {
			t.Errorf("readSettings(%.60q) = %v, want %q", text, err, want)
		}
	}
}

func FuzzReadSettings(f *testing.F) {
	f.Add(`{"version":1,"subnet":"10.20.0.0/24"}`)
	f.Add(`{"subnet":"::ffff:10.0.0.0/104"}`)
	f.Fuzz(func(t *testing.T, text string) {
		subnet, err := readSettings(strings.NewReader(text), "network.json")
		if err != nil {
			return
		}
		if addr, ok := free(subnet, id(1), nil); !ok || !subnet.Contains(addr) || addr == gateway(subnet) {
			t.Errorf("subnet %v is taken, and gives address %v", subnet, addr)
		}
	})
}

func FuzzParseResolv(f *testing.F) {
	f.Add("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, addr := range parseResolv(strings.NewReader(text)) {
			if !addr.IsValid() || addr.IsLoopback() || addr.IsUnspecified() {
				t.Errorf("parseResolv(%q) gives %v", text, addr)
			}
		}
	})
}
