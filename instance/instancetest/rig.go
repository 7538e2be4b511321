// Package instancetest holds what every instance driver has to pass: the parity
// table, which runs one image in both forms through the real brig, and the leak
// check, which compares the host before and after. It works on built programs
// from the outside, as a user does.
package instancetest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Rig is a brig under test: its programs and the folders it works in.
type Rig struct {
	Bin string // folder with brig, brig-keeper and brig-guest
	Dir string // BRIG_DIR
}

// Result is what a command printed and how it ended.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// commandTimeout bounds one brig command; software emulation is slow.
const commandTimeout = 5 * time.Minute

// Build builds the programs into a folder of the test binary's own.
func Build(dir string) error {
	for _, b := range []struct{ name, cgo string }{{"brig", "1"}, {"brig-keeper", "1"}, {"brig-guest", "0"}} {
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, b.name), "brig/cmd/"+b.name)
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return errors.Join(err, errors.New(string(out)))
		}
	}
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "probe"), "brig/instance/instancetest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	return nil
}

// New gives a rig with an empty BRIG_DIR that is checked for leaks and emptied
// when the test ends. Programs come from bin.
func New(t testing.TB, bin string) *Rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "brig-test-")
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Bin: bin, Dir: dir}
	before := Look(t, dir)
	t.Cleanup(func() {
		r.Empty(t)
		NoLeak(t, before, dir)
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return r
}

// Empty deletes every instance of the rig, for good.
func (r *Rig) Empty(t testing.TB) {
	for _, name := range strings.Fields(r.Run(t, "list", "-f", "csv", "-c", "n").Stdout) {
		if res := r.Run(t, "delete", "-f", "--now", name); res.Code != 0 {
			t.Errorf("delete -f --now %s = %d: %s", name, res.Code, res.Stderr)
		}
	}
	r.Must(t, "trash", "empty", "--all")
	r.Must(t, "sweep")
}

// Command prepares a brig command.
func (r *Rig) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(r.Bin, "brig"), args...)
	cmd.Env = append(os.Environ(), "BRIG_DIR="+r.Dir)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// Run runs a brig command without input.
func (r *Rig) Run(t testing.TB, args ...string) Result {
	t.Helper()
	return r.Feed(t, nil, args...)
}

// Feed runs a brig command with input.
func (r *Rig) Feed(t testing.TB, stdin io.Reader, args ...string) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := r.Command(ctx, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("brig %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	if ctx.Err() != nil {
		t.Fatalf("brig %s did not end within %s\n%s", strings.Join(args, " "), commandTimeout, stderr.String())
	}
	return Result{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// Must runs a brig command that has to succeed and gives what it printed.
func (r *Rig) Must(t testing.TB, args ...string) string {
	t.Helper()
	res := r.Run(t, args...)
	if res.Code != 0 {
		t.Fatalf("brig %s = %d: %s", strings.Join(args, " "), res.Code, res.Stderr)
	}
	return res.Stdout
}

// Line is what list -f json says of an instance, as far as tests look at it.
type Line struct {
	Name     string `json:"name"`
	Status   string `json:"status"`
	Type     string `json:"type"`
	ExitCode *int   `json:"exit_code"`
	Health   string `json:"health"`
	Reason   string `json:"reason"`
	State    struct {
		PID     int `json:"pid"`
		Network map[string]struct {
			Addresses []struct{ Family, Address, Netmask, Scope string }
		} `json:"network"`
	} `json:"state"`
}

// List gives the lines of list -f json by name.
func (r *Rig) List(t testing.TB) map[string]Line {
	t.Helper()
	var lines []Line
	out := r.Must(t, "list", "-f", "json")
	if err := json.Unmarshal([]byte(out), &lines); err != nil {
		t.Fatalf("list -f json: %v\n%s", err, out)
	}
	byName := make(map[string]Line, len(lines))
	for _, l := range lines {
		byName[l.Name] = l
	}
	return byName
}

// Await waits until what tells true, or fails the test after a while.
func Await(t testing.TB, what string, is func() bool) {
	t.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for pause := time.Millisecond; !is(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within two minutes", what)
		}
		<-time.After(pause)
	}
}
