package rundir_test

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/qemu/rundir"
)

func TestLockLastsAsLongAsAnyProcessHasIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	assertHeld(t, path, false)
	f, err := rundir.Acquire(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rundir.Acquire(path); !errors.Is(err, rundir.ErrLocked) {
		t.Errorf("second Acquire = %v, want ErrLocked", err)
	}
	child := exec.Command("cat")
	child.ExtraFiles = []*os.File{f}
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	assertHeld(t, path, true)
	in.Close()
	if err := child.Wait(); err != nil {
		t.Fatal(err)
	}
	assertHeld(t, path, false)
}

func assertHeld(t *testing.T, path string, want bool) {
	t.Helper()
	if got, err := rundir.Held(path); err != nil || got != want {
		t.Errorf("Held = %v, %v, want %v", got, err, want)
	}
}

func TestState(t *testing.T) {
	dir := t.TempDir()
	if _, err := rundir.ReadState(dir); !os.IsNotExist(err) {
		t.Errorf("ReadState = %v, want not-exist", err)
	}
	want := rundir.State{PID: 7, StartedAt: time.Now().UTC(), Ready: true, Exit: &instance.Exit{Code: 3}}
	if err := rundir.WriteState(dir, want); err != nil {
		t.Fatal(err)
	}
	if got, err := rundir.ReadState(dir); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("ReadState = %+v, %v, want %+v", got, err, want)
	}
	if err := os.WriteFile(filepath.Join(dir, rundir.StateFile), []byte("{half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := rundir.ReadState(dir); err == nil {
		t.Error("ReadState of a damaged file worked")
	}
}

func TestSocketsInDeepDirectories(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 100), strings.Repeat("e", 100))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second takes the place of the first
		l, err := rundir.Listen(dir, "x.sock")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				io.WriteString(c, "hello")
				c.Close()
			}
		}()
		c, err := rundir.Dial(t.Context(), dir, "x.sock")
		if err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
			t.Errorf("read %q, %v", b, err)
		}
		c.Close()
	}
}

func TestOnlyQEMUIsFound(t *testing.T) {
	dir := t.TempDir()
	f, err := rundir.Acquire(filepath.Join(dir, rundir.Lock))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	other := exec.Command("sleep", "100")
	other.ExtraFiles = []*os.File{f}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer other.Wait()
	defer other.Process.Kill()
	// A stale process id, and another program that has the lock.
	if p, err := rundir.Find(dir, other.Process.Pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Find = %v, %v, want not-exist", p, err)
	}
	qemu := exec.Command("qemu-system-x86_64", "-nodefaults", "-display", "none", "-S", "-M", "none")
	qemu.ExtraFiles = []*os.File{f}
	if err := qemu.Start(); errors.Is(err, exec.ErrNotFound) {
		t.Skip("needs qemu-system-x86_64")
	} else if err != nil {
		t.Fatal(err)
	}
	p, err := rundir.Find(dir, other.Process.Pid)
	if err != nil || p.PID != qemu.Process.Pid {
		qemu.Process.Kill()
		t.Fatalf("Find = %+v, %v, want process %d", p, err, qemu.Process.Pid)
	}
	defer p.Close()
	if p.Ended() {
		t.Error("a running process has ended")
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	qemu.Wait()
	p.Wait()
	if err := p.Kill(); err != nil || !p.Ended() {
		t.Errorf("Kill of an ended process = %v", err)
	}
}
