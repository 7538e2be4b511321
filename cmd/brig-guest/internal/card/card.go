// Package card sets up the network cards that the host describes to a virtual machine,
// at its boot and when it is given one while it runs.
package card

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"

	"brig/instance"
)

// linkWait is how long the interfaces may take to appear.
const linkWait = 5 * time.Second

// Configure brings up the loopback and each interface that the host
// described. What cannot be done is in the error; the rest is done.
func Configure(nics []instance.NIC) error {
	var errs []error
	if lo, err := netlink.LinkByName("lo"); err == nil {
		errs = append(errs, netlink.LinkSetUp(lo))
	}
	links := make([]netlink.Link, len(nics))
	for i, nic := range nics {
		link, err := findLink(nic.MAC, linkWait)
		if err == nil {
			// A name of its own first, so that two may change places. It also
			// marks the name as given by somebody, which udev then keeps.
			err = netlink.LinkSetName(link, fmt.Sprintf("brig-%d", i))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot configure interface %s: %w", nic.Name, err))
			continue
		}
		links[i] = link
	}
	for i, nic := range nics {
		if links[i] == nil {
			continue
		}
		if err := configureLink(links[i], nic); err != nil {
			errs = append(errs, fmt.Errorf("cannot configure interface %s: %w", nic.Name, err))
		}
	}
	return errors.Join(errs...)
}

// newWait is how long a card that was just plugged in may take to appear.
const newWait = 20 * time.Second

// Add sets up a card that the machine has been given while it runs. It is safe to
// repeat.
func Add(nic instance.NIC) error {
	link, err := findLink(nic.MAC, newWait)
	if err == nil && link.Attrs().Name != nic.Name {
		// One that is up keeps its name.
		if err = netlink.LinkSetDown(link); err == nil {
			err = netlink.LinkSetName(link, nic.Name)
		}
	}
	if err == nil {
		err = configureLink(link, nic)
	}
	if err != nil {
		return fmt.Errorf("cannot configure interface %s: %w", nic.Name, err)
	}
	return nil
}

// findLink waits for the interface with a hardware address.
func findLink(mac string, wait time.Duration) (netlink.Link, error) {
	want, err := net.ParseMAC(mac)
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		links, err := netlink.LinkList()
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			if bytes.Equal(l.Attrs().HardwareAddr, want) {
				return l, nil
			}
		}
		if time.Now().After(end) {
			return nil, fmt.Errorf("no interface has the address %s", mac)
		}
	}
}

func configureLink(link netlink.Link, nic instance.NIC) error {
	if err := netlink.LinkSetName(link, nic.Name); err != nil {
		return err
	}
	if nic.MTU > 0 {
		if err := netlink.LinkSetMTU(link, nic.MTU); err != nil {
			return err
		}
	}
	for _, p := range nic.Addresses {
		addr := &netlink.Addr{IPNet: &net.IPNet{
			IP:   p.Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		}}
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("cannot add address %v: %w", p, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return err
	}
	if !nic.Gateway.IsValid() {
		return nil
	}
	route := &netlink.Route{LinkIndex: link.Attrs().Index, Gw: nic.Gateway.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("cannot add route by %v: %w", nic.Gateway, err)
	}
	return nil
}
