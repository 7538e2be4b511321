package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// Exec runs a command in the guest and returns its exit code. When ctx ends or
// this process dies, the command is ended. It closes conn and leaves c's files
// open.
func Exec(ctx context.Context, conn net.Conn, c instance.Command) (int, error) {
	defer conn.Close()
	r := &wire.Exec{Args: c.Args, Env: c.Env, User: c.User, Dir: c.Dir, Stdin: c.Stdin != nil}
	if c.Terminal != nil {
		r.Terminal = &wire.Size{Width: c.Terminal.Width, Height: c.Terminal.Height}
	}
	if _, err := ask(ctx, conn, wire.Request{Op: wire.OpExec, Exec: r}); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	e := &execution{conn: conn, w: wire.NewFrameWriter(conn), c: c, taken: make(chan int, 1)}
	e.done, e.finish = context.WithCancel(context.Background())
	var feeders sync.WaitGroup
	feeders.Go(e.feedSignals)
	if c.Stdin != nil {
		feeders.Go(e.feedInput)
	}
	code, err := e.receive()
	e.finish()
	conn.Close()
	feeders.Wait()
	if err != nil && ctx.Err() != nil {
		return 0, fmt.Errorf("cannot run %q in the guest: %w", c.Args, ctx.Err())
	}
	return code, err
}

// execution is one running command as the host sees it.
type execution struct {
	conn   net.Conn
	w      *wire.FrameWriter
	c      instance.Command
	taken  chan int        // bytes of input that the command took, added up
	done   context.Context // ends with the command
	finish context.CancelFunc
}

// brokenPipe is the exit code of a command whose output nobody wants.
const brokenPipe = 128 + int(unix.SIGPIPE)

// receive passes output on until the exit code arrives.
func (e *execution) receive() (int, error) {
	frames := wire.NewFrameReader(e.conn)
	for {
		f, err := frames.Next()
		if err != nil {
			return 0, lost(err)
		}
		switch f.Kind {
		case wire.FrameStdout:
			err = write(e.c.Stdout, f.Data)
		case wire.FrameStderr:
			out := e.c.Stderr
			if e.c.Terminal != nil {
				out = e.c.Stdout
			}
			err = write(out, f.Data)
		case wire.FrameTaken:
			n, bad := f.Number()
			if bad != nil || n < 0 {
				return 0, fault.New(fault.Unavailable, "cannot run command: guest agent breaks the protocol")
			}
			e.credit(n)
		case wire.FrameExit:
			code, bad := f.Number()
			if bad != nil {
				return 0, lost(bad)
			}
			return code & 0xff, nil
		default:
			return 0, fault.New(fault.Unavailable, "cannot run command: guest agent breaks the protocol")
		}
		if errors.Is(err, unix.EPIPE) {
			return brokenPipe, nil
		}
		if err != nil {
			return 0, fmt.Errorf("cannot write the command's output: %w", err)
		}
	}
}

func lost(err error) error {
	return fault.New(fault.Unavailable, "cannot run command: lost the guest agent before the command ended: %w", err)
}

func write(f *os.File, b []byte) error {
	if f == nil || len(b) == 0 {
		return nil
	}
	_, err := f.Write(b)
	return err
}

// credit adds to what may be sent. Only receive calls it.
func (e *execution) credit(n int) {
	select {
	case more := <-e.taken:
		n += more
	default:
	}
	e.taken <- min(n, wire.StdinWindow)
}

// feedSignals passes signals and sizes on until the command has ended.
func (e *execution) feedSignals() {
	var resize <-chan instance.Size
	if e.c.Terminal != nil {
		resize = e.c.Terminal.Resize
	}
	signals := e.c.Signals
	for {
		var err error
		select {
		case <-e.done.Done():
			return
		case s, ok := <-signals:
			if !ok {
				signals = nil
				continue
			}
			err = e.w.Signal(s)
		case s, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			err = e.w.Resize(wire.Size(s))
		}
		if err != nil {
			return
		}
	}
}

// feedInput passes input on until its end or the command's, never more than the
// agent can hold.
func (e *execution) feedInput() {
	in, err := Interruptible(e.done, e.c.Stdin)
	if err != nil {
		e.w.Data(wire.FrameStdinEOF, nil)
		return
	}
	defer in.Close()
	buf := make([]byte, wire.MaxFrame)
	window := wire.StdinWindow
	for {
		for window == 0 {
			select {
			case n := <-e.taken:
				window = n
			case <-e.done.Done():
				return
			}
		}
		n, err := in.Read(buf[:min(window, len(buf))])
		if n > 0 {
			window -= n
			if e.w.Data(wire.FrameStdin, buf[:n]) != nil {
				return
			}
		}
		if errors.Is(err, context.Canceled) {
			return
		}
		if err != nil {
			// A read error ends the input as an end of file does.
			e.w.Data(wire.FrameStdinEOF, nil)
			return
		}
	}
}

// interruptible reads a file that belongs to somebody else, be it a terminal,
// pipe or disk file in whatever mode, and stops when done ends.
type interruptible struct {
	done       context.Context
	raw        syscall.RawConn
	wake, bell *os.File // bell becomes readable when wake closes
	stop       func() bool
}

// Interruptible reads f, in whatever mode it is, until done ends. Closing it leaves f
// open.
func Interruptible(done context.Context, f *os.File) (io.ReadCloser, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	bell, wake, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	i := &interruptible{done: done, raw: raw, bell: bell, wake: wake}
	i.stop = context.AfterFunc(done, func() { wake.Close() })
	return i, nil
}

// Close gives up what watches for the end.
func (i *interruptible) Close() error {
	i.stop()
	i.wake.Close()
	return i.bell.Close()
}

// Read waits for something to read. It gives context.Canceled when done has ended.
func (i *interruptible) Read(b []byte) (n int, err error) {
	bell := int32(-1)
	if raw, err := i.bell.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { bell = int32(fd) })
	}
	failed := i.raw.Control(func(fd uintptr) {
		for {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: bell, Events: unix.POLLIN}}
			if _, err = unix.Poll(fds, -1); err != nil && err != unix.EINTR {
				return
			}
			if i.done.Err() != nil {
				err = context.Canceled
				return
			}
			if fds[0].Revents == 0 {
				continue
			}
			n, err = unix.Read(int(fd), b)
			if err == unix.EINTR || err == unix.EAGAIN {
				continue
			}
			return
		}
	})
	switch {
	case failed != nil:
		return 0, failed
	case err != nil:
		return 0, err
	case n <= 0:
		return 0, io.EOF
	}
	return n, nil
}
