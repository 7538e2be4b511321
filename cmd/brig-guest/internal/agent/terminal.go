package agent

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/guest/wire"
)

// openTerminal makes a terminal for a command and returns its ends: three times
// the same.
func (c *command) openTerminal(r *wire.Exec) ([]*os.File, error) {
	master, slave, err := newTerminal(*r.Terminal)
	if err != nil {
		return nil, fmt.Errorf("cannot make a terminal: %w", err)
	}
	c.tty = master
	c.output = []*os.File{master}
	if r.Stdin {
		c.stdin = newInput(master, c.w)
		c.stdin.terminal = true
	}
	return []*os.File{slave, slave, slave}, nil
}

// newTerminal opens a pair without trusting any path but /dev/ptmx.
func newTerminal(size wire.Size) (master, slave *os.File, err error) {
	// Non-blocking from the start, for reads that can be given up.
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, &os.PathError{Op: "open", Path: "/dev/ptmx", Err: err}
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, err
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, errno
	}
	slave = os.NewFile(peer, "terminal")
	if err := setSize(fd, size); err != nil {
		master.Close()
		slave.Close()
		return nil, nil, err
	}
	return master, slave, nil
}

func setSize(fd int, s wire.Size) error {
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
}

// resize gives the command's terminal another size; the kernel tells the
// command.
func (c *command) resize(s wire.Size) {
	if c.tty == nil {
		return
	}
	raw, err := c.tty.SyscallConn()
	if err != nil {
		return
	}
	// A terminal that is closed by now needs no size.
	_ = raw.Control(func(fd uintptr) { _ = setSize(int(fd), s) })
}
