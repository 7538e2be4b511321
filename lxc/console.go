package lxc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"syscall"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/lxc/config"
	"brig/lxc/runtime"

	"golang.org/x/sys/unix"
)

// Console connects to m's console, which liblxc's monitor relays to one user at
// a time.
func (d *Driver) Console(ctx context.Context, m *instance.Machine, o instance.ConsoleOptions) error {
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	if alive, _, err := c.life(); err != nil || !alive {
		return fault.New(fault.WrongState, "cannot open the console of container %q: it does not run", m.Name)
	}
	if c.monitor() == 0 {
		return fault.New(fault.Unavailable, "cannot open the console of container %q: its monitor was killed; stop and start it", m.Name)
	}
	terminal, hold, err := runtime.Open(config.PublicDir(m)).Console()
	if err != nil {
		return fault.New(fault.Busy, "cannot open the console of container %q: somebody else has it (%w)", m.Name, err)
	}
	defer hold.Close()
	defer terminal.Close()
	init := c.init()
	control(terminal, func(fd int) { makeRaw(fd) })

	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { terminal.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	// Reading input may block for ever; the caller ends it when it is done.
	go func() {
		if _, err := io.Copy(writerOnly{terminal}, o.Input); err == nil {
			cancel(nil)
		}
	}()
	go func() {
		for {
			select {
			case size, ok := <-o.Resize:
				if !ok {
					return
				}
				resizeConsole(init, size)
			case <-ctx.Done():
				return
			}
		}
	}()
	_, err = io.Copy(writerOnly{o.Output}, readerOnly{terminal})
	if err == nil || ctx.Err() != nil || errors.Is(err, syscall.EIO) || errors.Is(err, fs.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil // it ended, or the user left
	}
	return fmt.Errorf("cannot go on with the console of container %q: %w", m.Name, err)
}

// makeRaw has this terminal pass on what it gets: the container's own does all
// that a terminal does.
func makeRaw(fd int) {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return
	}
	t.Iflag, t.Oflag = 0, 0
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// resizeConsole sets the size of the container's console, which liblxc's monitor
// does not do. Whatever else the container put in its place is left alone.
func resizeConsole(init int, size instance.Size) {
	fd, err := openInside(init, "/dev/console")
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	const firstPTY, lastPTY = 136, 143 // majors of /dev/pts
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR ||
		unix.Major(st.Rdev) < firstPTY || unix.Major(st.Rdev) > lastPTY {
		return
	}
	console, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(fd), os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer console.Close()
	resize(console, size)
}
