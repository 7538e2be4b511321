package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/guest/wire"
)

// machine is an agent with a keeper, connected as a port connects them.
type machine struct {
	agent  *Agent
	socket string
	events chan wire.Event
	stops  chan struct{}
	told   chan struct{}

	mu    sync.Mutex // guards conns
	conns []net.Conn // the host's ends
}

// newMachine runs an agent and its keeper for the time of the test.
func newMachine(t *testing.T, s *guest.Settings) *machine {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &machine{
		socket: filepath.Join(t.TempDir(), strings.Repeat("long", 30), guest.AgentSocket),
		events: make(chan wire.Event, 100), stops: make(chan struct{}, 10), told: make(chan struct{}, 10),
	}
	if err := os.Mkdir(filepath.Dir(m.socket), 0o700); err != nil {
		t.Fatal(err)
	}
	stop := func(context.Context) error { m.stops <- struct{}{}; return nil }
	m.agent = New(s, stop, func() { m.told <- struct{}{} })
	var all sync.WaitGroup
	k := &guest.Keeper{
		Socket: m.socket,
		Dial: func(context.Context) (net.Conn, error) {
			host, inside := pair(t)
			m.mu.Lock()
			m.conns = append(m.conns, host)
			m.mu.Unlock()
			all.Go(func() { m.agent.ServeConn(ctx, inside) })
			return host, nil
		},
		Event: func(e wire.Event) { m.events <- e },
	}
	all.Go(func() {
		if err := k.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); all.Wait() })
	m.agent.Set(wire.Event{State: wire.Running})
	if err := guest.WaitReady(limited(t), m.socket); err != nil {
		t.Fatal(err)
	}
	return m
}

func limited(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func pair(t *testing.T) (a, b net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Error(err)
		return nil, nil
	}
	ends := make([]net.Conn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		ends[i], err = net.FileConn(f)
		f.Close()
		if err != nil {
			t.Error(err)
		}
	}
	return ends[0], ends[1]
}

func (m *machine) dial(t *testing.T) net.Conn {
	t.Helper()
	conn, err := guest.Dial(limited(t), m.socket)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// result is what a command left.
type result struct {
	out, err string
	code     int
	failed   error
}

// run runs a command with input; nil is none.
func (m *machine) run(t *testing.T, c instance.Command, input []byte) result {
	t.Helper()
	var out, errs bytes.Buffer
	var copies sync.WaitGroup
	collect := func(b *bytes.Buffer) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		copies.Go(func() { io.Copy(b, r); r.Close() })
		return w
	}
	c.Stdout, c.Stderr = collect(&out), collect(&errs)
	if input != nil {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c.Stdin = r
		copies.Go(func() { w.Write(input); w.Close() })
		defer r.Close()
	}
	code, err := guest.Exec(limited(t), m.dial(t), c)
	c.Stdout.Close()
	c.Stderr.Close()
	if c.Stdin != nil {
		c.Stdin.Close()
	}
	copies.Wait()
	return result{out.String(), errs.String(), code, err}
}

func sh(script string) instance.Command {
	return instance.Command{Args: []string{"sh", "-c", script}}
}

func TestExec(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{Boot: instance.Boot{Hostname: "pet", Process: &instance.Process{Env: []string{"IMAGE=yes", "BOTH=image"}}}})
	for name, c := range map[string]struct {
		command instance.Command
		input   string
		want    result
	}{
		"nothing said":       {command: instance.Command{Args: []string{"true"}}},
		"exit code":          {command: sh("exit 42"), want: result{code: 42}},
		"killed":             {command: sh("kill -9 $$"), want: result{code: 137}},
		"split streams":      {command: sh("echo out; echo err >&2"), want: result{out: "out\n", err: "err\n"}},
		"no input":           {command: instance.Command{Args: []string{"cat"}}},
		"input and its end":  {command: instance.Command{Args: []string{"cat"}}, input: "hello", want: result{out: "hello"}},
		"input nobody wants": {command: instance.Command{Args: []string{"true"}}, input: strings.Repeat("x", 60_000)},
		"environment": {
			command: instance.Command{Args: []string{"sh", "-c", "echo $IMAGE $BOTH $OWN $HOME $USER $HOSTNAME"}, Env: []string{"OWN=mine", "BOTH=own"}},
			want:    result{out: "yes own mine /root root pet\n"},
		},
		"directory":          {command: instance.Command{Args: []string{"pwd"}, Dir: "/usr/bin"}, want: result{out: "/usr/bin\n"}},
		"user and group":     {command: instance.Command{Args: []string{"sh", "-c", "id -u; id -g; id -G; pwd"}, User: "1:65534"}, want: result{out: "1\n65534\n65534\n/usr/sbin\n"}},
		"user without entry": {command: instance.Command{Args: []string{"sh", "-c", "id -u; id -g; pwd"}, User: "54321"}, want: result{out: "54321\n0\n/\n"}},
		"output to a device": {command: instance.Command{Args: []string{"sh", "-c", "echo there > /dev/stdout"}, User: "1"}, want: result{out: "there\n"}},
		"not there":          {command: instance.Command{Args: []string{"no-such-command"}}, want: result{err: "brig: cannot run \"no-such-command\": command not found\n", code: 127}},
		"not executable":     {command: instance.Command{Args: []string{"/etc/passwd"}}, want: result{err: "brig: cannot run \"/etc/passwd\": permission denied\n", code: 126}},
		"background":         {command: sh("sleep 60 >/dev/null 2>&1 & echo started; kill $!"), want: result{out: "started\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			var input []byte
			if c.input != "" {
				input = []byte(c.input)
			}
			if got := m.run(t, c.command, input); got != c.want {
				t.Errorf("exec = %+v, want %+v", got, c.want)
			}
		})
	}
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}

func TestExecRefuses(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	for name, c := range map[string]struct {
		command instance.Command
		want    fault.Class
	}{
		"no command":        {instance.Command{}, fault.Invalid},
		"unknown user":      {instance.Command{Args: []string{"true"}, User: "nobody-here"}, fault.NotFound},
		"impossible user":   {instance.Command{Args: []string{"true"}, User: "4294967295"}, fault.Invalid},
		"unknown directory": {instance.Command{Args: []string{"true"}, Dir: "/no/such"}, fault.NotFound},
		"a file as one":     {instance.Command{Args: []string{"true"}, Dir: "/etc/passwd"}, fault.NotFound},
	} {
		if r := m.run(t, c.command, nil); !fault.Is(r.failed, c.want) {
			t.Errorf("%s: exec = %+v, want class %q", name, r, c.want)
		}
	}
}

// TestBackgroundProcessKeepsNobodyWaiting has a command leave a process that
// holds its output open.
func TestBackgroundProcessKeepsNobodyWaiting(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	begin := time.Now()
	r := m.run(t, sh("sleep 20 & echo $!"), nil)
	var pid int
	if _, err := fmt.Sscan(r.out, &pid); err != nil || r.failed != nil || r.code != 0 {
		t.Fatalf("exec = %+v", r)
	}
	defer unix.Kill(pid, unix.SIGKILL)
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("exec waited %v for a process in the background", d)
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the process in the background is gone: %v", err)
	}
}

func TestLargeStreamsArrive(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	const size = 50 << 20
	if r := m.run(t, sh(fmt.Sprintf("head -c %d /dev/zero; echo end >&2; exit 3", size)), nil); len(r.out) != size || r.err != "end\n" || r.code != 3 || r.failed != nil {
		t.Errorf("exec gave %d bytes, %q, %d, %v, want %d", len(r.out), r.err, r.code, r.failed, size)
	}
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if r := m.run(t, instance.Command{Args: []string{"cat"}}, input); r.out != string(input) || r.failed != nil {
		t.Errorf("cat gave %d of %d bytes back (%v)", len(r.out), len(input), r.failed)
	}
}

// TestSignalPassesFullInput signals a command that does not read its input.
func TestSignalPassesFullInput(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	signals := make(chan syscall.Signal, 1)
	c := sh("trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done")
	c.Signals = signals
	out, in := pipe(t), pipe(t)
	c.Stdout, c.Stdin = out.w, in.r
	go in.w.Write(bytes.Repeat([]byte("x"), 2<<20))
	done := make(chan int, 1)
	go func() {
		code, err := guest.Exec(limited(t), m.dial(t), c)
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	expect(t, out.r, "ready")
	signals <- unix.SIGTERM
	if code := <-done; code != 9 {
		t.Errorf("exit code = %d, want 9", code)
	}
}

type pipeEnds struct{ r, w *os.File }

func pipe(t *testing.T) pipeEnds {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close(); w.Close() })
	return pipeEnds{r, w}
}

// expect reads until want has come.
func expect(t *testing.T, r *os.File, want string) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	var got []byte
	b := make([]byte, 1024)
	for !bytes.Contains(got, []byte(want)) {
		n, err := r.Read(b)
		if got = append(got, b[:n]...); err != nil {
			t.Fatalf("read %q and then %v, want %q", got, err, want)
		}
	}
}

func TestTerminal(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	resize := make(chan instance.Size, 1)
	in, out := pipe(t), pipe(t)
	done := make(chan int, 1)
	go func() {
		code, err := guest.Exec(limited(t), m.dial(t), instance.Command{
			Args:  []string{"sh", "-c", "tty; echo $TERM; while read line; do echo got $line; stty size; done; exit 5"},
			Stdin: in.r, Stdout: out.w,
			Terminal: &instance.Terminal{Width: 101, Height: 33, Resize: resize},
		})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	expect(t, out.r, "xterm")
	in.w.WriteString("first\n")
	expect(t, out.r, "33 101")
	resize <- instance.Size{Width: 57, Height: 21}
	// The size travels beside the input, so the first answers may be older.
	out.r.SetReadDeadline(time.Now().Add(20 * time.Second))
	for got := ""; !strings.Contains(got, "21 57"); {
		in.w.WriteString("again\n")
		b := make([]byte, 1024)
		n, err := out.r.Read(b)
		if got += string(b[:n]); err != nil {
			t.Fatalf("read %q and then %v", got, err)
		}
	}
	in.w.Close()
	if code := <-done; code != 5 {
		t.Errorf("exit code = %d, want 5", code)
	}
}

func TestTerminalInterrupt(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	in, out := pipe(t), pipe(t)
	done := make(chan int, 1)
	go func() {
		code, err := guest.Exec(limited(t), m.dial(t), instance.Command{
			Args: []string{"sh", "-c", "echo ready; exec sleep 60"}, User: "1", Stdin: in.r, Stdout: out.w,
			Terminal: &instance.Terminal{Width: 80, Height: 24},
		})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	expect(t, out.r, "ready")
	in.w.Write([]byte{3})
	if code := <-done; code != 130 {
		t.Errorf("exit code after Ctrl-C = %d, want 130", code)
	}
}

// TestCommandEndsWithItsCaller cancels a command that would not end, with a
// child of its own.
func TestCommandEndsWithItsCaller(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := pipe(t)
	c := sh("trap '' HUP; sleep 1000 & echo pid $!; wait")
	c.Stdout = out.w
	done := make(chan error, 1)
	go func() {
		_, err := guest.Exec(ctx, m.dial(t), c)
		done <- err
	}()
	var pid int
	if _, err := fmt.Fscanf(out.r, "pid %d\n", &pid); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Exec = %v, want the context's end", err)
	}
	within(t, "the command's child ends", func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}

func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !done(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func TestBrokenOutputEndsTheCommand(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	out := pipe(t)
	out.r.Close()
	c := instance.Command{Args: []string{"yes"}, Stdout: out.w}
	if code, err := guest.Exec(limited(t), m.dial(t), c); err != nil || code != 141 {
		t.Errorf("Exec = %d, %v, want 141", code, err)
	}
}

func TestManyCommandsAtOnce(t *testing.T) {
	needRoot(t)
	m := newMachine(t, &guest.Settings{})
	var all sync.WaitGroup
	for i := range 40 {
		all.Go(func() {
			r := m.run(t, sh(fmt.Sprintf("head -c 100000 /dev/zero; exit %d", i)), nil)
			if len(r.out) != 100000 || r.code != i || r.failed != nil {
				t.Errorf("command %d gave %d bytes, %d, %v", i, len(r.out), r.code, r.failed)
			}
		})
	}
	all.Wait()
}

func TestStatesAndStop(t *testing.T) {
	m := newMachine(t, &guest.Settings{})
	if e := <-m.events; e.State != wire.Running {
		t.Errorf("first event = %+v, want running", e)
	}
	info, err := guest.Ping(limited(t), m.dial(t))
	if err != nil || info.State != wire.Running || !info.System || len(info.Interfaces) == 0 {
		t.Errorf("Ping = %+v, %v", info, err)
	}
	if err := guest.Sync(limited(t), m.dial(t)); err != nil {
		t.Error(err)
	}
	if err := guest.Stop(limited(t), m.dial(t)); err != nil {
		t.Error(err)
	}
	<-m.stops
	m.agent.Set(wire.Event{State: wire.Exited, Code: 7})
	if e := <-m.events; e != (wire.Event{State: wire.Exited, Code: 7}) {
		t.Errorf("last event = %+v, want exited 7", e)
	}
	<-m.told
}

// TestConnectionLossIsSurvived breaks the port again and again.
func TestConnectionLossIsSurvived(t *testing.T) {
	m := newMachine(t, &guest.Settings{})
	for range 3 {
		m.mu.Lock()
		last := m.conns[len(m.conns)-1]
		n := len(m.conns)
		m.mu.Unlock()
		last.Close()
		within(t, "the keeper connects anew", func() bool {
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.conns) > n
		})
		if err := guest.WaitReady(limited(t), m.socket); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeeperSocketIsPrivateAndGoes(t *testing.T) {
	var socket string
	t.Run("running", func(t *testing.T) {
		m := newMachine(t, &guest.Settings{})
		socket = m.socket
		if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("socket = %v, %v, want mode 0600", info, err)
		}
	})
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v, want none", err)
	}
}

func TestFailedGuestIsNotReady(t *testing.T) {
	m := newMachine(t, &guest.Settings{})
	m.agent.Set(wire.Event{State: wire.Failed, Text: "no init\x1b[2J"})
	<-m.events
	if e := <-m.events; e.State != wire.Failed || e.Text != "no init?[2J" {
		t.Errorf("event = %+v", e)
	}
	if err := guest.WaitReady(limited(t), m.socket); !fault.Is(err, fault.Unavailable) {
		t.Errorf("WaitReady = %v, want unavailable", err)
	}
}
