package lxc

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// programs are what the little tree has.
var programs = []string{"sh", "cat", "env", "id", "ls", "printf", "readlink", "sleep", "stat", "stty", "true", "tty", "head", "yes", "sync", "touch"}

// littleTree is a root file system with a shell and a few programs of this host,
// an init that sleeps, and some users.
func littleTree(t testing.TB) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := filepath.Join(t.TempDir(), "tree")
	put := func(name, content string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	copied := map[string]bool{}
	for _, name := range programs {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		files := map[string]string{path: "/usr/bin/" + name}
		for _, f := range strings.Fields(string(out)) {
			if strings.HasPrefix(f, "/") {
				files[f] = f
			}
		}
		for from, to := range files {
			if copied[to] {
				continue
			}
			copied[to] = true
			data, err := os.ReadFile(from)
			if err != nil {
				t.Fatal(err)
			}
			put(to, string(data), 0o755)
		}
	}
	put("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n", 0o644)
	put("/etc/group", "root:x:0:\nalice:x:1000:\nwheel:x:27:alice\n", 0o644)
	put("/home/alice/.keep", "", 0o644)
	put("/root/.keep", "", 0o644)
	put("/usr/bin/plain", "not a program\n", 0o644)
	put("/usr/bin/garbage", "\x01\x02", 0o755)
	return dir
}

// little is a container of the little tree.
func little(t testing.TB) *instance.Machine {
	t.Helper()
	m := machine(t, littleTree(t))
	m.Boot.Init = []string{"/usr/bin/sleep", "1000000"}
	return m
}

func TestExec(t *testing.T) {
	m := little(t)
	d := started(t, m)
	for _, tt := range []struct {
		name string
		c    instance.Command
		want result
	}{
		{"nothing", sh("true"), result{}},
		{"code", sh("exit 3"), result{code: 3}},
		{"largest code", sh("exit 255"), result{code: 255}},
		{"signal", sh("kill -KILL $$"), result{code: 137}},
		{"streams", sh("printf out; printf err >&2"), result{0, "out", "err"}},
		{"arguments", instance.Command{Args: []string{"printf", "<%s>", "a b", "", "$x"}}, result{out: "<a b><><$x>"}},
		{"unknown command", instance.Command{Args: []string{"nix"}}, result{127, "", "brig: cannot run \"nix\": command not found\n"}},
		{"unknown path", instance.Command{Args: []string{"/nix"}}, result{127, "", "brig: cannot run \"/nix\": command not found\n"}},
		{"not executable", instance.Command{Args: []string{"plain"}}, result{126, "", "brig: cannot run \"plain\": permission denied\n"}},
		{"no program", instance.Command{Args: []string{"garbage"}}, result{126, "", "brig: cannot run \"garbage\": exec format error\n"}},
		{"directory", instance.Command{Args: []string{"/etc"}}, result{126, "", "brig: cannot run \"/etc\": permission denied\n"}},
		{"environment", instance.Command{Args: []string{"env"}, Env: []string{"A=1", "B=x y"}}, result{out: "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOSTNAME=web\nHOME=/root\nUSER=root\nA=1\nB=x y\n"}},
		{"own path", instance.Command{Args: []string{"true"}, Env: []string{"PATH=/nowhere"}}, result{127, "", "brig: cannot run \"true\": command not found\n"}},
		{"home", sh("readlink /proc/self/cwd"), result{out: "/root\n"}},
		{"directory given", instance.Command{Args: []string{"readlink", "/proc/self/cwd"}, Dir: "/etc"}, result{out: "/etc\n"}},
		{"user", instance.Command{Args: []string{"sh", "-c", "id; readlink /proc/self/cwd; printf $USER"}, User: "alice"}, result{out: "uid=1000(alice) gid=1000(alice) groups=1000(alice),27(wheel)\n/home/alice\nalice"}},
		{"user and group", instance.Command{Args: []string{"id"}, User: "alice:wheel"}, result{out: "uid=1000(alice) gid=27(wheel) groups=27(wheel)\n"}},
		{"numbers", instance.Command{Args: []string{"id"}, User: "5:6"}, result{out: "uid=5 gid=6 groups=6\n"}},
		{"files", sh("ls /proc/self/fd"), result{out: "0\n1\n2\n3\n"}}, // 3 is the folder itself
		{"limits", sh("umask; ulimit -n"), result{out: "0022\n1024\n"}},
		{"opened again", instance.Command{Args: []string{"sh", "-c", "printf x >/dev/stdout; printf y >/dev/stderr"}, User: "alice"}, result{0, "x", "y"}},
		{"own ids", sh("printf x >/f; stat -c %u:%g /f; head -n1 /proc/self/uid_map"), result{out: fmt.Sprintf("0:0\n%10d %10d %10d\n", 0, m.IDMap.Base, m.IDMap.Count)}},
		{"seccomp", sh("while read k v; do case $k in Seccomp:) printf $v;; esac; done </proc/self/status"), result{out: "2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := try(t, d, m, tt.c); got != tt.want {
				t.Errorf("Exec(%q) =\n%+v, want\n%+v", tt.c.Args, got, tt.want)
			}
		})
	}
	for name, c := range map[string]instance.Command{
		"user":      {Args: []string{"true"}, User: "bob"},
		"group":     {Args: []string{"true"}, User: "alice:bob"},
		"directory": {Args: []string{"true"}, Dir: "/none"},
	} {
		if code, err := d.Exec(t.Context(), m, c); !fault.Is(err, fault.NotFound) {
			t.Errorf("Exec with an unknown %s = %d, %v, want not-found", name, code, err)
		}
	}
}

func TestExecReadsInput(t *testing.T) {
	m := little(t)
	d := started(t, m)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	text := strings.Repeat("brig", 1<<18)
	go func() {
		io.WriteString(w, text)
		w.Close()
	}()
	got := try(t, d, m, instance.Command{Args: []string{"cat"}, Stdin: r})
	if got.code != 0 || got.out != text {
		t.Errorf("cat gave %d bytes and code %d, want %d and 0", len(got.out), got.code, len(text))
	}
}

func TestExecPassesSignalsOn(t *testing.T) {
	m := little(t)
	d := started(t, m)
	signals := make(chan syscall.Signal, 1)
	var out bytes.Buffer
	stdout, done := collect(t, &notify{w: &out, on: "ready", do: func() { signals <- syscall.SIGUSR1 }})
	code, err := d.Exec(t.Context(), m, instance.Command{
		Args:    []string{"sh", "-c", "trap 'printf got; exit 7' USR1; echo ready; while :; do sleep 0.01; done"},
		Stdout:  stdout,
		Signals: signals,
	})
	stdout.Close()
	<-done
	if code != 7 || err != nil || out.String() != "ready\ngot" {
		t.Errorf("Exec = %d, %v, %q; want 7 and the signal got", code, err, out.String())
	}
}

// notify calls do once what was written contains on.
type notify struct {
	w    *bytes.Buffer
	on   string
	do   func()
	done bool
}

func (n *notify) Write(p []byte) (int, error) {
	n.w.Write(p)
	if !n.done && strings.Contains(n.w.String(), n.on) {
		n.done = true
		n.do()
	}
	return len(p), nil
}

func TestCancelledExecIsKilled(t *testing.T) {
	m := little(t)
	d := started(t, m)
	ctx, cancel := context.WithCancel(t.Context())
	var out bytes.Buffer
	stdout, done := collect(t, &notify{w: &out, on: "ready", do: cancel})
	_, err := d.Exec(ctx, m, instance.Command{Args: []string{"sh", "-c", "echo ready; exec sleep 1000"}, Stdout: stdout})
	if fault.Of(err) != fault.Cancelled {
		t.Errorf("Exec = %v, want cancelled", err)
	}
	stdout.Close()
	<-done // the command's copy is closed as well: it is gone
}

// typed runs a command on a terminal, types what is wanted once the terminal
// shows when, and gives what the terminal showed.
func typed(t *testing.T, d *Driver, m *instance.Machine, c instance.Command, when string, do func(in *os.File)) (int, string) {
	t.Helper()
	in, input, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	defer input.Close()
	var out bytes.Buffer
	stdout, done := collect(t, &notify{w: &out, on: when, do: func() { do(input) }})
	c.Stdin, c.Stdout = in, stdout
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	code, err := d.Exec(ctx, m, c)
	stdout.Close()
	<-done
	if err != nil {
		t.Fatalf("Exec(%q) = %v; it showed %q", c.Args, err, out.String())
	}
	return code, out.String()
}

func TestExecOnATerminal(t *testing.T) {
	m := little(t)
	d := started(t, m)
	sizes := make(chan instance.Size, 1)
	script := `stty size; tty; printf mine >/dev/tty; stat -c %u $(tty); trap 'stty size; exit 5' WINCH; echo ready; while :; do sleep 0.01; done`
	code, out := typed(t, d, m, instance.Command{
		Args:     []string{"sh", "-c", script},
		User:     "alice",
		Terminal: &instance.Terminal{Width: 91, Height: 33, Resize: sizes},
	}, "ready", func(*os.File) { sizes <- instance.Size{Width: 100, Height: 40} })
	want := "33 91\r\n/dev/pts/1\r\nmine1000\r\nready\r\n40 100\r\n"
	if code != 5 || out != want {
		t.Errorf("on a terminal = %d, %q; want 5, %q", code, out, want)
	}

	code, out = typed(t, d, m, instance.Command{
		Args:     []string{"sh", "-c", "stty -echo; echo ready; cat; trap '' INT; printf end"},
		Terminal: &instance.Terminal{Width: 80, Height: 24},
	}, "ready", func(in *os.File) { io.WriteString(in, "typed\n"); in.Close() })
	if code != 0 || out != "ready\r\ntyped\r\nend" {
		t.Errorf("typed = %d, %q", code, out)
	}

	// A shell that forks may catch the signal for its child, and lose it.
	code, out = typed(t, d, m, instance.Command{
		Args:     []string{"sh", "-c", "echo ready; exec sleep 1000"},
		Terminal: &instance.Terminal{Width: 80, Height: 24},
	}, "ready", func(in *os.File) { io.WriteString(in, "\x03") })
	if code != 130 {
		t.Errorf("interrupted = %d, %q, want 130", code, out)
	}

	code, out = typed(t, d, m, instance.Command{
		Args:     []string{"sh", "-c", "sleep 1000 & head -c 100000 /dev/zero | cat -v"},
		Terminal: &instance.Terminal{Width: 80, Height: 24},
	}, "never", nil)
	if n := strings.Count(out, "^@"); code != 0 || n != 100000 {
		t.Errorf("with something in the background = %d and %d of 100000 characters", code, n)
	}
}
