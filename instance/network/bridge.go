package network

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The MTU of the bridge is that of the host's way out, so that nothing has to be
// fragmented there, but never more than Ethernet's and never less than what
// IPv4 needs.
const (
	maxMTU = 1500
	minMTU = 576
)

// ensureBridge makes the bridge or completes it, and gives its MTU. Alone says
// that nobody else uses it, so that it may be replaced.
func (n *Network) ensureBridge(h *netlink.Handle, subnet netip.Prefix, alone bool) (int, error) {
	link, err := n.ownBridge(h)
	if err != nil {
		return 0, err
	}
	if link != nil {
		if link, err = n.dropOther(h, link, subnet, alone); err != nil {
			return 0, err
		}
	}
	if link == nil {
		if link, err = n.addBridge(h); err != nil {
			return 0, fmt.Errorf("cannot make bridge %q: %w", n.bridge, classify(err))
		}
	}
	n.reached("bridge")
	addr := &netlink.Addr{IPNet: ipNet(gatewayPrefix(subnet))}
	if err := h.AddrReplace(link, addr); err != nil {
		return 0, fmt.Errorf("cannot give bridge %q its address: %w", n.bridge, classify(err))
	}
	n.reached("address")
	// Before the bridge is up, so that the host never listens to a guest that
	// says it is an IPv6 router.
	if err := disableIPv6(n.bridge); err != nil {
		return 0, err
	}
	if err := h.LinkSetUp(link); err != nil {
		return 0, fmt.Errorf("cannot bring bridge %q up: %w", n.bridge, classify(err))
	}
	n.reached("up")
	return link.Attrs().MTU, nil
}

// dropOther removes a bridge that carries another subnet, from before the
// recorded one was changed.
func (n *Network) dropOther(h *netlink.Handle, link netlink.Link, subnet netip.Prefix, alone bool) (netlink.Link, error) {
	addrs, err := bridgeAddresses(h, link)
	if err != nil {
		return nil, err
	}
	for _, addr := range addrs {
		switch {
		case addr == gatewayPrefix(subnet):
		case alone:
			return nil, deleteLink(h, link)
		default:
			return nil, fault.New(fault.Busy,
				"bridge %q carries %v for running instances, and %s says %v; stop all instances first",
				n.bridge, addr.Masked(), n.config, subnet)
		}
	}
	return link, nil
}

// addBridge makes the bridge and gives it as the kernel shows it.
func (n *Network) addBridge(h *netlink.Handle) (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.bridge
	attrs.HardwareAddr = n.mac
	attrs.Alias = "brig: " + filepath.Dir(n.config)
	if len(attrs.Alias) > 255 {
		attrs.Alias = "brig"
	}
	attrs.MTU = uplinkMTU(h)
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		return nil, err
	}
	return h.LinkByName(n.bridge)
}

// ownBridge finds the bridge; nil if there is none. An interface with its name
// that this brig did not make is left alone and gives AlreadyExists.
func (n *Network) ownBridge(h *netlink.Handle) (netlink.Link, error) {
	link, err := findLink(h, n.bridge)
	if err != nil || link == nil {
		return nil, err
	}
	if link.Type() != "bridge" || !bytes.Equal(link.Attrs().HardwareAddr, n.mac) {
		return nil, fault.New(fault.AlreadyExists,
			"the interface %q is not this brig's (type %s, address %v); rename or remove it",
			n.bridge, link.Type(), link.Attrs().HardwareAddr)
	}
	return link, nil
}

// bridgeAddresses gives the IPv4 addresses of the bridge.
func bridgeAddresses(h *netlink.Handle, link netlink.Link) ([]netip.Prefix, error) {
	list, err := settled(func() ([]netlink.Addr, error) { return h.AddrList(link, unix.AF_INET) })
	if err != nil {
		return nil, classify(err)
	}
	var addrs []netip.Prefix
	for _, addr := range list {
		if p, ok := prefixOf(addr.IPNet); ok {
			addrs = append(addrs, p)
		}
	}
	return addrs, nil
}

// uplinkMTU is the MTU for the bridge: the smallest of the host's default routes.
func uplinkMTU(h *netlink.Handle) int {
	mtu := maxMTU
	routes, err := settled(func() ([]netlink.Route, error) { return h.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return mtu
	}
	for _, route := range routes {
		if p, ok := prefixOf(route.Dst); ok && p.Bits() > 0 {
			continue
		}
		if link, err := h.LinkByIndex(route.LinkIndex); err == nil && link.Attrs().MTU >= minMTU {
			mtu = min(mtu, link.Attrs().MTU)
		}
	}
	return mtu
}

// disableIPv6 keeps the host's IPv6 off an interface. A kernel without IPv6 is
// fine.
func disableIPv6(name string) error {
	path := filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6")
	if now, err := os.ReadFile(path); err == nil && bytes.HasPrefix(now, []byte("1")) {
		return nil
	}
	err := os.WriteFile(path, []byte("1"), 0)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot turn IPv6 off for %q: %w", name, classify(err))
	}
	return nil
}

// removeLink removes an interface that a start which was cut off left, so that
// its name is free. It takes some 20 ms when there is one.
func removeLink(h *netlink.Handle, name string) error {
	link, err := findLink(h, name)
	if err != nil || link == nil {
		return err
	}
	if !instanceLink(link) {
		return fault.New(fault.AlreadyExists, "the interface %q is not an instance's (type %s); rename or remove it",
			name, link.Type())
	}
	return deleteLink(h, link)
}

// removeAbandoned removes an interface that will not go by itself. A veth whose
// other end is in another namespace goes with that: removing it here as well
// would only make the caller wait for the kernel.
func removeAbandoned(h *netlink.Handle, name string) error {
	link, err := findLink(h, name)
	if err != nil || link == nil || !instanceLink(link) {
		return err
	}
	if link.Type() == "veth" && link.Attrs().NetNsID >= 0 {
		return nil
	}
	return deleteLink(h, link)
}

// instanceLink tells whether link is of a kind that instances have.
func instanceLink(link netlink.Link) bool {
	return link.Type() == "veth" || link.Type() == "tuntap" || link.Type() == "tun"
}

// findLink gives the interface with this name, nil if there is none.
func findLink(h *netlink.Handle, name string) (netlink.Link, error) {
	link, err := h.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot look for interface %q: %w", name, classify(err))
	}
	return link, nil
}

func deleteLink(h *netlink.Handle, link netlink.Link) error {
	err := h.LinkDel(link)
	if err == nil || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return fmt.Errorf("cannot remove interface %q: %w", link.Attrs().Name, classify(err))
}

// settled asks again while others change what is asked for.
func settled[T any](ask func() ([]T, error)) ([]T, error) {
	for range 10 {
		list, err := ask()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return ask()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf converts what netlink gives; false for nil.
func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addr.Unmap(), ones), ok
}
