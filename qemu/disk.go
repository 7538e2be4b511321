package qemu

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
	"brig/storage/qcow2"
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
	current, err := d.nodeOf(ctx, mon, device)
	if err != nil || current == node {
		return false, err
	}
	if err := qcow2.CheckDisk(overlay.Path, overlay.Format); err != nil {
		return false, err
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

// RebaseDisk makes the machine read from backing what disk does not hold. It may be
// repeated: each step is left as it is when it was done before, and what an earlier
// program has asked for is done by the time this returns, because QEMU talks to one
// after the other.
func (d *Driver) RebaseDisk(ctx context.Context, m *instance.Machine, disk, backing instance.Disk) error {
	if err := mustRun(m, "rebase the disk of"); err != nil {
		return err
	}
	if err := qcow2.CheckDisk(backing.Path, backing.Format); err != nil {
		return fmt.Errorf("cannot rebase the disk of %q: %w", m.Name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, switchTime)
	defer cancel()
	mon, err := qmp.Dial(ctx, m.RunDir, rundir.QMP)
	if err != nil {
		return fmt.Errorf("cannot rebase the disk of %q: %w", m.Name, err)
	}
	defer mon.Close()
	if err := d.rebaseOn(ctx, mon, m, disk, backing); err != nil {
		return fmt.Errorf("cannot rebase the disk of %q on %q: %w", m.Name, backing.Path, err)
	}
	return nil
}

func (d *Driver) rebaseOn(ctx context.Context, mon *qmp.Monitor, m *instance.Machine, disk, backing instance.Disk) error {
	current, err := d.nodeOf(ctx, mon, machine.RootDevice)
	if err != nil {
		return err
	}
	if current != nodeName(disk.Path) && (current != machine.RootNode || m.Root.Disk.Path != disk.Path) {
		return fault.New(fault.WrongState, "its disk is not %q any more", disk.Path)
	}
	nodes, err := d.nodes(ctx, mon)
	if err != nil {
		return err
	}
	base := nodeName(backing.Path)
	if err := d.addBase(ctx, mon, backing, base, nodes); err != nil {
		return err
	}
	format, err := machine.FormatNode(disk, current)
	if err != nil {
		return err
	}
	format["backing"] = base
	// Reads and writes wait for a moment; the guest sees nothing of it.
	if err := mon.Run(ctx, "blockdev-reopen", map[string]any{"options": []any{format}}, nil); err != nil {
		d.drop(ctx, mon, base, base+"-file")
		return err
	}
	name, err := filepath.Rel(filepath.Dir(disk.Path), backing.Path)
	if err != nil {
		return err
	}
	header := map[string]string{"device": current, "image-node-name": current, "backing-file": name}
	if err := mon.Run(ctx, "change-backing-file", header, nil); err != nil {
		return err
	}
	d.dropUnused(ctx, mon, nodes, current, base)
	return nil
}

// addBase opens the backing file, with all below it, unless it is open.
func (d *Driver) addBase(ctx context.Context, mon *qmp.Monitor, backing instance.Disk, base string, nodes []string) error {
	format, err := machine.FormatNode(backing, base)
	if err != nil {
		return err
	}
	file := machine.FileNode(backing, base)
	format["read-only"], file["read-only"] = true, true
	if !slices.Contains(nodes, base+"-file") {
		if err := mon.Run(ctx, "blockdev-add", file, nil); err != nil {
			return err
		}
	}
	if slices.Contains(nodes, base) {
		return nil
	}
	if err := mon.Run(ctx, "blockdev-add", format, nil); err != nil {
		d.drop(ctx, mon, base+"-file")
		return err
	}
	return nil
}

// dropUnused closes the disks that the machine has left behind. QEMU refuses to
// close what is in use.
func (d *Driver) dropUnused(ctx context.Context, mon *qmp.Monitor, nodes []string, keep ...string) {
	var formats, files []string
	for _, node := range nodes {
		name, isFile := strings.CutSuffix(node, "-file")
		switch {
		case !strings.HasPrefix(node, rootPrefix) || slices.Contains(keep, name):
		case isFile:
			files = append(files, node)
		default:
			formats = append(formats, node)
		}
	}
	// What stands on another has to go first; QEMU names the newest first.
	d.drop(ctx, mon, append(formats, files...)...)
}

// nodeOf is the node that a disk is now.
func (d *Driver) nodeOf(ctx context.Context, mon *qmp.Monitor, device string) (node string, err error) {
	where := map[string]string{"path": "/machine/peripheral/" + device, "property": "drive"}
	return node, mon.Run(ctx, "qom-get", where, &node)
}

// nodes names all block nodes.
func (d *Driver) nodes(ctx context.Context, mon *qmp.Monitor) (names []string, err error) {
	var list []struct {
		Name string `json:"node-name"`
	}
	err = mon.Run(ctx, "query-named-block-nodes", map[string]bool{"flat": true}, &list)
	for _, n := range list {
		names = append(names, n.Name)
	}
	return names, err
}

// drop removes nodes that were added for nothing. An error of it would hide
// the one that matters, and a node too many does no harm.
func (d *Driver) drop(ctx context.Context, mon *qmp.Monitor, nodes ...string) {
	for _, node := range nodes {
		mon.Run(ctx, "blockdev-del", map[string]string{"node-name": node}, nil)
	}
}

// rootPrefix is what the names of the nodes of root disks begin with, RootNode's
// included.
const rootPrefix = "root-"

// nodeName is the name of the block node for a file. QEMU takes 31 characters.
func nodeName(path string) string {
	sum := sha256.Sum256([]byte(path))
	return rootPrefix + hex.EncodeToString(sum[:8])
}
