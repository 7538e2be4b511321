// Package boot is the init of a virtual machine: it runs from brig's initial
// file system, brings up what the image needs to run (drivers, root disk,
// name, network), starts the agent, and then becomes the image's init, or the
// runner of its app. It leaves no file of its own in the image.
package boot

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/agent"
	"brig/cmd/brig-guest/internal/app"
	"brig/cmd/brig-guest/internal/card"
	"brig/instance/guest"
	"brig/instance/guest/identity"
	"brig/instance/guest/identity/hostkey"
	"brig/instance/guest/wire"
)

// newRoot is where the root disk is mounted before it becomes the root.
const newRoot = agent.RestingRoot

// diskWait is how long the root disk may take to appear.
const diskWait = 20 * time.Second

// Main is process 1. It does not return: a process 1 that ends makes the
// kernel panic, so a failure is told to console and host, and powers off.
func Main() {
	defer func() {
		if p := recover(); p != nil {
			fail(fmt.Errorf("internal error: %v\n%s", p, debug.Stack()))
		}
	}()
	fail(start())
}

// start goes through the steps of booting, and returns only with an error.
func start() error {
	if err := mountEarly(); err != nil {
		return err
	}
	console()
	loadModules("/modules.list")
	settings, err := guest.ReadSettings(wire.ConfigPath)
	if err != nil {
		return fmt.Errorf("%w (the host gives them as fw_cfg file %s)", err, wire.ConfigFile)
	}
	disk, err := findDisk("root", diskWait)
	if err != nil {
		return err
	}
	if settings.Files {
		return serveFiles(disk, settings)
	}
	if err := mountRoot(disk); err != nil {
		return err
	}
	warn(card.Configure(settings.NICs))
	if settings.Hostname != "" {
		warn(unix.Sethostname([]byte(settings.Hostname)))
	}
	if err := switchRoot(); err != nil {
		return err
	}
	if err := mountSystem(settings.Process == nil); err != nil {
		return err
	}
	warn(writeNames(settings))
	if err := renew(settings); err != nil {
		return err
	}
	if err := mountVolumes(settings.Mounts); err != nil {
		return err
	}
	if settings.Process != nil {
		return app.Machine(settings)
	}
	return becomeInit(settings)
}

// writeNames writes what the image has to know about its name and network.
func writeNames(s *guest.Settings) error {
	root, err := guest.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	err = errors.Join(guest.WriteNames(root, *s), guest.WriteSeed(root, *s, 0))
	if s.Process == nil {
		err = errors.Join(err, writeSystemd(s))
	}
	return err
}

// renew gives a copy an identity of its own. One that cannot have it does not start:
// it would pass for another machine.
func renew(s *guest.Settings) error {
	if s.Identity == "" {
		return nil
	}
	root, err := guest.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	return identity.Renew(root, s.Identity, hostkey.Make)
}

// becomeInit starts the agent and executes the image's init in its place. The
// agent learns from its control socket, which closes then, that init runs.
func becomeInit(s *guest.Settings) error {
	args := s.Init
	if len(args) == 0 {
		args = []string{"/sbin/init"}
	}
	env := append([]string{"HOME=/", "TERM=linux", "PATH=" + guest.DefaultPath}, s.Env...)
	path, err := guest.LookPath(args[0], "/", env, os.Stat)
	if err != nil {
		return fmt.Errorf("cannot run the image's init %q: %w", args[0], err)
	}
	a, err := agent.Start(s)
	if err != nil {
		warn(err)
	}
	err = syscall.Exec(path, args, env)
	end(a, fmt.Errorf("cannot run the image's init %q: %w", path, err))
	return nil
}

// fail ends a machine that cannot start.
func fail(err error) {
	a, startErr := agent.Start(&guest.Settings{})
	warn(startErr)
	end(a, err)
}

// end tells console and host why this machine cannot start, and powers off.
func end(a *agent.Process, why error) {
	fmt.Fprintf(os.Stderr, "brig-guest: cannot start this machine: %v\n", why)
	if a != nil {
		a.Report(wire.Failed, 0, why.Error())
	}
	app.PowerOff()
}

func warn(err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "brig-guest: %v\n", err)
	}
}
