package agent

import (
	"net"

	"brig/instance/guest/wire"
)

// Version is told to the host.
const Version = "1"

// Bounds of what info tells.
const (
	maxInterfaces = 64
	maxAddresses  = 64
)

// info tells how the machine is.
func (a *Agent) info() *wire.Info {
	e, _ := a.state()
	return &wire.Info{
		Version:    Version,
		State:      e.State,
		System:     a.settings.Process == nil,
		Interfaces: interfaces(),
	}
}

// interfaces lists the network interfaces. What cannot be told is left out.
func interfaces() []wire.Interface {
	all, _ := net.Interfaces()
	var list []wire.Interface
	for _, i := range all[:min(len(all), maxInterfaces)] {
		one := wire.Interface{Name: i.Name, MAC: i.HardwareAddr.String(), MTU: i.MTU}
		addrs, _ := i.Addrs()
		for _, a := range addrs[:min(len(addrs), maxAddresses)] {
			one.Addresses = append(one.Addresses, a.String())
		}
		list = append(list, one)
	}
	return list
}
