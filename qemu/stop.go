package qemu

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

const (
	askTime     = 5 * time.Second  // for the guest's agent to take the wish
	askAgain    = 10 * time.Second // between two requests
	quitTime    = 3 * time.Second  // for QEMU to close its disks and end
	killTime    = 20 * time.Second // for the kernel to take QEMU down
	cleanUpTime = 5 * time.Second  // for the keeper to clean up after it
)

// Stop asks the guest's agent to end, or presses the power button if there is
// none. With Force QEMU is told to end, and killed if it does not.
func (d *Driver) Stop(ctx context.Context, m *instance.Machine, o instance.StopOptions) error {
	held, err := rundir.Held(m.Path(rundir.Lock))
	if err != nil || !held {
		return err
	}
	kept, err := rundir.Held(m.Path(rundir.KeeperLock))
	if err != nil {
		return err
	}
	if o.Force {
		err = d.end(ctx, m)
	} else {
		err = d.shutDown(ctx, m, o.Timeout)
	}
	if err != nil || !kept {
		return err
	}
	// The keeper removes machine.json last.
	ctx, cancel := context.WithTimeout(ctx, cleanUpTime)
	defer cancel()
	err = until(ctx, func() bool {
		_, err := os.Lstat(m.Path(instance.MachineFile))
		return errors.Is(err, fs.ErrNotExist)
	})
	if err != nil {
		return fault.New(fault.Timeout, "cannot stop %q cleanly: it has ended, but its keeper has not cleaned up within %v", m.Name, cleanUpTime)
	}
	return nil
}

var errNoAgent = errors.New("its disk boots by itself")

// shutDown asks the guest to end and waits until it has.
func (d *Driver) shutDown(ctx context.Context, m *instance.Machine, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	if d.State(m).Status == instance.Frozen {
		if err := d.Thaw(ctx, m); err != nil {
			return err
		}
	}
	for {
		agentErr := errNoAgent
		if m.Firmware == "" {
			agentErr = d.ask(ctx, m)
		}
		if agentErr != nil {
			if err := qmp.One(ctx, m.RunDir, "system_powerdown", nil, nil); err != nil && ctx.Err() == nil && !gone(m) {
				return fmt.Errorf("cannot stop %q: %w", m.Name, err)
			}
		}
		// An init that has just started hears neither, so a system is asked
		// again until it does. An app was sent its signal, and once is enough.
		wait, cancel := ctx, context.CancelFunc(func() {})
		if agentErr != nil || m.Boot.Process == nil {
			wait, cancel = context.WithTimeout(ctx, askAgain)
		}
		err := until(wait, func() bool { return gone(m) })
		cancel()
		if err == nil {
			return nil
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fault.New(fault.Timeout, "cannot stop %q: its guest did not shut down in time; force it, or wait longer", m.Name)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// end ends QEMU without asking the guest.
func (d *Driver) end(ctx context.Context, m *instance.Machine) error {
	limited, cancel := context.WithTimeout(ctx, quitTime)
	defer cancel()
	if qmp.One(limited, m.RunDir, "quit", nil, nil) == nil && until(limited, func() bool { return gone(m) }) == nil {
		return nil
	}
	state, _ := rundir.ReadState(m.RunDir)
	p, err := rundir.Find(m.RunDir, state.PID)
	if err == nil {
		err = p.Kill()
		p.Close()
	}
	if err != nil && !gone(m) && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot stop %q: %w", m.Name, err)
	}
	ctx, cancel = context.WithTimeout(ctx, killTime)
	defer cancel()
	if err := until(ctx, func() bool { return gone(m) }); err != nil {
		return fault.New(fault.Timeout, "cannot stop %q: QEMU was killed, and is still there after %v", m.Name, killTime)
	}
	return nil
}

// gone tells whether neither QEMU nor a keeper that cleans up after it is
// there.
func gone(m *instance.Machine) bool {
	held, err := rundir.Held(m.Path(rundir.Lock))
	return err == nil && !held
}
