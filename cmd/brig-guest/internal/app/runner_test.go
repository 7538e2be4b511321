package app

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
)

// runnerVar holds, in a process that is to be process 1 of a test, what it has
// to run.
const runnerVar = "BRIG_TEST_PROCESS"

func TestMain(m *testing.M) {
	if p := os.Getenv(runnerVar); p != "" {
		os.Exit(processOne(p))
	}
	os.Exit(m.Run())
}

// processOne runs a main process in a process namespace of its own.
func processOne(encoded string) int {
	os.Unsetenv(runnerVar)
	r := &runner{
		process: &instance.Process{}, hostname: "pet", log: os.Stderr,
		started: func() { fmt.Fprintln(os.Stderr, "started") }, reaped: func(int) {},
	}
	if err := json.Unmarshal([]byte(encoded), r.process); err != nil {
		panic(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		panic(err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		panic(err)
	}
	return r.run()
}

// child is a process 1 under test.
type child struct {
	*exec.Cmd
	out, err *os.File // what it says
}

func start(t *testing.T, p instance.Process, stdin *os.File) *child {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	b, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	t.Cleanup(cancel)
	c := &child{Cmd: exec.CommandContext(ctx, "/proc/self/exe")}
	c.Env = append(os.Environ(), runnerVar+"="+string(b))
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Setsid: true}
	var outW, errW *os.File
	if c.out, outW, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	if c.err, errW, err = os.Pipe(); err != nil {
		t.Fatal(err)
	}
	c.Stdin, c.Stdout, c.Stderr = stdin, outW, errW
	if stdin != nil {
		c.Stdout = stdin
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	outW.Close()
	errW.Close()
	t.Cleanup(func() { c.Process.Kill(); c.Wait(); c.out.Close(); c.err.Close() })
	return c
}

// end gives the exit code and what was said.
func (c *child) end(t *testing.T) (code int, out, errs string) {
	t.Helper()
	o, _ := io.ReadAll(c.out)
	e, _ := io.ReadAll(c.err)
	err := c.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return exit.ExitCode(), string(o), string(e)
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, string(o), string(e)
}

// expect reads until want has come.
func expect(t *testing.T, r *os.File, want string) {
	t.Helper()
	r.SetReadDeadline(time.Now().Add(20 * time.Second))
	defer r.SetReadDeadline(time.Time{})
	var got []byte
	b := make([]byte, 1)
	for !bytes.HasSuffix(got, []byte(want)) {
		n, err := r.Read(b)
		if got = append(got, b[:n]...); err != nil {
			t.Fatalf("read %q and then %v, want %q", got, err, want)
		}
	}
}

func sh(script string) instance.Process { return instance.Process{Args: []string{"sh", "-c", script}} }

func TestExitCodes(t *testing.T) {
	for name, c := range map[string]struct {
		process instance.Process
		code    int
		says    string
	}{
		"fine":            {sh("exit 0"), 0, "started"},
		"its own":         {sh("exit 7"), 7, "started"},
		"a signal":        {sh("kill -TERM $$"), 143, "started"},
		"not there":       {instance.Process{Args: []string{"no-such-program"}}, 127, "command not found"},
		"not executable":  {instance.Process{Args: []string{"/etc/passwd"}}, 126, "permission denied"},
		"a directory":     {instance.Process{Args: []string{"/etc"}}, 126, "is a directory"},
		"unknown user":    {instance.Process{Args: []string{"true"}, User: "nobody-here"}, 126, "no such user"},
		"bad stop signal": {instance.Process{Args: []string{"true"}, StopSignal: "SIGNOPE"}, 0, "using SIGTERM"},
	} {
		t.Run(name, func(t *testing.T) {
			code, _, says := start(t, c.process, nil).end(t)
			if code != c.code || !strings.Contains(says, c.says) {
				t.Errorf("exit code %d, said %q, want %d and %q", code, says, c.code, c.says)
			}
		})
	}
}

func TestProcessIsAsTheImageSays(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "here")
	if err := os.Chmod(filepath.Dir(filepath.Dir(dir)), 0o755); err != nil {
		t.Fatal(err)
	}
	p := sh("pwd; id -u; id -g; echo $HOSTNAME $HOME $IMAGE; echo $$; cut -d' ' -f 4,5,6 /proc/self/stat")
	p.Dir, p.User, p.Env = dir, "0:1", []string{"IMAGE=yes"}
	code, out, errs := start(t, p, nil).end(t)
	lines := strings.Split(strings.TrimSpace(out), "\n")
	if code != 0 || len(lines) != 6 {
		t.Fatalf("exit code %d, said %q %q", code, out, errs)
	}
	pid := lines[4]
	want := []string{dir, "0", "1", "pet /root yes", pid, pid + " " + pid + " " + pid}
	for i := range want {
		if lines[i] != want[i] {
			t.Errorf("line %d = %q, want %q", i, lines[i], want[i])
		}
	}
}

func TestSignalsReachTheMainProcess(t *testing.T) {
	for name, c := range map[string]struct {
		stop string
		send syscall.Signal
		want string
	}{
		"as they are":               {"", unix.SIGTERM, "TERM"},
		"hangup":                    {"", unix.SIGHUP, "HUP"},
		"user's":                    {"", unix.SIGUSR1, "USR1"},
		"real-time":                 {"", 36, "36"},
		"halt is SIGTERM":           {"", unix.SIGPWR, "TERM"},
		"halt is the image's":       {"SIGQUIT", unix.SIGPWR, "QUIT"},
		"halt is a real-time one":   {"SIGRTMIN+3", unix.SIGPWR, "37"},
		"other signals stay theirs": {"SIGQUIT", unix.SIGTERM, "TERM"},
	} {
		t.Run(name, func(t *testing.T) {
			p := sh(`for s in TERM HUP QUIT USR1 36 37; do trap "echo got $s; exit 3" $s; done; echo ready; while :; do sleep 0.02; done`)
			p.Args[0] = "bash" // dash knows no real-time signals
			p.StopSignal = c.stop
			child := start(t, p, nil)
			expect(t, child.out, "ready\n")
			if err := child.Process.Signal(c.send); err != nil {
				t.Fatal(err)
			}
			if code, out, _ := child.end(t); code != 3 || out != "got "+c.want+"\n" {
				t.Errorf("exit code %d, said %q, want got %s", code, out, c.want)
			}
		})
	}
}

func TestOrphansAreReaped(t *testing.T) {
	p := sh(`
for i in 1 2 3 4 5 6 7 8 9 10; do sh -c 'sleep 0.0$0 & echo $! >> '"$DIR"'/pids' $i; done
while read pid; do
	n=0
	while [ -d /proc/$pid ]; do
		n=$((n+1)); [ $n -lt 500 ] || { echo "$pid stays: $(cat /proc/$pid/stat)"; exit 1; }
		sleep 0.02
	done
done < $DIR/pids
wc -l < $DIR/pids
exit 4`)
	p.Env = []string{"DIR=" + t.TempDir()}
	if code, out, errs := start(t, p, nil).end(t); code != 4 || strings.TrimSpace(out) != "10" {
		t.Errorf("exit code %d, said %q %q, want 4 and 10", code, out, errs)
	}
}

func TestIdleStaysUntilStopped(t *testing.T) {
	for _, s := range []syscall.Signal{unix.SIGPWR, unix.SIGTERM, unix.SIGINT} {
		child := start(t, instance.Process{Args: []string{"/bin/sh"}, Idle: true}, nil)
		expect(t, child.err, "nothing to run")
		expect(t, child.err, "started\n")
		if err := child.Process.Signal(unix.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := child.Process.Signal(unix.SIGWINCH); err != nil {
			t.Fatal(err)
		}
		if err := child.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
		if code, _, _ := child.end(t); code != 0 {
			t.Errorf("exit code after %v = %d, want 0", s, code)
		}
	}
}

// TestTerminalBecomesTheMainProcess's starts process 1 as liblxc does: with a
// terminal for its streams.
func TestTerminalBecomesTheMainProcess(t *testing.T) {
	master, slave := terminal(t)
	p := sh(`tty; echo through > /dev/tty; echo $TERM; read line; echo got $line; exit 6`)
	p.User = "1"
	child := start(t, p, slave)
	slave.Close()
	expect(t, master, "/dev/pts/")
	expect(t, master, "through")
	expect(t, master, "xterm")
	if _, err := master.WriteString("typed\n"); err != nil {
		t.Fatal(err)
	}
	expect(t, master, "got typed")
	if code, _, errs := child.end(t); code != 6 {
		t.Errorf("exit code %d, said %q, want 6", code, errs)
	}
}

// TestMachineOutlivesItsTerminal hangs up, as the death of liblxc's monitor does.
func TestMachineOutlivesItsTerminal(t *testing.T) {
	master, slave := terminal(t)
	child := start(t, sh(`echo up; while :; do sleep 60; done`), slave)
	slave.Close()
	expect(t, master, "up")
	master.Close()
	if err := child.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := child.end(t); code != 128+int(unix.SIGTERM) {
		t.Errorf("exit code %d, said %q, want that of SIGTERM, not of the hangup", code, errs)
	}
}

func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "master")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	if slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// A held process has been executed, and runs nothing: what it would do is not
// done, and what it sees can be looked at for as long as one likes.
func TestHeldProcessIsLookedAt(t *testing.T) {
	mark := filepath.Join(t.TempDir(), "ran")
	p := sh("echo ran >" + mark)
	p.Held, p.Dir, p.User, p.Env = true, "/usr", "3:4", []string{"IMAGE=yes"}
	c := start(t, p, nil)
	expect(t, c.err, "started\n")
	var held int
	for end := time.Now().Add(20 * time.Second); ; {
		var err error
		if held, err = guest.Held(c.Process.Pid); err == nil {
			break
		}
		if !fault.Is(err, fault.NotFound) || time.Now().After(end) {
			t.Fatal(err)
		}
	}
	seen, err := guest.Look(held)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Join(seen.Args, "|") != strings.Join(p.Args, "|") || seen.Dir != "/usr" || seen.UID != 3 || seen.GID != 4 || !slices.Contains(seen.Env, "IMAGE=yes") {
		t.Errorf("it sees %+v", seen)
	}
	// Its stop signal would wait as it does.
	if err := c.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code, _, _ := c.end(t); code != 128+9 {
		t.Errorf("exit code %d, want that of one that was killed", code)
	}
	if _, err := os.Stat(mark); !os.IsNotExist(err) {
		t.Errorf("it ran (%v)", err)
	}
}
