package lxc

import (
	"context"
	"errors"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/lxc/runtime"

	"golang.org/x/sys/unix"
)

// session is one command in a container and the files it is connected with: the
// caller's own, or a terminal of the container that is relayed.
type session struct {
	container runtime.Container
	command   instance.Command
	files     [3]*os.File
	opened    []*os.File // by this session
	terminal  *os.File   // this side of it; nil without one
	relay     *relay
}

func newSession(ctx context.Context, m *instance.Machine, init int, user guest.User, c instance.Command) (s *session, err error) {
	s = &session{container: runtime.Open(m.RunDir), command: c}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if c.Terminal == nil {
		s.files = [3]*os.File{c.Stdin, c.Stdout, c.Stderr}
		for i, f := range s.files {
			if f != nil {
				continue
			}
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				return nil, err
			}
			s.opened = append(s.opened, null)
			s.files[i] = null
		}
		return s, nil
	}
	ours, theirs, err := openTerminal(init)
	if err != nil {
		return nil, err
	}
	s.terminal = ours
	s.opened = append(s.opened, theirs)
	s.files = [3]*os.File{theirs, theirs, theirs}
	resize(ours, instance.Size{Width: c.Terminal.Width, Height: c.Terminal.Height})
	// The owner of a terminal may open it again by its name.
	if err := theirs.Chown(int(m.IDMap.Base+user.UID), -1); err != nil {
		return nil, err
	}
	s.relay, err = startRelay(ctx, ours, c.Stdin, c.Stdout, c.Terminal.Resize)
	return s, err
}

// started gives up the ends that the command has now.
func (s *session) started() {
	for _, f := range s.opened {
		f.Close()
	}
	s.opened = nil
}

// errors is where to tell a person what went wrong.
func (s *session) errors() *os.File {
	f := s.command.Stderr
	if s.terminal != nil {
		f = s.command.Stdout
	}
	if f == nil {
		f = os.NewFile(^uintptr(0), "nowhere")
	}
	return f
}

func (s *session) close() {
	s.started()
	if s.relay != nil {
		s.relay.close()
	}
	if s.terminal != nil {
		s.terminal.Close()
	}
}

// openTerminal makes a terminal in the container's own devpts, so that it has a
// name there. What the container may have mounted in its place is refused.
func openTerminal(init int) (ours, theirs *os.File, err error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(init)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(root)
	dir, err := unix.Openat2(root, "/dev/pts", &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "it has no /dev/pts: %w", err)
	}
	defer unix.Close(dir)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(dir, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, nil, fault.New(fault.Unavailable, "its /dev/pts is not a devpts file system")
	}
	// Only the kernel makes files in a devpts.
	fd, err := unix.Openat2(dir, "ptmx", &unix.OpenHow{
		Flags:   unix.O_RDWR | unix.O_NOCTTY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", err)
	}
	ours = os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		ours.Close()
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", err)
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		ours.Close()
		return nil, nil, fault.New(fault.Unavailable, "it gives no terminal: %w", errno)
	}
	return ours, os.NewFile(peer, "terminal"), nil
}

func resize(terminal *os.File, to instance.Size) {
	if to.Width == 0 || to.Height == 0 {
		return
	}
	if raw, err := terminal.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: to.Width, Row: to.Height})
		})
	}
}

// relay copies between a terminal's other end and its user.
type relay struct {
	terminal *os.File
	cancel   context.CancelFunc
	waker    *waker
	input    sync.WaitGroup
	output   chan struct{}
}

// startRelay starts to copy until the terminal is closed on its other side.
func startRelay(ctx context.Context, terminal, in *os.File, out io.Writer, sizes <-chan instance.Size) (*relay, error) {
	ctx, cancel := context.WithCancel(ctx)
	w, err := newWaker(ctx)
	if err != nil {
		cancel()
		return nil, err
	}
	r := &relay{terminal: terminal, cancel: cancel, waker: w, output: make(chan struct{})}
	if in != nil {
		r.input.Go(func() { r.copyIn(in) })
	}
	r.input.Go(func() {
		for {
			select {
			case size, ok := <-sizes:
				if !ok {
					return
				}
				resize(terminal, size)
			case <-ctx.Done():
				return
			}
		}
	})
	go func() {
		defer close(r.output)
		if out == nil {
			out = io.Discard
		}
		io.Copy(writerOnly{out}, terminal)
	}()
	return r, nil
}

// writerOnly hides that a file can read from another by itself.
type writerOnly struct{ io.Writer }

// copyIn copies what is typed. The end of input is passed on as a person would.
func (r *relay) copyIn(in *os.File) {
	buf := make([]byte, 4096)
	fd := int(in.Fd())
	for {
		if ready, err := r.waker.poll(fd, unix.POLLIN); err != nil || !ready {
			return
		}
		n, err := unix.Read(fd, buf)
		switch {
		case errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN):
			continue
		case err != nil || n == 0:
			const endOfTransmission = 4
			r.terminal.Write([]byte{endOfTransmission})
			return
		}
		if _, err := r.terminal.Write(buf[:n]); err != nil {
			return
		}
	}
}

// drainTime is how long output may stay away before it is taken as complete
// while something in the background keeps the terminal open.
const drainTime = 50 * time.Millisecond

// close waits for the output that is on its way, and ends the copying.
func (r *relay) close() {
	select {
	case <-r.output:
	case <-time.After(drainTime):
		r.terminal.SetReadDeadline(time.Now())
		<-r.output
	}
	r.terminal.SetWriteDeadline(time.Now())
	r.cancel()
	r.input.Wait()
	r.waker.close()
}
