package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"brig/instance"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

// switchTime bounds how long the guest's file systems can be frozen.
const switchTime = 20 * time.Second

// SwitchDisk makes the machine go on in overlay. A repeated call finds it done.
func (d *Driver) SwitchDisk(ctx context.Context, m *instance.Machine, overlay instance.Disk) (quiesced bool, err error) {
	if err := mustRun(m, "switch the disk of"); err != nil {
		return false, err
	}
	ctx, cancel := context.WithTimeout(ctx, switchTime)
	defer cancel()
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return false, fmt.Errorf("cannot switch the disk of %q: %w", m.Name, err)
	}
	defer mon.Close()
	quiesced, err = d.switchTo(ctx, mon, m, machine.RootDevice, overlay)
	if err != nil {
		return false, fmt.Errorf("cannot switch the disk of %q to %q: %w", m.Name, overlay.Path, err)
	}
	return quiesced, nil
}

func (d *Driver) switchTo(ctx context.Context, mon *qmp.Monitor, m *instance.Machine, device string, overlay instance.Disk) (quiesced bool, err error) {
	node := nodeName(overlay.Path)
	var current string
	where := map[string]string{"path": "/machine/peripheral/" + device, "property": "drive"}
	if err := mon.Run(ctx, "qom-get", where, &current); err != nil {
		return false, err
	}
	if current == node {
		return false, nil
	}
	format, err := machine.FormatNode(overlay, node)
	if err != nil {
		return false, err
	}
	// The backing file is what the machine has open already.
	format["backing"] = nil
	if err := mon.Run(ctx, "blockdev-add", machine.FileNode(overlay, node), nil); err != nil {
		return false, err
	}
	if err := mon.Run(ctx, "blockdev-add", format, nil); err != nil {
		d.drop(ctx, mon, node+"-file")
		return false, err
	}
	thaw, quiesced := d.quiesce(ctx, m)
	err = mon.Run(ctx, "blockdev-snapshot", map[string]string{"node": current, "overlay": node}, nil)
	stillFrozen := thaw()
	if err != nil {
		d.drop(ctx, mon, node, node+"-file")
		return false, err
	}
	return quiesced && stillFrozen, nil
}

// drop removes nodes that were added for nothing. An error of it would hide
// the one that matters, and a node too many does no harm.
func (d *Driver) drop(ctx context.Context, mon *qmp.Monitor, nodes ...string) {
	for _, node := range nodes {
		mon.Run(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
	}
}

// nodeName is the name of the block node for a file. QEMU takes 31 characters.
func nodeName(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "root-" + hex.EncodeToString(sum[:8])
}
