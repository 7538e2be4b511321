package lxc

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// app is a container of the little tree that runs one process.
func app(t *testing.T, p instance.Process) *instance.Machine {
	t.Helper()
	m := machine(t, littleTree(t))
	m.Boot.Process = &p
	m.Helpers.Guest = guestProgram(t)
	return m
}

// guestProgram gives brig-guest: the one that the environment names, for where no
// compiler is, or one made now.
func guestProgram(t *testing.T) string {
	t.Helper()
	if path := os.Getenv("BRIG_TEST_GUEST"); path != "" {
		return path
	}
	path := filepath.Join(t.TempDir(), "brig-guest")
	build := exec.Command("go", "build", "-o", path, "brig/cmd/brig-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

// waitStopped waits until m has ended by itself and gives how.
func waitStopped(t *testing.T, d *Driver, m *instance.Machine) instance.State {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var s instance.State
	err := until(ctx, func() (bool, error) {
		s = d.State(m)
		_, err := os.Lstat(m.Path(instance.MachineFile))
		return s.Status == instance.Stopped && os.IsNotExist(err), nil
	})
	if err != nil {
		t.Fatalf("it does not end: %+v", s)
	}
	return s
}

func TestAppEndsWithItsExitCode(t *testing.T) {
	m := app(t, instance.Process{
		Args: []string{"sh", "-c", "printf '<%s>' \"$@\"; id; readlink /proc/self/cwd; printf \"$A $HOSTNAME\"; exit 42", "x", "a b"},
		Env:  []string{"A=1"}, User: "alice", Dir: "/etc",
	})
	d := started(t, m)
	s := waitStopped(t, d, m)
	if s.ExitCode == nil || *s.ExitCode != 42 {
		t.Errorf("State = %+v, want exit code 42", s)
	}
	log, err := os.ReadFile(filepath.Join(m.LogDir, config.ConsoleLog))
	want := "<a b>uid=1000(alice) gid=1000(alice) groups=1000(alice),27(wheel)\r\n/etc\r\n1 web"
	if err != nil || !strings.Contains(string(log), want) {
		t.Errorf("the console's log is %q, %v; want %q", log, err, want)
	}
	// Its last cgroup goes behind its back.
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, _ := d.cgroup(m)
	until(ctx, func() (bool, error) {
		for _, dir := range c.h.Dirs {
			if _, err := os.Lstat(filepath.Join(dir, c.names.Pivot)); err == nil {
				return false, nil
			}
		}
		return true, nil
	})
	nothingLeft(t, m)
}

func TestAppGetsItsStopSignal(t *testing.T) {
	m := app(t, instance.Process{
		Args:       []string{"sh", "-c", "trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"},
		StopSignal: "SIGUSR1",
	})
	d := started(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	log := filepath.Join(m.LogDir, config.ConsoleLog)
	if err := until(ctx, func() (bool, error) {
		data, _ := os.ReadFile(log)
		return strings.Contains(string(data), "ready"), nil
	}); err != nil {
		t.Fatal(err)
	}
	// brig-guest tells that it is ready in its own time.
	if err := until(ctx, func() (bool, error) { return d.State(m).Health == "ready", nil }); err != nil {
		t.Errorf("State = %+v: %v", d.State(m), err)
	}
	if s := d.State(m); s.Status != instance.Running {
		t.Errorf("State = %+v", s)
	}
	if r := try(t, d, m, sh("printf $$")); r.code != 0 || r.out == "1" {
		t.Errorf("Exec = %+v", r)
	}
	if err := d.Stop(t.Context(), m, instance.StopOptions{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	if s := d.State(m); s.ExitCode == nil || *s.ExitCode != 9 {
		t.Errorf("State = %+v, want exit code 9", s)
	}
	nothingLeft(t, m)
}

func TestIdleAppStopsAndKilledAppSaysSo(t *testing.T) {
	m := app(t, instance.Process{Idle: true})
	d := started(t, m)
	if err := d.Stop(t.Context(), m, instance.StopOptions{Timeout: patience}); err != nil {
		t.Fatal(err)
	}
	if s := d.State(m); s.ExitCode == nil || *s.ExitCode != 0 {
		t.Errorf("State of a stopped idle app = %+v, want exit code 0", s)
	}
	os.Remove(m.Path(instance.ExitFile))
	if err := d.Start(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if err := d.Stop(t.Context(), m, instance.StopOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if s := d.State(m); s.ExitCode == nil || *s.ExitCode != 137 {
		t.Errorf("State of a killed app = %+v, want exit code 137", s)
	}
}

func TestHostileExitFileIsNotBelieved(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "exit")
	for name, put := range map[string]func() error{
		"link":   func() error { return os.Symlink("/etc/hostname", path) },
		"fifo":   func() error { return unix.Mkfifo(path, 0o600) },
		"large":  func() error { return os.WriteFile(path, []byte(strings.Repeat("1", 100)), 0o600) },
		"number": func() error { return os.WriteFile(path, []byte("256"), 0o600) },
		"minus":  func() error { return os.WriteFile(path, []byte("-1"), 0o600) },
		"none":   func() error { return nil },
	} {
		os.Remove(path)
		if err := put(); err != nil {
			t.Fatal(err)
		}
		if code, err := readExit(path); err == nil {
			t.Errorf("%s: readExit = %d, want an error", name, code)
		}
	}
	os.Remove(path)
	if err := os.WriteFile(path, []byte("3\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, err := readExit(path); code != 3 || err != nil {
		t.Errorf("readExit = %d, %v, want 3", code, err)
	}
}
