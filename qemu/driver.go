// Package qemu is the instance.Driver for virtual machines. It starts them
// through a keeper (package runner is its other half, inside brig-keeper) and
// from then on talks to QEMU by QMP, to the guest by its agent, and asks the
// kernel whether the machine runs: an open file description that keeper and
// QEMU share holds a lock. Nothing here waits without a deadline for a QEMU or
// a guest.
package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/qemu/boot"
	"brig/qemu/firmware"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
	"brig/qemu/runner"
)

// Driver runs virtual machines.
type Driver struct {
	kernels *boot.Store
}

// New uses the initramfs cache of kernels.
func New(kernels *boot.Store) *Driver { return &Driver{kernels: kernels} }

// The contracts.
var (
	_ instance.Driver       = (*Driver)(nil)
	_ instance.DiskSwitcher = (*Driver)(nil)
	_ instance.DiskRebaser  = (*Driver)(nil)
	_ instance.Meter        = (*Driver)(nil)
	_ instance.Filer        = (*Driver)(nil)
	_ keeper.Runner         = runner.Keeper{}
)

// Type is instance.VirtualMachine.
func (d *Driver) Type() instance.Type { return instance.VirtualMachine }

// Check looks for QEMU.
func (d *Driver) Check(context.Context) error {
	if _, err := exec.LookPath(runner.Program); err != nil {
		return runner.Missing()
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fault.New(fault.Unsupported, "cannot run virtual machines: /dev/net/tun is missing; load the kernel module tun")
	}
	return nil
}

// Start makes sure of the initramfs or firmware and starts the machine through a keeper.
func (d *Driver) Start(ctx context.Context, m *instance.Machine) error {
	if held, err := rundir.Held(m.Path(rundir.Lock)); err != nil {
		return err
	} else if held {
		return fault.New(fault.WrongState, "cannot start %q: it runs already", m.Name)
	}
	if err := os.MkdirAll(m.RunDir, 0o700); err != nil {
		return fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	if m.Kernel == nil && m.Firmware == "" {
		return fault.New(fault.Unsupported, "cannot start %q: it has no kernel to boot, and its disk does not boot by itself: import a kernel with brig kernel import", m.Name)
	}
	if m.Kernel == nil {
		if err := firmware.Prepare(m.RunDir, m.Firmware, "/usr/share"); err != nil {
			return fmt.Errorf("cannot start %q: %w", m.Name, err)
		}
		return keeper.Spawn(ctx, m)
	}
	initramfs, err := d.kernels.Initramfs(ctx, *m.Kernel, m.Helpers.Guest)
	if err != nil {
		return fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	link := m.Path(rundir.Initramfs)
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	if err := os.Symlink(initramfs, link); err != nil {
		return fmt.Errorf("cannot start %q: %w", m.Name, err)
	}
	return keeper.Spawn(ctx, m)
}

// Adopt gives a machine that runs without a keeper a new one. One that has a
// keeper, or does not run, is left alone.
func (d *Driver) Adopt(ctx context.Context, m *instance.Machine) error {
	held, err := rundir.Held(m.Path(rundir.Lock))
	if err != nil || !held {
		return err
	}
	if kept, err := rundir.Held(m.Path(rundir.KeeperLock)); err != nil || kept {
		return err
	}
	if err := keeper.Spawn(ctx, m); err != nil && !fault.Is(err, fault.Busy) {
		return fmt.Errorf("cannot give %q a new keeper: %w", m.Name, err)
	}
	return nil
}

// Freeze stops the machine's processors.
func (d *Driver) Freeze(ctx context.Context, m *instance.Machine) error {
	return d.pause(ctx, m, "pause", "stop", true)
}

// Thaw lets them go on.
func (d *Driver) Thaw(ctx context.Context, m *instance.Machine) error {
	return d.pause(ctx, m, "resume", "cont", false)
}

// noteTime is how long a keeper may take to note in state.json what happened.
const noteTime = 2 * time.Second

func (d *Driver) pause(ctx context.Context, m *instance.Machine, verb, command string, frozen bool) error {
	if err := mustRun(m, verb); err != nil {
		return err
	}
	if err := qmp.One(ctx, m.RunDir, command, nil, nil); err != nil {
		return fmt.Errorf("cannot %s %q: %w", verb, m.Name, err)
	}
	noted := func() bool {
		s, err := rundir.ReadState(m.RunDir)
		return err == nil && s.Frozen == frozen
	}
	if kept, err := rundir.Held(m.Path(rundir.KeeperLock)); err == nil && !kept && !noted() {
		s, err := rundir.ReadState(m.RunDir)
		if err != nil {
			return fmt.Errorf("cannot %s %q: %w", verb, m.Name, err)
		}
		s.Frozen = frozen
		return rundir.WriteState(m.RunDir, s)
	}
	ctx, cancel := context.WithTimeout(ctx, noteTime)
	defer cancel()
	return until(ctx, noted)
}

// mustRun gives a wrong-state error for a machine that does not run.
func mustRun(m *instance.Machine, verb string) error {
	held, err := rundir.Held(m.Path(rundir.Lock))
	if err != nil {
		return fmt.Errorf("cannot %s %q: %w", verb, m.Name, err)
	}
	if !held {
		return fault.New(fault.WrongState, "cannot %s %q: it is stopped", verb, m.Name)
	}
	return nil
}

// until waits for a condition that nothing announces.
func until(ctx context.Context, done func() bool) error {
	wait := time.Millisecond
	for !done() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
		wait = min(wait*2, 20*time.Millisecond)
	}
	return nil
}
