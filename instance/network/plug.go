package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// Plug gives a running container, of which pid is a process, the interface that Attach
// has described: it is there with its address, and up. A name that the container has
// already gives AlreadyExists. On error nothing of it is left.
func Plug(nic instance.NIC, pid int) error {
	if err := plug(nic, pid); err != nil {
		return fmt.Errorf("cannot add the network interface %q: %w", nic.Name, err)
	}
	return nil
}

func plug(nic instance.NIC, pid int) (err error) {
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		return err
	}
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	bridge, err := findLink(h, nic.Bridge)
	if err != nil || bridge == nil {
		return errors.Join(err, fault.New(fault.Unavailable, "the bridge %q is gone", nic.Bridge))
	}
	inside, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer inside.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = nic.HostName, nic.MTU
	err = h.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: nic.Name, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(inside.Fd()),
	})
	if errors.Is(err, unix.EEXIST) {
		return fault.New(fault.AlreadyExists, "there is one of this name in it, or %q on the host", nic.HostName)
	}
	if err != nil {
		return classify(err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeLink(h, nic.HostName))
		}
	}()
	if err := address(nic, netns.NsHandle(inside.Fd())); err != nil {
		return err
	}
	// The host itself has no business on this interface.
	if err := disableIPv6(nic.HostName); err != nil {
		return err
	}
	return connect(h, bridge, nic.HostName)
}

// address gives an interface in a network namespace its addresses and brings it up.
func address(nic instance.NIC, inside netns.NsHandle) error {
	h, err := netlink.NewHandleAt(inside, unix.NETLINK_ROUTE)
	if err != nil {
		return classify(err)
	}
	defer h.Close()
	link, err := h.LinkByName(nic.Name)
	if err != nil {
		return classify(err)
	}
	for _, a := range nic.Addresses {
		if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(a)}); err != nil {
			return fmt.Errorf("cannot give it the address %v: %w", a, classify(err))
		}
	}
	return classify(h.LinkSetUp(link))
}

// Unplug takes the interface of this name on the host away from whoever has it. One that
// is gone already is no error.
func Unplug(hostName string) error {
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	return removeLink(h, hostName)
}

// Replug makes the interfaces of a container that has booted again, of which pid is a
// process, those that it is to have: it came back with those that it was started with.
func Replug(id string, nics []instance.NIC, pid int) error {
	h, err := open()
	if err != nil {
		return err
	}
	defer h.Close()
	for i := range MaxNICs {
		name := HostName(id, i)
		link, err := findLink(h, name)
		if err != nil {
			return err
		}
		wanted := slices.IndexFunc(nics, func(n instance.NIC) bool { return n.HostName == name })
		switch {
		case wanted < 0 && link != nil:
			err = removeLink(h, name)
		case wanted >= 0 && link == nil:
			err = Plug(nics[wanted], pid)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
