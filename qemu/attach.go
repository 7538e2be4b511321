package qemu

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
	"brig/storage/qcow2"
)

var _ instance.Attacher = (*Driver)(nil)

// letGoTime bounds how long a guest may take to let go of a disk.
const letGoTime = 30 * time.Second

// Attaches tells whether a is a disk for which the machine has a port, or on one.
func (d *Driver) Attaches(ctx context.Context, m *instance.Machine, a instance.Attached) bool {
	if a.Dir != "" || a.Source != "" || a.CDROM || mustRun(m, "look at") != nil {
		return false
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return false
	}
	defer mon.Close()
	ports, err := d.ports(ctx, mon)
	return err == nil && (slices.Contains(ports, machine.VolumeDevice(a.Device)) || !has(ctx, mon, a) && slices.Contains(ports, ""))
}

// ports gives the device on each of the ports of a running machine, empty for a port that
// is free. One that was started by an older brig has none.
func (d *Driver) ports(ctx context.Context, mon *qmp.Monitor) (on []string, err error) {
	names, err := list(ctx, mon, "/machine/peripheral")
	if err != nil {
		return nil, err
	}
	for i := range machine.HotPorts {
		if slices.Contains(names, machine.HotPort(i)) {
			on = append(on, "")
		}
	}
	for _, name := range names {
		var bus string
		where := map[string]string{"path": "/machine/peripheral/" + name, "property": "parent_bus"}
		if err := mon.Run(ctx, "qom-get", where, &bus); err != nil {
			continue // it is no device
		}
		for i := range on {
			if strings.HasSuffix(bus, "/"+machine.HotPort(i)) && name != machine.HotPort(i) {
				on[i] = name
			}
		}
	}
	return on, nil
}

// list names what is below a path of QEMU's objects.
func list(ctx context.Context, mon *qmp.Monitor, path string) (names []string, err error) {
	var below []struct {
		Name string `json:"name"`
	}
	err = mon.Run(ctx, "qom-list", map[string]string{"path": path}, &below)
	for _, b := range below {
		names = append(names, b.Name)
	}
	return names, err
}

// has tells whether a machine has the disk a.
func has(ctx context.Context, mon *qmp.Monitor, a instance.Attached) bool {
	names, err := list(ctx, mon, "/machine/peripheral")
	return err != nil || slices.Contains(names, machine.VolumeDevice(a.Device))
}

// Attach gives a disk to a running machine, on a port that is free.
func (d *Driver) Attach(ctx context.Context, m *instance.Machine, a instance.Attached) error {
	if err := mustRun(m, "attach a disk to"); err != nil {
		return err
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err == nil {
		defer mon.Close()
		if has(ctx, mon, a) {
			return nil
		}
		err = d.plug(ctx, mon, a)
	}
	if err != nil {
		return fmt.Errorf("cannot attach %s to %q: %w", a, m.Name, err)
	}
	return nil
}

func (d *Driver) plug(ctx context.Context, mon *qmp.Monitor, a instance.Attached) error {
	ports, err := d.ports(ctx, mon)
	if err != nil {
		return err
	}
	port := slices.Index(ports, "")
	if port < 0 {
		return fault.New(fault.Unsupported, "it has no free port for another disk while it runs")
	}
	if err := qcow2.CheckDisk(a.Disk.Path, a.Disk.Format); err != nil {
		return err
	}
	file, format, err := machine.VolumeNodes(a)
	if err != nil {
		return err
	}
	node := machine.VolumeNode(a.Device)
	d.drop(ctx, mon, node, node+"-file") // what a killed command left
	if err := mon.Run(ctx, "blockdev-add", file, nil); err != nil {
		return err
	}
	err = mon.Run(ctx, "blockdev-add", format, nil)
	if err == nil {
		err = mon.Run(ctx, "device_add", map[string]any{
			"driver": "virtio-blk-pci", "id": machine.VolumeDevice(a.Device), "serial": machine.Serial(a.Device),
			"drive": node, "bus": machine.HotPort(port), "share-rw": a.Shared,
		}, nil)
	}
	if err != nil {
		d.drop(ctx, mon, node, node+"-file")
	}
	return err
}

// Detach takes a disk away from a running machine, whose guest has to let go of it.
func (d *Driver) Detach(ctx context.Context, m *instance.Machine, a instance.Attached) error {
	if err := mustRun(m, "detach a disk from"); err != nil {
		return err
	}
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err == nil {
		defer mon.Close()
		if !has(ctx, mon, a) {
			return nil
		}
		if err = d.unused(ctx, m, a); err == nil {
			err = d.unplug(ctx, mon, a)
		}
	}
	if err != nil {
		return fmt.Errorf("cannot detach %s from %q: %w", a, m.Name, err)
	}
	return nil
}

// unused asks the guest's agent whether nobody uses a disk.
func (d *Driver) unused(ctx context.Context, m *instance.Machine, a instance.Attached) error {
	if m.Firmware != "" {
		return fault.New(fault.Unsupported, "its disk boots by itself, without brig's agent, which could tell whether it is in use; stop it first")
	}
	conn, err := guest.Dial(ctx, m.Path(guest.AgentSocket))
	if err != nil {
		return err
	}
	return guest.Unused(ctx, conn, machine.Serial(a.Device))
}

// letGo removes a device and waits for the guest to let go of it.
func (d *Driver) letGo(ctx context.Context, mon *qmp.Monitor, id string) error {
	if err := mon.Run(ctx, "device_del", map[string]string{"id": id}, nil); err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, letGoTime)
	defer cancel()
	gone := func() bool {
		names, err := list(limited, mon, "/machine/peripheral")
		return err == nil && !slices.Contains(names, id)
	}
	if until(limited, gone) != nil {
		return fault.New(fault.Timeout, "the guest does not let go of it within %s; stop it first", letGoTime)
	}
	return nil
}

func (d *Driver) unplug(ctx context.Context, mon *qmp.Monitor, a instance.Attached) error {
	id := machine.VolumeDevice(a.Device)
	node, err := d.nodeOf(ctx, mon, id)
	if err != nil {
		return err
	}
	nodes, err := d.nodes(ctx, mon)
	if err != nil {
		return err
	}
	if err := d.letGo(ctx, mon, id); err != nil {
		return err
	}
	d.drop(ctx, mon, node, node+"-file")
	// Snapshots have put others in between.
	root, err := d.nodeOf(ctx, mon, machine.RootDevice)
	if err != nil {
		return err
	}
	d.dropUnused(ctx, mon, nodes, root)
	first := machine.VolumeNode(a.Device)
	d.drop(ctx, mon, first, first+"-file")
	return nil
}
