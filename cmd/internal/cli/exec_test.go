package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

func TestExecPassesCodesThrough(t *testing.T) {
	for _, code := range []int{0, 1, 2, 126, 127, 137} {
		f := world()
		f.exec = func(context.Context, string, instance.Command) (int, error) { return code, nil }
		if r := f.run(t, "exec", "web", "--", "x"); r.code != code || r.stderr != "" {
			t.Errorf("exit code %d, want %d; stderr %q", r.code, code, r.stderr)
		}
	}
	f := world()
	f.exec = func(context.Context, string, instance.Command) (int, error) {
		return 0, fault.New(fault.Unavailable, "the agent does not answer")
	}
	if r := f.run(t, "exec", "web", "--", "x"); r.code != 125 || r.stderr != "Error: the agent does not answer\n" {
		t.Errorf("exit code %d, want 125; stderr %q", r.code, r.stderr)
	}
}

func TestExecHandsOnWhatIsAsked(t *testing.T) {
	cases := map[string]string{
		"exec web ls":                            `exec web ["ls"] user="" dir="" env=[] stdin=true terminal=false`,
		"exec web -n -- ls -l":                   `exec web ["ls" "-l"] user="" dir="" env=[] stdin=false terminal=false`,
		"exec web --user 1000 --cwd /srv -- ls":  `exec web ["ls"] user="1000" dir="/srv" env=[] stdin=true terminal=false`,
		"exec web --user u --group g -- ls":      `exec web ["ls"] user="u:g" dir="" env=[] stdin=true terminal=false`,
		"exec web --group g -- ls":               `exec web ["ls"] user="0:g" dir="" env=[] stdin=true terminal=false`,
		"exec --env A=1 --env B= web -- ls -- x": `exec web ["ls" "--" "x"] user="" dir="" env=["A=1" "B="] stdin=true terminal=false`,
		"exec -t web -- ls":                      `exec web ["ls"] user="" dir="" env=["TERM=vt220"] stdin=true terminal=true`,
		"exec -t web --env TERM=x -- ls":         `exec web ["ls"] user="" dir="" env=["TERM=x"] stdin=true terminal=true`,
	}
	for line, want := range cases {
		f := world()
		f.exec = func(_ context.Context, _ string, c instance.Command) (int, error) {
			fmt.Fprint(c.Stdout, "out")
			if c.Terminal == nil {
				fmt.Fprint(c.Stderr, "err")
			} else if c.Stderr != nil {
				t.Errorf("%s: has a terminal and its own standard error", line)
			}
			return 0, nil
		}
		app := App{Getenv: func(name string) string { return map[string]string{"TERM": "vt220"}[name] }}
		r := f.runIn(t, t.Context(), app, strings.Fields(line)...)
		if !slices.Equal(f.calls, []string{want}) {
			t.Errorf("%s: calls %q, want %q", line, f.calls, want)
		}
		if r.stdout != "out" || r.stderr != "err" && !strings.Contains(want, "terminal=true") {
			t.Errorf("%s: stdout %q, stderr %q", line, r.stdout, r.stderr)
		}
	}
}

func TestExecPassesSignalsOn(t *testing.T) {
	f := world()
	f.exec = func(ctx context.Context, _ string, c instance.Command) (int, error) {
		unix.Kill(os.Getpid(), unix.SIGTERM)
		select {
		case sig := <-c.Signals:
			return 128 + int(sig), ctx.Err()
		case <-time.After(10 * time.Second):
			return 0, fmt.Errorf("no signal came")
		}
	}
	if r := f.run(t, "exec", "web", "--", "x"); r.code != 143 {
		t.Errorf("exit code %d, want 143; stderr %q", r.code, r.stderr)
	}
}

func TestExecGivesUpAfterThreeSignals(t *testing.T) {
	f := world()
	f.exec = func(ctx context.Context, _ string, c instance.Command) (int, error) {
		for range 3 {
			unix.Kill(os.Getpid(), unix.SIGINT)
			select {
			case <-c.Signals:
			case <-time.After(10 * time.Second):
				return 0, fmt.Errorf("no signal came")
			}
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(10 * time.Second):
			return 0, nil
		}
	}
	r := f.run(t, "exec", "web", "--", "x")
	if r.code != 125 || !strings.Contains(r.stderr, "gave up waiting") {
		t.Errorf("exit code %d, want 125; stderr %q", r.code, r.stderr)
	}
}

// openPTY gives both ends of a new terminal.
func openPTY(t *testing.T) (controller, user *os.File) {
	t.Helper()
	controller, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { controller.Close() })
	n, err := unix.IoctlGetInt(int(controller.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(controller.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	user, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { user.Close() })
	return controller, user
}

func setSize(t *testing.T, f *os.File, w, h uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: w, Row: h}); err != nil {
		t.Fatal(err)
	}
}

func isRaw(t *testing.T, f *os.File) bool {
	t.Helper()
	state, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	return state.Lflag&(unix.ICANON|unix.ECHO) == 0
}

func TestExecOnATerminal(t *testing.T) {
	controller, user := openPTY(t)
	setSize(t, controller, 100, 30)
	f := world()
	f.exec = func(ctx context.Context, _ string, c instance.Command) (int, error) {
		if !isRaw(t, user) {
			t.Error("the terminal is not raw while the command runs")
		}
		if c.Terminal == nil || c.Terminal.Width != 100 || c.Terminal.Height != 30 {
			t.Errorf("terminal %+v, want 100x30", c.Terminal)
		}
		setSize(t, controller, 120, 40)
		unix.Kill(os.Getpid(), unix.SIGWINCH)
		select {
		case size := <-c.Terminal.Resize:
			if size != (instance.Size{Width: 120, Height: 40}) {
				t.Errorf("new size %+v, want 120x40", size)
			}
		case <-time.After(10 * time.Second):
			t.Error("no new size came")
		}
		return 7, nil
	}
	if r := f.runIn(t, t.Context(), App{Stdin: user, Stdout: user}, "shell", "web"); r.code != 7 {
		t.Errorf("exit code %d, want 7; stderr %q", r.code, r.stderr)
	}
	if isRaw(t, user) {
		t.Error("the terminal is still raw")
	}
}

// TestTerminalIsRestored covers the ends that are no return: a panic, and a
// first signal, after which a second one may kill at any time.
func TestTerminalIsRestored(t *testing.T) {
	_, user := openPTY(t)
	app := App{Stdin: user, Stdout: user}

	ctx, cancel := context.WithCancel(t.Context())
	f := world()
	f.exec = func(ctx context.Context, _ string, _ instance.Command) (int, error) {
		cancel()
		for deadline := time.Now().Add(10 * time.Second); isRaw(t, user); {
			if time.Now().After(deadline) {
				t.Error("the terminal is still raw after a signal")
				break
			}
		}
		return 0, ctx.Err()
	}
	if r := f.runIn(t, ctx, app, "shell", "web"); r.code != 130 {
		t.Errorf("exit code %d, want 130; stderr %q", r.code, r.stderr)
	}

	f.exec = func(context.Context, string, instance.Command) (int, error) { panic("bug") }
	func() {
		defer func() {
			if recover() == nil {
				t.Error("no panic")
			}
		}()
		f.runIn(t, t.Context(), app, "shell", "web")
	}()
	if isRaw(t, user) {
		t.Error("the terminal is still raw after a panic")
	}
}

func TestConsoleIsLeftByCtrlAQ(t *testing.T) {
	controller, user := openPTY(t)
	setSize(t, controller, 90, 20)
	f := world()
	f.console = func(ctx context.Context, _ string, o instance.ConsoleOptions) error {
		select {
		case size := <-o.Resize:
			if size != (instance.Size{Width: 90, Height: 20}) {
				t.Errorf("size %+v, want 90x20", size)
			}
		case <-time.After(10 * time.Second):
			t.Error("the size did not come")
		}
		controller.WriteString("ls\r\x01q")
		got, err := io.ReadAll(o.Input)
		if string(got) != "ls\r" || err != nil {
			t.Errorf("console got %q, %v", got, err)
		}
		<-ctx.Done()
		return ctx.Err()
	}
	r := f.runIn(t, t.Context(), App{Stdin: user, Stdout: user}, "console", "web")
	if r.code != 0 || !strings.Contains(r.stderr, "press ctrl-a q") {
		t.Errorf("exit code %d; stderr %q", r.code, r.stderr)
	}
	if isRaw(t, user) {
		t.Error("the terminal is still raw")
	}
}

func TestEscape(t *testing.T) {
	cases := []struct {
		in, out string
		left    bool
	}{
		{"abc", "abc", false},
		{"ab\x01qcd", "ab", true},
		{"q\x01\x01q", "q\x01q", false},
		{"\x01b", "\x01b", false},
		{"a\x01", "a\x01", false},
		{"\x01\x01\x01q", "\x01", true},
		{"", "", false},
	}
	for _, c := range cases {
		for how, in := range map[string]io.Reader{"at once": strings.NewReader(c.in), "by byte": iotest.OneByteReader(strings.NewReader(c.in)), "with end": iotest.DataErrReader(strings.NewReader(c.in))} {
			left := false
			e := &escape{from: in, leave: func() { left = true }}
			got, err := io.ReadAll(iotest.OneByteReader(e))
			if string(got) != c.out || left != c.left || err != nil {
				t.Errorf("%q %s gives %q, left %t, %v; want %q, left %t", c.in, how, got, left, err, c.out, c.left)
			}
		}
	}
}

// TestLoginShellScript runs the script of brig shell with this host's own
// shells.
func TestLoginShellScript(t *testing.T) {
	cmd := exec.Command("/bin/sh", "-c", loginShell)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "HOME=/nowhere"}
	cmd.Stdin = strings.NewReader("echo \"<$SHELL $0 $HOME $LOGNAME>\"; exit 5\n")
	var out bytes.Buffer
	cmd.Stdout = &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err := cmd.Run()
	if cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 5 {
		t.Fatalf("ended with %v, want exit code 5", err)
	}
	fields := strings.Fields(strings.Trim(out.String(), "<>\n"))
	if len(fields) < 3 || !strings.HasPrefix(fields[0], "/") || fields[2] == "/nowhere" {
		t.Errorf("the shell says %q, want SHELL, name, HOME and LOGNAME of %d", out.String(), os.Getuid())
	}
}
