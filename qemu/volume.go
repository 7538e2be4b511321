package qemu

import (
	"context"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

// The contracts of volumes.
var (
	_ instance.VolumeSwitcher = (*Driver)(nil)
	_ instance.Quiescer       = (*Driver)(nil)
)

// SwitchVolume makes the machine go on in overlay with the disk of a volume. A
// repeated call finds it done.
func (d *Driver) SwitchVolume(ctx context.Context, m *instance.Machine, device string, overlay instance.Disk) (quiesced bool, err error) {
	if err := mustRun(m, "switch a disk of"); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, switchTime)
	defer cancel()
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return false, fmt.Errorf("cannot switch the disk %q of %q: %w", device, m.Name, err)
	}
	defer mon.Close()
	quiesced, err = d.switchTo(ctx, mon, m, machine.VolumeDevice(device), overlay)
	if err != nil {
		return false, fmt.Errorf("cannot switch the disk %q of %q: %w", device, m.Name, err)
	}
	return quiesced, nil
}

// Quiesce has the guest's agent freeze its file systems, if it can.
func (d *Driver) Quiesce(ctx context.Context, m *instance.Machine) (release func() error, err error) {
	thaw, frozen := d.quiesce(ctx, m)
	return func() error {
		if still := thaw(); frozen && !still {
			return fault.New(fault.Timeout, "the file systems of %q thawed by themselves before all was kept", m.Name)
		}
		return nil
	}, nil
}
