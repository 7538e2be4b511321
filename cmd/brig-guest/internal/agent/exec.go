package agent

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/program"
	"brig/instance/guest/wire"
)

// killWait is how long a command whose host is gone may take to end by itself.
const killWait = time.Second

// endWait is how long the host may take to close a stream that is done.
const endWait = 5 * time.Second

// exec runs a command and carries its streams. An error that is the caller's
// goes into the reply; one that a shell would print is printed.
func (a *Agent) exec(stream net.Conn, r *wire.Exec) {
	spec := program.Spec{
		Args: r.Args, Extra: r.Env, User: r.User, Dir: r.Dir,
		Hostname: a.settings.Hostname, Terminal: r.Terminal != nil, Login: true,
	}
	spec.Base = a.settings.Env
	if p := a.settings.Process; p != nil {
		spec.Base = p.Env
	}
	w := wire.NewFrameWriter(stream)
	p, err := program.Resolve(spec)
	var c *command
	if err == nil {
		c, err = start(p, r, w)
	}
	if u, ok := errors.AsType[*program.Unrunnable](err); ok {
		if reply(stream, wire.Reply{}) == nil {
			w.Data(wire.FrameStderr, fmt.Appendf(nil, "brig: %v\n", err))
			w.Number(wire.FrameExit, u.Code)
			drain(stream)
		}
		return
	}
	if err != nil {
		reply(stream, failure(err))
		return
	}
	if err := reply(stream, wire.Reply{}); err != nil {
		c.hangUp()
	}
	c.carry()
	var control sync.WaitGroup
	control.Go(func() { c.control(stream) })
	code := c.wait()
	if w.Number(wire.FrameExit, code) == nil {
		stream.SetReadDeadline(time.Now().Add(endWait))
	}
	control.Wait()
}

// drain waits until the host has read what it was sent and closed.
func drain(stream net.Conn) {
	stream.SetReadDeadline(time.Now().Add(endWait))
	io.Copy(io.Discard, stream)
}

// command is a running command with the guest's ends of its streams.
type command struct {
	proc   *os.Process
	w      *wire.FrameWriter
	tty    *os.File // with a terminal: its master
	stdin  *input   // nil: none
	output []*os.File
	pumps  sync.WaitGroup

	mu    sync.Mutex // guards ended, and keeps proc's number ours
	ended bool
}

// start starts p with the streams that r asks for.
func start(p *program.Program, r *wire.Exec, w *wire.FrameWriter) (*command, error) {
	c := &command{w: w}
	open, terminal := c.openPipes, program.NoTerminal
	if r.Terminal != nil {
		open, terminal = c.openTerminal, program.OwnTerminal
	}
	theirs, err := open(r)
	defer closeAll(theirs)
	if err != nil {
		c.close()
		return nil, err
	}
	c.proc, err = p.Start(theirs, terminal)
	if err != nil {
		c.close()
		return nil, err
	}
	// The agent is safe from a lack of memory; what it runs is not.
	score := filepath.Join("/proc", strconv.Itoa(c.proc.Pid), "oom_score_adj")
	_ = os.WriteFile(score, []byte("0"), 0)
	return c, nil
}

// carry begins to carry the command's streams; nothing else may be written to
// the host from then on.
func (c *command) carry() {
	for i, f := range c.output {
		kind := wire.FrameStdout
		if i == 1 {
			kind = wire.FrameStderr
		}
		c.pumps.Go(func() { pump(f, kind, c.w) })
	}
	if c.stdin != nil {
		c.pumps.Go(c.stdin.run)
	}
}

// openPipes makes the streams of a command without a terminal and returns the
// command's ends.
func (c *command) openPipes(r *wire.Exec) ([]*os.File, error) {
	theirs := make([]*os.File, 0, 3)
	if r.Stdin {
		read, write, err := os.Pipe()
		if err != nil {
			return theirs, fmt.Errorf("cannot make pipes: %w", err)
		}
		theirs = append(theirs, read)
		c.stdin = newInput(write, c.w)
	} else {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return theirs, err
		}
		theirs = append(theirs, null)
	}
	for range 2 {
		read, write, err := os.Pipe()
		if err != nil {
			return theirs, fmt.Errorf("cannot make pipes: %w", err)
		}
		theirs = append(theirs, write)
		c.output = append(c.output, read)
	}
	return theirs, nil
}

// wait returns the exit code once the command has ended and its output is on
// its way. What it left running in the background may keep the streams open;
// nobody waits for that.
func (c *command) wait() int {
	code := -1
	// Look without taking the exit status, so that the process's number stays
	// its own until nobody sends signals any more.
	for {
		err := unix.Waitid(unix.P_PID, c.proc.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	c.mu.Lock()
	c.ended = true
	if state, err := c.proc.Wait(); err == nil {
		code = program.Exit(state.Sys().(syscall.WaitStatus))
	}
	c.mu.Unlock()
	for _, f := range c.output {
		f.SetReadDeadline(time.Unix(1, 0))
	}
	if c.stdin != nil {
		c.stdin.stop()
	}
	c.pumps.Wait()
	c.close()
	return code
}

func (c *command) close() {
	closeAll(c.output)
	if c.stdin != nil {
		c.stdin.f.Close()
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// control does what the host's frames say until the host is gone, and then ends
// the command.
func (c *command) control(stream net.Conn) {
	defer c.hangUp()
	frames := wire.NewFrameReader(stream)
	for {
		f, err := frames.Next()
		if err != nil {
			return
		}
		switch f.Kind {
		case wire.FrameStdin:
			if c.stdin != nil && !c.stdin.add(f.Data) {
				return
			}
		case wire.FrameStdinEOF:
			if c.stdin != nil {
				c.stdin.end()
			}
		case wire.FrameResize:
			if s, err := f.Size(); err == nil {
				c.resize(s)
			}
		case wire.FrameSignal:
			if s, err := f.Signal(); err == nil {
				c.signal(c.proc.Pid, s)
			}
		}
	}
}

// hangUp ends a command whose host is gone: politely, and then for certain.
func (c *command) hangUp() {
	c.signal(-c.proc.Pid, unix.SIGHUP)
	c.signal(-c.proc.Pid, unix.SIGCONT)
	time.AfterFunc(killWait, func() { c.signal(-c.proc.Pid, unix.SIGKILL) })
}

// signal sends to the command or its group while it has not ended.
func (c *command) signal(pid int, s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		_ = unix.Kill(pid, s)
	}
}

// pump carries output until its end, or until the read deadline tells that the
// command has ended: then what is there already goes as well. A host that is
// gone makes it stop reading.
func pump(f *os.File, kind wire.Kind, w *wire.FrameWriter) {
	buf := make([]byte, wire.MaxFrame)
	for {
		n, err := f.Read(buf)
		if n > 0 && w.Data(kind, buf[:n]) != nil {
			return
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			pumpRest(f, kind, w, buf)
			return
		}
		if err != nil {
			return
		}
	}
}

// pipeMax bounds what can be in a pipe: fs.pipe-max-size for its users.
const pipeMax = 1 << 20

// pumpRest carries what can be read without waiting.
func pumpRest(f *os.File, kind wire.Kind, w *wire.FrameWriter, buf []byte) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for rest := pipeMax; rest > 0; {
		n := 0
		raw.Control(func(fd uintptr) { n, err = unix.Read(int(fd), buf) })
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 || w.Data(kind, buf[:n]) != nil {
			return
		}
		rest -= n
	}
}
