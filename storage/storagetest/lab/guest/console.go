package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/storage/storagetest/lab/plan"
)

// grace is how long the output of what outlived a command is read.
const grace = 5 * time.Second

func drained() time.Time { return time.Now().Add(grace) }

// openPort opens the port for events, which the kernel knows before udev names it.
func openPort() (*os.File, error) {
	user, err := isUserMode()
	if err != nil {
		return nil, err
	}
	if user {
		return openRaw("/dev/ttyS0")
	}
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		got, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		if strings.TrimSpace(string(got)) == plan.Port {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(name))), os.O_WRONLY, 0)
		}
	}
	return nil, fmt.Errorf("there is no port %q", plan.Port)
}

// isUserMode tells whether the kernel is a program of the host. Its serial ports and
// disks have no names, and its console is another.
func isUserMode() (bool, error) {
	order, err := diskOrder()
	return order != nil, err
}

// openRaw opens a serial port that changes nothing of what passes.
func openRaw(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	settings, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err == nil {
		settings.Oflag &^= unix.OPOST
		err = unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, settings)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot set up %q: %w", path, err)
	}
	return f, nil
}

// settle waits until udev has named all devices, which takes long on a busy host.
func settle() error {
	if out, err := exec.Command("udevadm", "settle", "--timeout=600").CombinedOutput(); err != nil {
		return fmt.Errorf("cannot wait for udev: %w: %s", err, out)
	}
	return nil
}

// shell runs a shell on the console until it ends.
func shell(w plan.Window) error {
	path := "/dev/ttyS0"
	if user, err := isUserMode(); err != nil {
		return err
	} else if user {
		path = "/dev/tty0"
	}
	console, err := os.OpenFile(path, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer console.Close()
	size := unix.Winsize{Row: uint16(w.Rows), Col: uint16(w.Cols)}
	if err := unix.IoctlSetWinsize(int(console.Fd()), unix.TIOCSWINSZ, &size); err != nil {
		return fmt.Errorf("cannot set the size of the console: %w", err)
	}
	cmd := exec.Command("/bin/bash", "-l")
	cmd.Dir = "/root"
	cmd.Env = append(os.Environ(), "HOME=/root", "USER=root", "LANG=C.UTF-8", "TERM="+w.Term, plan.Inner+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = console, console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	cmd.Wait() // however the shell ends, so does the machine
	return nil
}

// powerOff does not wait for services: nothing of the guest is kept.
func powerOff() error {
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
