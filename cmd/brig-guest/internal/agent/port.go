package agent

import (
	"bufio"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/guest/wire"
)

// conn is one connection of a host, from greeting to end.
type conn = io.ReadWriteCloser

// Between the looks at a port with nobody at its other end.
const (
	portLookMin = 10 * time.Millisecond
	portLookMax = 250 * time.Millisecond
)

// servePort serves one host after the other on the virtio-serial port.
func (a *Agent) servePort(ctx context.Context) {
	for ctx.Err() == nil {
		f, err := openPort()
		if err != nil {
			pause(ctx, portLookMax)
			continue
		}
		a.serveHosts(ctx, f)
		f.Close()
	}
}

// openPort opens the port by its name. Only one process at a time can.
func openPort() (*os.File, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err == nil && strings.TrimSpace(string(b)) == wire.PortName {
			return os.OpenFile(filepath.Join("/dev", filepath.Base(filepath.Dir(n))), os.O_RDWR, 0)
		}
	}
	return nil, os.ErrNotExist
}

// serveHosts returns when the port is gone.
func (a *Agent) serveHosts(ctx context.Context, f *os.File) {
	wait := portLookMin
	for ctx.Err() == nil {
		there, err := hostThere(f)
		if err != nil {
			return
		}
		if !there {
			pause(ctx, wait)
			wait = min(2*wait, portLookMax)
			continue
		}
		wait = portLookMin
		f.SetDeadline(time.Time{})
		a.ServeConn(ctx, &port{f: f, r: bufio.NewReaderSize(f, 32<<10)})
		pause(ctx, portLookMin)
	}
}

// hostThere tells whether somebody holds the other end of the port.
func hostThere(f *os.File) (bool, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return false, err
	}
	var fds []unix.PollFd
	var failed error
	err = conn.Control(func(fd uintptr) {
		fds = []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, failed = unix.Poll(fds, 0); failed == unix.EINTR {
			failed = nil
		}
	})
	if err == nil {
		err = failed
	}
	if err == nil && fds[0].Revents&(unix.POLLNVAL|unix.POLLERR) != 0 {
		err = unix.ENODEV
	}
	return err == nil && fds[0].Revents&unix.POLLHUP == 0, err
}

// port is the virtio-serial port for the time of one host. The device stays
// open from host to host, so that nothing else in the guest can take it.
type port struct {
	f *os.File
	r *bufio.Reader
}

func (p *port) Read(b []byte) (int, error) { return p.r.Read(b) }

func (p *port) Write(b []byte) (int, error) { return p.f.Write(b) }

// Close ends this host's time: reads and writes fail from now on.
func (p *port) Close() error { return p.f.SetDeadline(time.Unix(1, 0)) }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
