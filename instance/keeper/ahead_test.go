package keeper

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"brig/instance"
	"brig/instance/fault"
)

// TestMain makes the test program the keeper too.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == verbRun {
		os.Exit(Main(os.Args[1:], map[instance.Type]Runner{instance.Container: shortRunner{}}, Host{}))
	}
	os.Exit(m.Run())
}

// shortRunner runs a machine by noting which process does. One called "none"
// fails, and says so in its log as well.
type shortRunner struct{}

const pidFile = "pid"

func (shortRunner) Run(_ context.Context, m *instance.Machine, ready func(error)) (bool, error) {
	fmt.Println("running", m.Name)
	if m.Name == "none" {
		err := fault.New(fault.Exhausted, "there is no room for %q", m.Name)
		ready(err)
		return false, err
	}
	err := os.WriteFile(m.Path(pidFile), []byte(strconv.Itoa(os.Getpid())), 0o600)
	ready(err)
	return false, err
}

func (shortRunner) Exit(*instance.Machine) instance.Exit { return instance.Exit{} }

func newMachine(t *testing.T, name string) *instance.Machine {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	return &instance.Machine{
		Name: name, Type: instance.Container,
		RunDir: filepath.Join(dir, "run"), LogDir: filepath.Join(dir, "log"),
		Helpers: instance.Helpers{Keeper: self},
	}
}

// ahead starts a keeper for m and gives it, and its process id, once it has started.
func ahead(t *testing.T, m *instance.Machine) (ctx context.Context, w *waiting, pid string, drop func()) {
	t.Helper()
	ctx, drop = Ahead(t.Context(), m.Helpers.Keeper, m.RunDir)
	e := ctx.Value(earlyKey{}).(*early)
	<-e.begun
	if e.err != nil {
		t.Fatal(e.err)
	}
	return ctx, e.w, strconv.Itoa(e.w.cmd.Process.Pid), drop
}

func TestSpawnUsesTheKeeperStartedAhead(t *testing.T) {
	m := newMachine(t, "web")
	ctx, _, pid, drop := ahead(t, m)
	defer drop()
	if _, err := os.Lstat(m.RunDir); !os.IsNotExist(err) {
		t.Errorf("a keeper that waits has a run directory: %v", err)
	}
	if err := Spawn(ctx, m); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(m.Path(pidFile)); err != nil || string(got) != pid {
		t.Errorf("process %q ran it, %v, want %s", got, err, pid)
	}
	if log, err := os.ReadFile(filepath.Join(m.LogDir, logName)); err != nil || string(log) != "running web\n" {
		t.Errorf("its log holds %q, %v", log, err)
	}
	// It was used: the next start of the machine takes another.
	if err := Spawn(ctx, m); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(m.Path(pidFile)); string(got) == pid {
		t.Error("one keeper ran two machines")
	}
}

func TestKeeperStartedAheadIsForOneMachine(t *testing.T) {
	web, db := newMachine(t, "web"), newMachine(t, "db")
	ctx, w, pid, drop := ahead(t, web)
	if err := Spawn(ctx, db); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(db.Path(pidFile)); string(got) == pid {
		t.Error("the keeper of another machine was used")
	}
	drop()
	if w.cmd.ProcessState == nil {
		t.Error("drop did not end the keeper")
	}
	if _, err := os.Lstat(web.RunDir); !os.IsNotExist(err) {
		t.Errorf("it left a run directory: %v", err)
	}
}

// TestKeeperEndsWithItsStarter closes what is closed when a brig is killed.
func TestKeeperEndsWithItsStarter(t *testing.T) {
	m := newMachine(t, "web")
	if err := Save(m); err != nil {
		t.Fatal(err)
	}
	w, err := begin(m.Helpers.Keeper, m.RunDir)
	if err != nil {
		t.Fatal(err)
	}
	w.close()
	ended := make(chan error, 1)
	go func() { ended <- w.cmd.Wait() }()
	select {
	case err := <-ended:
		if err != nil {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(time.Minute):
		w.cmd.Process.Kill()
		t.Fatal("it still waits")
	}
	if _, err := os.Lstat(m.Path(pidFile)); !os.IsNotExist(err) {
		t.Errorf("it ran the machine: %v", err)
	}
}

func TestSpawnTellsWhyAKeeperFailed(t *testing.T) {
	m := newMachine(t, "none")
	ctx, _, _, drop := ahead(t, m)
	defer drop()
	if err := Spawn(ctx, m); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Spawn = %v, want exhausted", err)
	}
	m.Helpers.Keeper = filepath.Join(m.RunDir, "nothing")
	if err := Spawn(t.Context(), m); !fault.Is(err, fault.Unsupported) {
		t.Errorf("Spawn without a program = %v, want unsupported", err)
	}
	// A program that cannot even start, as for want of a library, says why itself.
	m.Helpers.Keeper = filepath.Join(t.TempDir(), "broken")
	if err := os.WriteFile(m.Helpers.Keeper, []byte("#!/bin/sh\necho no such library >&2; exit 127\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Spawn(t.Context(), m); err == nil || fault.Of(err) != fault.Internal || !strings.Contains(err.Error(), "no such library") {
		t.Errorf("Spawn of a broken program = %v, want what it said", err)
	}
}
