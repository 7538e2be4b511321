package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
)

// TestFileMountsEnd interrupts and kills those who serve a mount, and stops what is in
// it.
func TestFileMountsEnd(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "--wait", "ready")
	r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/file", "first")
	r.Must(t, "snapshot", "create", "web", "s1")
	r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/file", "second")
	at := t.TempDir()
	holds := func(want string) {
		t.Helper()
		if got, err := os.ReadFile(filepath.Join(at, "file")); err != nil || string(got) != want {
			t.Errorf("the file holds %q, %v, want %q", got, err, want)
		}
	}
	begin := func(what string) *exec.Cmd {
		t.Helper()
		return r.MountFiles(t, what, at)
	}
	end := func(cmd *exec.Cmd, signal syscall.Signal, code int) {
		t.Helper()
		cmd.Process.Signal(signal)
		cmd.Wait()
		if got := instancetest.CodeOf(cmd.ProcessState); got != code {
			t.Errorf("ended by %v with %d, want %d", signal, got, code)
		}
	}
	gone := func() {
		t.Helper()
		if table, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(table), at) {
			t.Errorf("it is still mounted: %v", err)
		}
	}
	// A snapshot does not change.
	cmd := begin("web/s1/data")
	holds("first")
	if err := os.WriteFile(filepath.Join(at, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing to a snapshot: %v", err)
	}
	end(cmd, syscall.SIGINT, 130)
	gone()
	// It is taken away in use, too, and by whoever mounts there next.
	cmd = begin("web/data")
	holds("second")
	open, err := os.Open(filepath.Join(at, "file"))
	if err != nil {
		t.Fatal(err)
	}
	end(cmd, syscall.SIGTERM, 130)
	open.Close()
	gone()
	end(begin("web/data"), syscall.SIGKILL, -int(syscall.SIGKILL))
	cmd = begin("web/data")
	holds("second")
	// What has stopped gives no answers, until it runs again.
	r.Must(t, "stop", "-f", "web")
	if _, err := os.Stat(filepath.Join(at, "other")); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("a stopped instance answers: %v", err)
	}
	r.Must(t, "start", "web", "--wait", "ready")
	instancetest.Await(t, "answers to come again", func() bool {
		got, err := os.ReadFile(filepath.Join(at, "file"))
		return err == nil && string(got) == "second"
	})
	end(cmd, syscall.SIGINT, 130)
	gone()
	r.Must(t, "stop", "-f", "web")
	r.Fails(t, 4, []string{"stopped", "brig start web"}, "file", "mount", "web/data", at)
	r.Fails(t, 3, []string{"nobody"}, "file", "mount", "nobody", at)
}
