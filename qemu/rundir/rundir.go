// Package rundir knows the files in the run directory of a virtual machine:
// the lock that says that QEMU runs, the state its keeper writes, and the
// sockets. Both the keeper and the driver use it, so it stays small.
package rundir

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// The files, beside those of package instance.
const (
	Lock         = "lock"        // held by QEMU and its keeper
	KeeperLock   = "keeper.lock" // held by the keeper alone
	ConsoleLock  = "console.lock"
	StateFile    = "state.json"
	Boot         = "boot.json"
	Seed         = "seed.img"        // disk for cloud-init
	Initramfs    = "initramfs"       // link to the one to boot
	Firmware     = "firmware"        // link to its code, for UEFI
	FirmwareVars = "firmware-vars"   // its variables, of this run alone
	QMP          = "qmp.sock"        // QMP for whoever needs it, one at a time
	Events       = "events.sock"     // QMP of the keeper
	AgentPort    = "agent-port.sock" // the guest's virtio-serial port
	Console      = "console.sock"    // the serial console, one client at a time
)

// Names of the logs in the log directory.
const (
	ConsoleLog = "console.log"
	QEMULog    = "qemu.log"
)

// ErrLocked means that another open file has the lock.
var ErrLocked = errors.New("locked by another process")

// Acquire takes the lock on the file, which it creates if needed, or gives
// ErrLocked. The lock belongs to the open file: it lasts until every descriptor
// of it, also those that other processes inherited, is closed.
func Acquire(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock); {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		f.Close()
		return nil, ErrLocked
	default:
		f.Close()
		return nil, fmt.Errorf("cannot lock %q: %w", path, err)
	}
}

// Held tells whether somebody has the lock. A missing file has no lock.
func Held(path string) (bool, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &lock); err != nil {
		return false, fmt.Errorf("cannot ask for the lock of %q: %w", path, err)
	}
	return lock.Type != unix.F_UNLCK, nil
}

// Listen makes a listening socket in dir, in place of one that is there. The
// path may be longer than the 107 bytes that a socket's address has room for.
// The socket file stays when the listener is closed.
func Listen(dir, name string) (*net.UnixListener, error) {
	d, short, err := shorten(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if err := unix.Unlinkat(int(d.Fd()), name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return nil, fmt.Errorf("cannot replace the socket %q: %w", filepath.Join(dir, name), err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: short})
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", filepath.Join(dir, name), err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// Dial connects to a socket in dir.
func Dial(ctx context.Context, dir, name string) (net.Conn, error) {
	d, short, err := shorten(dir, name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "unix", short)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to %q: %w", filepath.Join(dir, name), err)
	}
	return c, nil
}

// WithPath calls f with a short path of a file in dir, valid during the call.
func WithPath(dir, name string, f func(path string) error) error {
	d, short, err := shorten(dir, name)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(short)
}

func shorten(dir, name string) (*os.File, string, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, "", &os.PathError{Op: "open", Path: dir, Err: err}
	}
	d := os.NewFile(uintptr(fd), dir)
	return d, fmt.Sprintf("/proc/self/fd/%d/%s", fd, name), nil
}
