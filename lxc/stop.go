package lxc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/run"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// endTimeout bounds how long a killed container and its monitor may take.
const endTimeout = 20 * time.Second

// Stop ends m. It needs neither liblxc nor its monitor.
func (d *Driver) Stop(ctx context.Context, m *instance.Machine, o instance.StopOptions) error {
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	alive, frozen, err := c.life()
	if err != nil {
		return fmt.Errorf("cannot stop container %q: %w", m.Name, err)
	}
	if alive && !o.Force {
		if frozen {
			if err := c.freeze(false); err != nil {
				return fmt.Errorf("cannot stop container %q: %w", m.Name, err)
			}
		}
		if err := d.halt(ctx, m, c, o.Timeout); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	signal := unix.Signal(0)
	if o.Force {
		signal = unix.SIGKILL
	}
	if err := d.end(ctx, m, c, signal); err != nil {
		return fmt.Errorf("cannot stop container %q: %w", m.Name, err)
	}
	return nil
}

// halt asks init to halt and waits until it has ended.
func (d *Driver) halt(ctx context.Context, m *instance.Machine, c cgroup, timeout time.Duration) error {
	init, pid, err := c.openInit()
	if err != nil || init == nil {
		return err
	}
	defer init.Close()
	wait := ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		wait, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	awaitInit(wait, m, pid)
	if c.monitor() == 0 {
		hush(init, m, pid)
	}
	if err := unix.PidfdSendSignal(int(init.Fd()), haltSignal(m, pid), nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot ask container %q to halt: %w", m.Name, err)
	}
	err = ended(wait, init)
	if err != nil && ctx.Err() == nil {
		return fault.New(fault.Timeout, "cannot stop container %q: its init has not ended after %s; use --force to end it", m.Name, timeout)
	}
	if err != nil {
		return fmt.Errorf("cannot stop container %q: %w", m.Name, err)
	}
	return nil
}

// hush has systemd print nothing while it halts: with the monitor went the
// console, and systemd tries for a second to open it again for each line.
func hush(init *os.File, m *instance.Machine, pid int) {
	if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err != nil || filepath.Base(exe) != "systemd" || config.IsApp(m) {
		return
	}
	if signal, err := guest.ParseSignal("SIGRTMIN+21"); err == nil {
		_ = unix.PidfdSendSignal(int(init.Fd()), signal, nil, 0) // halting is slower without
	}
}

// listenTimeout bounds how long an init may take until it heeds signals.
const listenTimeout = 3 * time.Second

// awaitInit waits until a signal to init is not lost: the kernel drops those
// that process 1 does not expect. It gives up on one that never will.
func awaitInit(ctx context.Context, m *instance.Machine, pid int) {
	ctx, cancel := context.WithTimeout(ctx, listenTimeout)
	defer cancel()
	_ = until(ctx, func() (bool, error) {
		return executed(pid, m.Helpers.Keeper) && answers(m, pid) && heeds(pid, haltSignal(m, pid)), nil
	})
}

// heeds tells whether a process catches a signal or keeps it for itself to read.
func heeds(pid int, signal unix.Signal) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for _, field := range []string{"SigBlk", "SigCgt"} {
		_, rest, _ := strings.Cut(string(status), "\n"+field+":")
		line, _, _ := strings.Cut(rest, "\n")
		if mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64); err == nil && mask&(1<<(signal-1)) != 0 {
			return true
		}
	}
	return false
}

// haltSignal is what the init of m takes as an order to power off.
func haltSignal(m *instance.Machine, pid int) unix.Signal {
	name := "SIGPWR"
	if config.IsApp(m) {
		name = guest.HaltSignal
	} else if exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe"); err == nil {
		switch filepath.Base(exe) {
		case "systemd":
			name = "SIGRTMIN+3"
		case "busybox":
			name = "SIGUSR2"
		}
	}
	signal, err := guest.ParseSignal(name)
	if err != nil {
		panic(err) // the names are ours
	}
	return signal
}

// end waits until the container has ended and its keeper has cleaned up. With a
// signal it first sends that to init: the kernel ends the rest with it. The
// monitor may live a little longer: its mount namespace ends with it, and that
// writes to disk what the container left in memory.
func (d *Driver) end(ctx context.Context, m *instance.Machine, c cgroup, signal unix.Signal) error {
	init, _, err := c.openInit()
	if err != nil {
		return err
	}
	if init != nil {
		defer init.Close()
		if signal != 0 {
			if err := c.kill(init, signal); err != nil {
				return err
			}
		}
		if err := ended(ctx, init); err != nil {
			return fmt.Errorf("its init does not end: %w", err)
		}
	}
	if err := c.empty(ctx); err != nil {
		return fmt.Errorf("its processes do not end: %w", err)
	}
	c.removePayload()
	gone := func() (bool, error) {
		_, err := os.Lstat(m.Path(instance.MachineFile))
		return errors.Is(err, fs.ErrNotExist), ignoreMissing(err)
	}
	clean := false
	err = until(ctx, func() (_ bool, err error) {
		clean, err = gone()
		return clean || c.monitor() == 0, err
	})
	if err != nil {
		return fmt.Errorf("its monitor does not clean up: %w", err)
	}
	if clean, err = gone(); !clean && err == nil {
		// The monitor was killed.
		_, err = run.Output(ctx, m.Helpers.Keeper, "ended", m.RunDir)
	}
	c.leave()
	c.remove()
	return errors.Join(err, os.RemoveAll(config.PublicDir(m)))
}

// kill sends a signal to init, and lets a frozen one receive it.
func (c cgroup) kill(init *os.File, signal unix.Signal) error {
	if err := unix.PidfdSendSignal(int(init.Fd()), signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return err
	}
	if c.h.V2 {
		return nil
	}
	return ignoreMissing(c.freeze(false))
}

// openInit opens the container's init; nil when there is none.
func (c cgroup) openInit() (*os.File, int, error) {
	for {
		pid := c.init()
		f, err := openProcess(pid)
		if err != nil || f == nil {
			return nil, 0, err
		}
		// The id may have gone to another process before it was opened.
		if c.init() == pid {
			return f, pid, nil
		}
		f.Close()
	}
}

// openProcess opens a process; nil when it is gone.
func openProcess(pid int) (*os.File, error) {
	if pid == 0 {
		return nil, nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open process %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// ended waits until a process has ended or ctx does.
func ended(ctx context.Context, process *os.File) error {
	wake, err := newWaker(ctx)
	if err != nil {
		return err
	}
	defer wake.close()
	ready, err := wake.poll(int(process.Fd()), unix.POLLIN)
	if err == nil && !ready {
		err = ctx.Err()
	}
	return err
}

// empty waits until no process is left in the container.
func (c cgroup) empty(ctx context.Context) error {
	return until(ctx, func() (bool, error) {
		alive, _, err := c.life()
		return !alive, err
	})
}

// look is the pause between two looks at what nothing announces. It adds to how
// long starting and stopping take, which is some ten milliseconds.
const look = 250 * time.Microsecond

// until waits for a condition that nothing announces.
func until(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
