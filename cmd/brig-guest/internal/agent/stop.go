package agent

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/control"
	"brig/instance/fault"
	"brig/instance/guest"
)

// sigPowerOff starts poweroff.target in systemd: SIGRTMIN+4 of the C library.
const sigPowerOff = unix.Signal(38)

// stopWait bounds how long the image's own command may take to ask its init.
const stopWait = 20 * time.Second

// stopper makes what asks the machine to end: the main process of an app gets
// its stop signal from process 1, which also ends the machine where nothing of the
// image runs; a system is asked as its init wants it.
func stopper(s *guest.Settings, ctl *os.File) func(context.Context) error {
	if s.Process == nil && !s.Files {
		return stopSystem
	}
	return func(context.Context) error {
		if err := control.Send(ctl, control.Message{Stop: true}); err != nil {
			return fault.New(fault.Unavailable, "cannot tell process 1 to stop: %w", err)
		}
		return nil
	}
}

// stopSystem asks the init of a system to power off.
func stopSystem(ctx context.Context) error {
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		if err := unix.Kill(1, sigPowerOff); err != nil {
			return fmt.Errorf("cannot ask systemd to power off: %w", err)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stopWait)
	defer cancel()
	env := []string{"PATH=" + guest.DefaultPath}
	for _, args := range [][]string{{"poweroff"}, {"shutdown", "-h", "-P", "now"}, {"halt", "-p"}} {
		path, err := guest.LookPath(args[0], "/", env, os.Stat)
		if err != nil {
			continue
		}
		cmd := exec.CommandContext(ctx, path, args[1:]...)
		cmd.Env, cmd.Dir = env, "/"
		if err := cmd.Run(); err != nil {
			return fault.New(fault.Unavailable, "cannot power off with %s: %w", path, err)
		}
		return nil
	}
	return fault.New(fault.Unsupported, "cannot power off: the image has no systemd, poweroff, shutdown or halt")
}
