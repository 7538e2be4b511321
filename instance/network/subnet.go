package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/flock"
)

// The rule for subnets: a brig chooses one that is free on the host when its
// first instance is made, and keeps it, because its instances' addresses are in
// it. When the host has got a network in the same place since then, Attach
// refuses and says which. Whoever wants another subnet edits or removes
// network.json; instances whose address Holds then refuses need a new one.

// subnetBits is the size of the subnets that brig chooses: 4093 instances.
const subnetBits = 20

// smallestBits and largestBits bound the subnets that network.json may name.
const (
	smallestBits = 29
	largestBits  = 8
)

// settings is the content of network.json.
type settings struct {
	Version int          `json:"version"`
	Subnet  netip.Prefix `json:"subnet"`
}

// settingsVersion is the format of network.json that this brig writes.
const settingsVersion = 1

// maxSettings bounds what is read of network.json.
const maxSettings = 64 << 10

// Subnet is the subnet of this brig; not valid as long as none was chosen.
func (n *Network) Subnet() (netip.Prefix, error) {
	f, err := os.Open(n.config)
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot read the network's settings: %w", classify(err))
	}
	defer f.Close()
	return readSettings(f, n.config)
}

// Holds tells whether address is one that an instance of this brig may have. A
// false answer for an address that Allocate gave says that the subnet has been
// changed since.
func (n *Network) Holds(address netip.Prefix) (bool, error) {
	subnet, err := n.Subnet()
	return err == nil && subnet.IsValid() && address.Masked() == subnet && address.Addr() != gateway(subnet), err
}

func readSettings(r io.Reader, path string) (netip.Prefix, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSettings))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot read the network's settings: %w", err)
	}
	var s settings
	if err := json.Unmarshal(text, &s); err != nil {
		return netip.Prefix{}, fault.New(fault.Invalid,
			"cannot read the network's settings in %s: %v; mend the file or remove it", path, err)
	}
	if s.Version > settingsVersion {
		return netip.Prefix{}, fault.New(fault.Unsupported,
			"cannot read the network's settings in %s: a newer brig wrote them (version %d)", path, s.Version)
	}
	if bits := s.Subnet.Bits(); !s.Subnet.Addr().Is4() || s.Subnet != s.Subnet.Masked() || bits < largestBits || bits > smallestBits {
		return netip.Prefix{}, fault.New(fault.Invalid,
			"cannot use the subnet %q in %s: want an IPv4 network such as 10.20.0.0/20, from /%d to /%d",
			s.Subnet, path, largestBits, smallestBits)
	}
	return s.Subnet, nil
}

// subnet gives the subnet of this brig, and chooses one the first time. The
// caller holds the lock of the network.
func (n *Network) subnet(ctx context.Context, h *netlink.Handle) (netip.Prefix, error) {
	subnet, err := n.Subnet()
	if err != nil || subnet.IsValid() {
		return subnet, err
	}
	lock, err := n.claimsLock(ctx)
	if err != nil {
		return netip.Prefix{}, err
	}
	defer lock.Release()
	if subnet, err = n.choose(h); err != nil {
		return netip.Prefix{}, err
	}
	if err := n.claim(subnet); err != nil {
		return netip.Prefix{}, err
	}
	n.reached("chosen")
	if err := n.save(subnet); err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot record the subnet %v: %w", subnet, classify(err))
	}
	return subnet, nil
}

// choose finds a subnet. Instances that run while the record was lost keep
// theirs: it is on the bridge.
func (n *Network) choose(h *netlink.Handle) (netip.Prefix, error) {
	if link, err := n.ownBridge(h); err == nil && link != nil {
		if addrs, err := bridgeAddresses(h, link); err == nil && len(addrs) > 0 {
			return addrs[0].Masked(), nil
		}
	}
	taken, err := n.taken(h)
	if err != nil {
		return netip.Prefix{}, err
	}
	var random [4]byte
	if _, err := rand.Read(random[:]); err != nil {
		return netip.Prefix{}, err
	}
	subnet, ok := pick(binary.NativeEndian.Uint32(random[:]), taken)
	if !ok {
		return netip.Prefix{}, fault.New(fault.Exhausted,
			"cannot choose a subnet: the host has networks in all private ranges; name one in %s: {\"version\":%d,\"subnet\":\"A.B.C.D/%d\"}",
			n.config, settingsVersion, subnetBits)
	}
	return subnet, nil
}

// confirm makes sure that the subnet is still free on the host, and that no
// other brig has it.
func (n *Network) confirm(ctx context.Context, h *netlink.Handle, subnet netip.Prefix) error {
	lock, err := n.claimsLock(ctx)
	if err != nil {
		return err
	}
	defer lock.Release()
	taken, err := n.taken(h)
	if err != nil {
		return err
	}
	if i := clash(subnet, taken); i >= 0 {
		return fault.New(fault.Busy,
			"the subnet %v of instances overlaps %v of %s; remove that, or remove %s so that brig chooses again",
			subnet, taken[i].prefix, taken[i].owner, n.config)
	}
	return n.claim(subnet)
}

// network is a network that somebody uses.
type network struct {
	prefix netip.Prefix
	owner  string // for people
}

// pick chooses a private subnet that does not overlap any of the taken ones, or
// at least none that it would disturb: inside of a larger network (say, a
// company's 10.0.0.0/8 behind a VPN) the more special route wins, and the rest of
// the larger one stays reachable. It starts to look at a place that seed gives.
func pick(seed uint32, taken []network) (netip.Prefix, bool) {
	ranges := []netip.Prefix{
		netip.MustParsePrefix("10.128.0.0/10"), // few programs choose here by default
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("172.16.0.0/12"),
		netip.MustParsePrefix("192.168.0.0/16"),
	}
	disturbs := func(p netip.Prefix) bool { return clash(p, taken) >= 0 }
	for _, refused := range []func(netip.Prefix) bool{
		func(p netip.Prefix) bool { return overlapsAny(p, taken) }, disturbs,
	} {
		for _, r := range ranges {
			count := uint32(1) << (subnetBits - r.Bits())
			for i := range count {
				p := netip.PrefixFrom(add(r.Addr(), (seed%count+i)%count<<(32-subnetBits)), subnetBits)
				if !refused(p) {
					return p, true
				}
			}
		}
	}
	return netip.Prefix{}, false
}

// overlapsAny tells whether p overlaps a taken network. A route to half of the
// internet, as VPNs set, is no network.
func overlapsAny(p netip.Prefix, taken []network) bool {
	for _, t := range taken {
		if t.prefix.Bits() >= largestBits && t.prefix.Overlaps(p) {
			return true
		}
	}
	return false
}

// clash gives the index of a taken network that cannot be used beside p: one
// that is as large or smaller, and in the same place. It is -1 without one.
func clash(p netip.Prefix, taken []network) int {
	for i, t := range taken {
		if t.prefix.Bits() >= p.Bits() && t.prefix.Overlaps(p) {
			return i
		}
	}
	return -1
}

// taken lists the networks that the host and other brigs use. The caller holds
// the lock of the claims.
func (n *Network) taken(h *netlink.Handle) ([]network, error) {
	own := -1
	if link, err := findLink(h, n.bridge); err == nil && link != nil {
		own = link.Attrs().Index
	}
	taken, err := hostNetworks(h, own)
	if err != nil {
		return nil, err
	}
	for _, server := range n.nameServers() {
		if server.Is4() {
			taken = append(taken, network{netip.PrefixFrom(server, 32), "a name server"})
		}
	}
	return append(taken, n.claims()...), nil
}

// hostNetworks lists the networks of the host's addresses and routes, except
// those of the interface own.
func hostNetworks(h *netlink.Handle, own int) ([]network, error) {
	addrs, err := settled(func() ([]netlink.Addr, error) { return h.AddrList(nil, unix.AF_INET) })
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's addresses: %w", classify(err))
	}
	routes, err := settled(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list the host's routes: %w", classify(err))
	}
	var taken []network
	use := func(p netip.Prefix, index int) {
		owner := "a route"
		if link, err := h.LinkByIndex(index); index > 0 && err == nil {
			owner = fmt.Sprintf("interface %q", link.Attrs().Name)
		}
		taken = append(taken, network{p.Masked(), owner})
	}
	for _, addr := range addrs {
		if p, ok := prefixOf(addr.IPNet); ok && addr.LinkIndex != own {
			use(p, addr.LinkIndex)
		}
	}
	for _, route := range routes {
		p, ok := prefixOf(route.Dst)
		if !ok || p.Bits() == 0 || route.LinkIndex == own || route.Table == unix.RT_TABLE_LOCAL {
			continue
		}
		use(p, route.LinkIndex)
	}
	return taken, nil
}

// A claim tells other brigs of a host which subnet this one has: a symbolic link
// named after the subnet, to the network.json that names it. It is void when the
// file is gone or names another.

func (n *Network) claimsDir() string { return filepath.Join(n.hostDir, "subnets") }

func (n *Network) claimsLock(ctx context.Context) (*flock.Lock, error) {
	lock, err := flock.Acquire(ctx, filepath.Join(n.claimsDir(), "lock"))
	if err != nil {
		return nil, classify(err)
	}
	return lock, nil
}

func claimName(subnet netip.Prefix) string { return strings.ReplaceAll(subnet.String(), "/", "_") }

func (n *Network) claim(subnet netip.Prefix) error {
	path := filepath.Join(n.claimsDir(), claimName(subnet))
	if target, err := os.Readlink(path); err == nil && target == n.config {
		return nil
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	return classify(os.Symlink(n.config, path))
}

// claims lists the subnets of other brigs, and removes void claims.
func (n *Network) claims() []network {
	entries, err := os.ReadDir(n.claimsDir())
	if err != nil {
		return nil
	}
	var claims []network
	for _, entry := range entries {
		subnet, err := netip.ParsePrefix(strings.ReplaceAll(entry.Name(), "_", "/"))
		if err != nil {
			continue
		}
		path := filepath.Join(n.claimsDir(), entry.Name())
		owner, err := os.Readlink(path)
		if err != nil || owner == n.config {
			continue
		}
		other := &Network{config: owner}
		if named, err := other.Subnet(); err == nil && named != subnet {
			os.Remove(path)
			continue
		}
		claims = append(claims, network{subnet, "the brig of " + filepath.Dir(owner)})
	}
	return claims
}

// save records the subnet, durably and as a whole.
func (n *Network) save(subnet netip.Prefix) error {
	text, err := json.MarshalIndent(settings{Version: settingsVersion, Subnet: subnet}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(n.config), 0o700); err != nil {
		return err
	}
	staged := n.config + ".new"
	f, err := os.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(staged)
		return err
	}
	if err := os.Rename(staged, n.config); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(n.config))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// gateway is the host's address in the subnet: the first one.
func gateway(subnet netip.Prefix) netip.Addr { return subnet.Addr().Next() }

// gatewayPrefix is the gateway with the size of the subnet.
func gatewayPrefix(subnet netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(gateway(subnet), subnet.Bits())
}

// add gives the IPv4 address that is i after a.
func add(a netip.Addr, i uint32) netip.Addr {
	b := a.As4()
	binary.BigEndian.PutUint32(b[:], binary.BigEndian.Uint32(b[:])+i)
	return netip.AddrFrom4(b)
}
