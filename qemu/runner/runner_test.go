package runner

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/guest/wire"
	"brig/qemu/machine"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

func TestLogsAreBounded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	bound(path, 100, 10) // a missing log is none of its business
	log, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	write := func(s string) {
		if _, err := log.WriteString(s); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Repeat("a", 100))
	bound(path, 100, 10)
	assertFile(t, path, strings.Repeat("a", 100))
	write("0123456789")
	bound(path, 100, 10)
	assertFile(t, path, "")
	assertFile(t, path+".old", "0123456789")
	write("more") // what appends goes on at the new end
	assertFile(t, path, "more")
}

func assertFile(t *testing.T, path, want string) {
	t.Helper()
	if got, err := os.ReadFile(path); err != nil || string(got) != want {
		t.Errorf("%s holds %q, %v, want %q", path, got, err, want)
	}
}

func TestLastWordsAreSafeToPrint(t *testing.T) {
	path := filepath.Join(t.TempDir(), "console.log")
	text := append(bytes.Repeat([]byte("x\n"), 5000), "one\n\x1b[31mtwo\x07\xff\u009b\r\n\nthree\n"...)
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, want := lastWords(path), "[31mtwo?; ; three"; got != want {
		t.Errorf("lastWords = %q, want %q", got, want)
	}
	if got := lastWords(path + "x"); got != "" {
		t.Errorf("lastWords of a missing file = %q", got)
	}
}

// newVM is a machine that has no QEMU.
func newVM(t *testing.T) *vm {
	dir := t.TempDir()
	return &vm{
		m:      &instance.Machine{Name: "m", RunDir: dir, LogDir: dir},
		status: &status{dir: dir}, port: newPort(), init: make(chan struct{}), failed: make(chan error, 1),
	}
}

func event(name string, data map[string]any) qmp.Event { return qmp.Event{Event: name, Data: data} }

func read(t *testing.T, v *vm) rundir.State {
	t.Helper()
	s, err := rundir.ReadState(v.m.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStateFollowsEvents(t *testing.T) {
	v := newVM(t)
	v.status.set(rundir.State{PID: 1})
	v.event(event("STOP", nil))
	if !read(t, v).Frozen {
		t.Error("not frozen after STOP")
	}
	v.event(event("RESUME", nil))
	if read(t, v).Frozen {
		t.Error("frozen after RESUME")
	}
	v.told(wire.Event{State: wire.Running})
	if s := read(t, v); !s.Init || !s.Ready {
		t.Errorf("after init: %+v", s)
	}
	v.event(event("VSERPORT_CHANGE", map[string]any{"id": "other", "open": true}))
	if isOpen(v.port.whenOpen()) {
		t.Error("another port opened the agent's")
	}
	v.event(event("VSERPORT_CHANGE", map[string]any{"id": "agent", "open": true}))
	if !isOpen(v.port.whenOpen()) || isOpen(v.port.whenClosed()) {
		t.Error("the agent's port is not open")
	}
	v.event(event("VSERPORT_CHANGE", map[string]any{"id": "agent", "open": false}))
	if isOpen(v.port.whenOpen()) || !isOpen(v.port.whenClosed()) {
		t.Error("the agent's port is not closed")
	}
	for _, odd := range []qmp.Event{event("VSERPORT_CHANGE", nil), event("SHUTDOWN", nil), event("NEW_IN_QEMU", nil)} {
		v.event(odd)
	}
	if s := read(t, v); s.PID != 1 || s.Exit != nil {
		t.Errorf("after odd events: %+v", s)
	}
}

func TestRestartsThatLeadNowhereEndTheMachine(t *testing.T) {
	v := newVM(t)
	killed := 0
	v.kill = func() error { killed++; return nil }
	v.event(event("RESET", nil))
	select {
	case <-v.failed:
	default:
		t.Error("a restart before init ran is no failure")
	}
	v.told(wire.Event{State: wire.Running})
	for range 10 {
		for range maxResets {
			v.event(event("RESET", nil))
		}
		if s := read(t, v); s.Init || s.Ready {
			t.Errorf("after a restart: %+v", s)
		}
		v.told(wire.Event{State: wire.Running})
	}
	if killed != 0 {
		t.Fatal("a machine that comes up after restarts was ended")
	}
	for range maxResets + 1 {
		v.event(event("RESET", nil))
	}
	if killed != 1 {
		t.Error("a machine that only restarts was not ended")
	}
	v.status.processEnded(errors.New("signal: killed"))
	if s := read(t, v); s.Exit == nil || s.Exit.Code != exitLost || !strings.Contains(s.Exit.Reason, "again") {
		t.Errorf("its exit is %+v", s.Exit)
	}
}

func TestQEMUAndTheGuestMeanTheSame(t *testing.T) {
	if machine.AgentPort != wire.PortName || machine.BootConfig != wire.ConfigFile {
		t.Errorf("QEMU offers %s and %s, the guest looks for %s and %s", machine.AgentPort, machine.BootConfig, wire.PortName, wire.ConfigFile)
	}
}

func TestExit(t *testing.T) {
	killed := exec.Command("sh", "-c", "kill -9 $$").Run()
	failed := exec.Command("false").Run()
	for name, tt := range map[string]struct {
		off  string
		err  error
		want int
	}{
		"power off": {"guest-shutdown", nil, 0},
		"quit":      {"host-qmp-quit", nil, exitKilled},
		"SIGTERM":   {"host-signal", nil, exitKilled},
		"SIGKILL":   {"", killed, exitKilled},
		"crash":     {"", failed, exitLost},
		"unwatched": {"", nil, exitLost},
	} {
		if code, _ := exitOf(tt.off, tt.err); code != tt.want {
			t.Errorf("%s: exit code %d, want %d", name, code, tt.want)
		}
	}
	v := newVM(t)
	v.told(wire.Event{State: wire.Exited, Code: 7})
	v.status.processEnded(killed)
	if got := (Keeper{}).Exit(v.m); got.Code != 7 || got.At.IsZero() {
		t.Errorf("Exit = %+v, want the app's code 7 whatever QEMU did then", got)
	}
	if got := (Keeper{}).Exit(newVM(t).m); got.Code != exitLost || got.Reason == "" {
		t.Errorf("Exit that nobody saw = %+v", got)
	}
}
