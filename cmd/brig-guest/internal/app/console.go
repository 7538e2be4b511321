package app

import (
	"os"
	"os/signal"
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

// letTerminalGo gives up a terminal that process 1's session owns, for the main
// process to have it. The hangup that comes with it means nobody.
func letTerminalGo() {
	sid, err := unix.IoctlGetInt(0, unix.TIOCGSID)
	if err != nil {
		return
	}
	if own, err := unix.Getsid(0); err != nil || own != sid || own != os.Getpid() {
		return
	}
	signal.Ignore(unix.SIGHUP)
	unix.IoctlSetInt(0, unix.TIOCNOTTY, 0)
	signal.Reset(unix.SIGHUP)
}
