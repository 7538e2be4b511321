package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"brig/instance"
	"brig/instance/keeper"
	"brig/instance/network"
	"brig/lxc/config"
)

// rebootTimeout bounds how long a container that boots again waits for its cgroups,
// and how long it is waited for.
const rebootTimeout = 20 * time.Second

// Reboot removes the cgroups of the run before. liblxc has tried that once, which
// fails as long as the kernel, or a command that was just entering, keeps a process in
// one of them, and would find them in its way now and give up.
func (Runner) Reboot(ctx context.Context, m *instance.Machine) error {
	h, err := findHierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rebootTimeout)
	defer cancel()
	c := h.of(m)
	err = until(ctx, func() (bool, error) { return c.removePayload(), nil })
	if err != nil {
		return fmt.Errorf("container %q boots again, and there are processes left in its cgroups: %w", m.Name, err)
	}
	return nil
}

// Rebooted gives a container that has booted again the limits, the devices and the
// network interfaces that it had before. liblxc makes its new cgroups of what the monitor read at the first start, and sets
// limits until the init is executed.
func (Runner) Rebooted(ctx context.Context, m *instance.Machine) error {
	err := limitAgain(ctx, m)
	if _, gone := os.Lstat(m.Path(instance.MachineFile)); errors.Is(gone, fs.ErrNotExist) {
		return nil // it has ended for good
	}
	if err != nil {
		return fmt.Errorf("container %q has booted again with the limits that it was started with: %w", m.Name, err)
	}
	return nil
}

func limitAgain(ctx context.Context, m *instance.Machine) error {
	h, err := findHierarchies()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, rebootTimeout)
	defer cancel()
	c := h.of(m)
	if err := until(ctx, func() (bool, error) { return c.init() != 0, nil }); err != nil {
		return err
	}
	if err := c.executed(ctx, filepath.Join(m.LogDir, config.Log)); err != nil {
		return err
	}
	// What it is to have may become something else meanwhile.
	for {
		now, err := keeper.Load(m.RunDir)
		if err != nil {
			return err
		}
		if err := h.Limit(c.names.Payload, now.ID, now.Config); err != nil {
			return err
		}
		if err := c.allowAgain(now); err != nil {
			return err
		}
		if err := network.Replug(now.ID, now.NICs, c.init()); err != nil {
			return err
		}
		again, err := keeper.Load(m.RunDir)
		if err != nil || maps.Equal(now.Config, again.Config) && slices.EqualFunc(now.Volumes, again.Volumes, sameNode) && slices.EqualFunc(now.NICs, again.NICs, sameNIC) {
			return err
		}
	}
}

func sameNIC(a, b instance.NIC) bool { return a.HostName == b.HostName && a.MAC == b.MAC }

func sameNode(a, b instance.Attached) bool {
	return a.Device == b.Device && (a.Node == nil) == (b.Node == nil) && (a.Node == nil || *a.Node == *b.Node)
}
