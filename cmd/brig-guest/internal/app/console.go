package app

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/program"
)

// openConsole gives the standard streams of the main process, and whether they
// are a terminal that can be its session's: what process 1 was given in a
// container, the device behind the console in a virtual machine, where
// /dev/console itself cannot be one.
func openConsole() (files []*os.File, terminal bool) {
	if b, err := os.ReadFile("/sys/class/tty/console/active"); err == nil && isConsole(os.Stdin) {
		names := strings.Fields(string(b))
		if len(names) > 0 {
			name := filepath.Join("/dev", filepath.Base(names[len(names)-1]))
			if f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0); err == nil {
				return []*os.File{f, f, f}, program.IsTerminal(f)
			}
		}
	}
	return []*os.File{os.Stdin, os.Stdout, os.Stderr}, program.IsTerminal(os.Stdin)
}

// isConsole tells whether f is the kernel's console device.
func isConsole(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == unix.Mkdev(5, 1)
}

// takeTerminal makes the standard input the terminal of process 1's session, if
// it can be. The kernel's console can not.
func takeTerminal() bool {
	if isConsole(os.Stdin) {
		return false
	}
	if sid, err := unix.IoctlGetInt(0, unix.TIOCGSID); err == nil {
		return sid == os.Getpid()
	}
	return unix.IoctlSetInt(0, unix.TIOCSCTTY, 0) == nil
}

// hungUp tells whether nobody is at the other end of the terminal any more.
func hungUp() bool {
	poll := []unix.PollFd{{Fd: 0, Events: unix.POLLIN}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1 && poll[0].Revents&unix.POLLHUP != 0
}
