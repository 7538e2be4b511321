package app

import (
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance/guest"
)

// Container is process 1 of an app image in a container. It returns the exit
// code to end with, which it has also written where the host finds it.
func Container() int {
	code, err := container()
	if err != nil {
		fmt.Fprintf(os.Stderr, "brig: cannot start this machine: %v\n", err)
		code = 125
	}
	if err := os.WriteFile(guest.ContainerExit, []byte(strconv.Itoa(code)), 0o600); err != nil {
		fmt.Fprintf(os.Stderr, "brig: cannot report exit code %d: %v\n", code, err)
	}
	return code
}

func container() (int, error) {
	// liblxc has the kernel end its containers with its monitor. The machine
	// outlives that. Whichever thread this is, the first one has to be told.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, 0, 0); errno != 0 {
		return 0, fmt.Errorf("cannot outlive the monitor: %w", errno)
	}
	// What liblxc may have left open is not for the image.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return 0, fmt.Errorf("cannot close inherited files: %w", err)
	}
	s, err := guest.ReadSettings(guest.ContainerConfig)
	if err != nil {
		return 0, err
	}
	if s.Process == nil {
		return 0, fmt.Errorf("its settings name no process")
	}
	if err := writeNames(s); err != nil {
		fmt.Fprintf(os.Stderr, "brig: %v\n", err)
	}
	r := &runner{
		process:  s.Process,
		hostname: s.Hostname,
		log:      os.Stderr,
		started:  started,
		reaped:   func(int) {},
	}
	return r.run(), nil
}

// started tells the host that a signal is not lost any more.
func started() {
	if err := os.WriteFile(guest.ContainerReady, nil, 0o600); err != nil {
		fmt.Fprintf(os.Stderr, "brig: cannot report that this machine is ready: %v\n", err)
	}
}

func writeNames(s *guest.Settings) error {
	root, err := guest.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	return guest.WriteNames(root, *s)
}
