package qemu

import (
	"context"
	"fmt"
	"net"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
	"brig/qemu/runner"
)

var _ instance.NICAttacher = (*Driver)(nil)

// nicID is the id of a network card that a running machine was given, and of what
// connects it with the host.
func nicID(nic instance.NIC) (device, netdev string) {
	return "nic-" + nic.HostName, "net-" + nic.HostName
}

// AttachesNIC tells whether the machine has a port for a card, or the card is on one. It
// has to be up: its guest has to set the card up, or let go of it.
func (d *Driver) AttachesNIC(ctx context.Context, m *instance.Machine, nic instance.NIC) bool {
	if s := d.State(m); s.PID == 0 || m.Firmware == "" && s.Health != ready {
		return false
	}
	if nic.Half {
		return true
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return false
	}
	defer mon.Close()
	ports, err := d.ports(ctx, mon)
	if err != nil {
		return false
	}
	if nic.HostName == "" {
		return slices.Contains(ports, "")
	}
	device, _ := nicID(nic)
	return slices.Contains(ports, device)
}

// AttachNIC gives a card to a running machine, on a port that is free.
func (d *Driver) AttachNIC(ctx context.Context, m *instance.Machine, nic instance.NIC) error {
	if err := d.attachNIC(ctx, m, nic); err != nil {
		return fmt.Errorf("cannot add the network interface %q to %q: %w", nic.Name, m.Name, err)
	}
	return nil
}

func (d *Driver) attachNIC(ctx context.Context, m *instance.Machine, nic instance.NIC) error {
	if err := mustRun(m, "add a network interface to"); err != nil {
		return err
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return err
	}
	err = d.plugNIC(ctx, mon, nic)
	mon.Close()
	if err != nil || m.Firmware != "" {
		return err
	}
	conn, err := guest.Dial(ctx, m.Path(guest.AgentSocket))
	if err != nil {
		return err
	}
	return guest.AddNIC(ctx, conn, nic)
}

func (d *Driver) plugNIC(ctx context.Context, mon *qmp.Monitor, nic instance.NIC) error {
	mac, err := net.ParseMAC(nic.MAC)
	if err != nil {
		return err
	}
	device, netdev := nicID(nic)
	ports, err := d.ports(ctx, mon)
	if err != nil {
		return err
	}
	port := slices.Index(ports, "")
	if port < 0 {
		return fault.New(fault.Unsupported, "it has no free port for another card while it runs")
	}
	tap, err := runner.OpenTap(nic)
	if err != nil {
		return err
	}
	err = mon.Give(ctx, netdev, tap)
	tap.Close()
	if err == nil {
		err = mon.Run(ctx, "netdev_add", map[string]string{"type": "tap", "id": netdev, "fd": netdev}, nil)
	}
	if err != nil {
		mon.Run(ctx, "closefd", map[string]string{"fdname": netdev}, nil)
		return err
	}
	options := map[string]any{
		// Without romfile the firmware would load a boot ROM for the network.
		"driver": "virtio-net-pci", "id": device, "netdev": netdev, "mac": mac.String(), "romfile": "", "bus": machine.HotPort(port),
	}
	if nic.MTU > 0 {
		options["host_mtu"] = nic.MTU
	}
	if err := mon.Run(ctx, "device_add", options, nil); err != nil {
		mon.Run(ctx, "netdev_del", map[string]string{"id": netdev}, nil)
		return err
	}
	return nil
}

// DetachNIC takes a card away from a running machine, whose guest has to let go of it.
func (d *Driver) DetachNIC(ctx context.Context, m *instance.Machine, nic instance.NIC) error {
	if err := d.detachNIC(ctx, m, nic); err != nil {
		return fmt.Errorf("cannot take the network interface %q away from %q: %w", nic.Name, m.Name, err)
	}
	return nil
}

func (d *Driver) detachNIC(ctx context.Context, m *instance.Machine, nic instance.NIC) error {
	if err := mustRun(m, "take a network interface away from"); err != nil {
		return err
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return err
	}
	defer mon.Close()
	device, netdev := nicID(nic)
	names, err := list(ctx, mon, "/machine/peripheral")
	if err != nil {
		return err
	}
	if slices.Contains(names, device) {
		if err := d.letGo(ctx, mon, device); err != nil {
			return err
		}
	}
	// What a killed command left may be any of these. QEMU refuses what is not there.
	mon.Run(ctx, "netdev_del", map[string]string{"id": netdev}, nil)
	mon.Run(ctx, "closefd", map[string]string{"fdname": netdev}, nil)
	return nil
}
