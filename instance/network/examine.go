package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
)

// Fault is something about the network that is not as brig made it.
type Fault struct {
	ID   string // of the instance that it is about; empty: the network itself
	Text string
}

// Examine tells what is wrong with the network, and changes nothing. Alive says of an
// instance whether it runs or is being started. Repair mends all of it.
func (n *Network) Examine(alive func(id string) bool) ([]Fault, error) {
	h, err := open()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	link, err := n.ownBridge(h)
	if err != nil {
		return []Fault{{Text: err.Error()}}, nil
	}
	var faults []Fault
	used := false
	for _, id := range n.users() {
		if !alive(id) {
			faults = append(faults, Fault{id, "it is noted as a user of the network and does not run"})
			continue
		}
		used = true
		for i := range MaxNICs {
			name := HostName(id, i)
			if i > 0 {
				if there, err := findLink(h, name); err == nil && there == nil {
					continue // most have one
				}
			}
			if text := portFault(h, link, name); text != "" {
				faults = append(faults, Fault{id, text})
			}
		}
	}
	if !used {
		if link != nil && len(faults) == 0 {
			faults = append(faults, Fault{Text: fmt.Sprintf("the bridge %q is there although no instance uses it", n.bridge)})
		}
		return faults, nil
	}
	subnet, err := n.Subnet()
	if err != nil {
		return append(faults, Fault{Text: err.Error()}), nil
	}
	return append(faults, n.faults(h, link, subnet)...), nil
}

// faults tells what is wrong with the network of a subnet while it is in use.
func (n *Network) faults(h *netlink.Handle, link netlink.Link, subnet netip.Prefix) []Fault {
	var faults []Fault
	add := func(format string, args ...any) { faults = append(faults, Fault{Text: fmt.Sprintf(format, args...)}) }
	if link == nil {
		add("the bridge %q is gone, and instances use it", n.bridge)
	} else {
		if link.Attrs().Flags&net.FlagUp == 0 {
			add("the bridge %q is down", n.bridge)
		}
		if addrs, err := bridgeAddresses(h, link); err == nil && !slices.Equal(addrs, []netip.Prefix{gatewayPrefix(subnet)}) {
			add("the bridge %q has the addresses %v instead of %v", n.bridge, addrs, gatewayPrefix(subnet))
		}
	}
	if !n.hasTable() {
		add("the table %q of nftables is gone: instances reach nothing outside", n.table)
	}
	if !n.forwardingHeld() {
		add("nobody keeps IPv4 forwarding on for instances")
	}
	return faults
}

// portFault tells what is wrong with the host's end of a running instance's interface.
func portFault(h *netlink.Handle, bridge netlink.Link, name string) string {
	link, err := findLink(h, name)
	switch {
	case err != nil:
		return err.Error()
	case link == nil:
		return fmt.Sprintf("the host's end of its network interface, %q, is gone", name)
	case bridge != nil && link.Attrs().MasterIndex != bridge.Attrs().Index:
		return fmt.Sprintf("the host's end of its network interface, %q, is not on the bridge", name)
	case link.Attrs().Flags&net.FlagUp == 0:
		return fmt.Sprintf("the host's end of its network interface, %q, is down", name)
	}
	return ""
}

// Repair makes the network again what it should be for the instances that run, or
// removes it if there is none. An interface that is gone comes back only when its
// instance starts again.
func (n *Network) Repair(ctx context.Context, alive func(id string) bool) error {
	if err := n.Reconcile(ctx, alive); err != nil {
		return err
	}
	err := n.withHandle(ctx, func(h *netlink.Handle) error {
		users := n.users()
		if len(users) == 0 {
			return nil
		}
		subnet, err := n.subnet(ctx, h)
		if err != nil {
			return err
		}
		if _, ok := n.healthy(h, subnet); !ok {
			if _, err := n.bringUp(ctx, h, subnet, users[0]); err != nil {
				return err
			}
		}
		link, err := n.ownBridge(h)
		if err != nil || link == nil {
			return err
		}
		for _, id := range users {
			for i := range MaxNICs {
				if err := connect(h, link, HostName(id, i)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot repair the network: %w", err)
	}
	return nil
}

// connect puts the host's end of an interface, if it is there, on the bridge.
func connect(h *netlink.Handle, bridge netlink.Link, name string) error {
	link, err := findLink(h, name)
	if err != nil || link == nil {
		return err
	}
	if link.Attrs().MasterIndex != bridge.Attrs().Index {
		if err := h.LinkSetMaster(link, bridge); err != nil {
			return fmt.Errorf("cannot put %q on the bridge: %w", name, classify(err))
		}
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("cannot bring %q up: %w", name, classify(err))
	}
	return nil
}
