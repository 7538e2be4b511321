package network

import (
	"net"
	"net/netip"

	"brig/instance"
	"brig/instance/fault"
)

// State is how an interface of a running instance is, seen from inside.
type State struct {
	Name      string // in the guest
	HostName  string
	MAC       string
	MTU       int
	Up        bool
	Addresses []netip.Prefix // that brig gave; a guest may have added others
	Received  Counters
	Sent      Counters
}

// Counters count what went through an interface in one direction.
type Counters struct {
	Bytes, Packets, Errors, Drops uint64
}

// State asks the kernel how an interface is. NotFound means that the host has
// no such interface: the instance does not run.
func (n *Network) State(nic instance.NIC) (State, error) {
	h, err := open()
	if err != nil {
		return State{}, err
	}
	defer h.Close()
	link, err := findLink(h, nic.HostName)
	if err != nil {
		return State{}, err
	}
	if link == nil {
		return State{}, fault.New(fault.NotFound, "cannot find the interface %q of the instance: it does not run", nic.HostName)
	}
	attrs := link.Attrs()
	s := State{
		Name:      nic.Name,
		HostName:  nic.HostName,
		MAC:       nic.MAC,
		MTU:       attrs.MTU,
		Up:        attrs.Flags&net.FlagUp != 0,
		Addresses: nic.Addresses,
	}
	// What the host's end sends is what the guest receives.
	if stats := attrs.Statistics; stats != nil {
		s.Received = Counters{stats.TxBytes, stats.TxPackets, stats.TxErrors, stats.TxDropped}
		s.Sent = Counters{stats.RxBytes, stats.RxPackets, stats.RxErrors, stats.RxDropped}
	}
	return s, nil
}
