package network

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The rule for subnets: a brig chooses one that is free on the host when its
// first instance is made, and keeps it, because its instances' addresses are in
// it. When the host has got a network in the same place since then, Attach
// refuses and says which. Whoever wants another subnet edits or removes
// network.json; instances whose address Holds then refuses need a new one.

// subnetBits is the size of the subnets that brig chooses: 4093 instances.
const subnetBits = 20

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
