package qmp_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/qemu/qmp"
	"brig/qemu/rundir"
)

// start runs a QEMU without a machine, which listens in the directory it gives.
func start(t *testing.T) (string, *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	l, err := rundir.Listen(dir, rundir.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-M", "none", "-S",
		"-chardev", "socket,id=qmp,fd=3,server=on,wait=off", "-mon", "chardev=qmp,mode=control")
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	if err := cmd.Start(); errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs qemu-system-x86_64")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return dir, cmd
}

func TestRun(t *testing.T) {
	dir, cmd := start(t)
	m, events, err := qmp.DialEvents(t.Context(), dir, rundir.QMP)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan string, 8)
	go func() {
		defer close(seen)
		for e := range events {
			seen <- e.Event
		}
	}()
	var status struct {
		Status string `json:"status"`
	}
	if err := m.Run(t.Context(), "query-status", nil, &status); err != nil || status.Status != "prelaunch" {
		t.Errorf("query-status = %+v, %v", status, err)
	}
	if err := m.Run(t.Context(), "device_del", map[string]string{"id": "none"}, nil); fault.Of(err) != fault.Internal {
		t.Errorf("a refused command gives %v, want an internal error", err)
	}
	if err := m.Run(t.Context(), "cont", nil, nil); err != nil {
		t.Errorf("cont after a refusal = %v", err)
	}
	if e := <-seen; e != "RESUME" {
		t.Errorf("first event is %s, want RESUME", e)
	}
	if err := m.Run(t.Context(), "quit", nil, nil); err != nil {
		t.Errorf("quit = %v", err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := m.Run(t.Context(), "cont", nil, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("cont after the end = %v, want unavailable", err)
	}
	m.Close()
	for range seen { // closed, because the connection is
	}
	if err := qmp.One(t.Context(), dir, "cont", nil, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("One after the end = %v, want unavailable", err)
	}
}

func TestGiveHandsOverAFile(t *testing.T) {
	dir, _ := start(t)
	m, err := qmp.Dial(t.Context(), dir, rundir.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := m.Give(t.Context(), "card", f); err != nil {
		t.Fatalf("Give = %v", err)
	}
	name := map[string]string{"fdname": "card"}
	if err := m.Run(t.Context(), "closefd", name, nil); err != nil {
		t.Errorf("closefd = %v, want QEMU to have the file", err)
	}
	if err := m.Run(t.Context(), "closefd", name, nil); fault.Of(err) != fault.Internal {
		t.Errorf("closefd again = %v, want an internal error", err)
	}
}

func TestWhoDoesNotAnswerIsNotWaitedFor(t *testing.T) {
	dir, cmd := start(t)
	m, err := qmp.Dial(t.Context(), dir, rundir.QMP)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	short := func() context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		t.Cleanup(cancel)
		return ctx
	}
	begin := time.Now()
	if err := qmp.One(short(), dir, "cont", nil, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("One beside another conversation = %v, want unavailable", err)
	}
	if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := m.Run(short(), "cont", nil, nil); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Run with a stopped QEMU = %v, want unavailable", err)
	}
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("it took %v", took)
	}
}
