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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Rig is a brig under test: its programs and the folders it works in.
type Rig struct {
	Bin string   // folder with brig, brig-keeper and brig-guest
	Dir string   // BRIG_DIR
	Env []string // beside that of the test

	Pool string // what the parity table launches in; empty: the default pool

	Prefix []string // command and arguments that run brig's
}

// With gives the same rig with more in the environment of its commands.
func (r *Rig) With(env ...string) *Rig {
	more := *r
	more.Env = slices.Concat(r.Env, env)
	return &more
}

// Result is what a command printed and how it ended.
type Result struct {
	Stdout, Stderr string
	Code           int // of CodeOf
}

// CodeOf is the exit code of a process, or the negative number of the signal
// that ended it.
func CodeOf(p *os.ProcessState) int {
	if w, ok := p.Sys().(syscall.WaitStatus); ok && w.Signaled() {
		return -int(w.Signal())
	}
	return p.ExitCode()
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

// obeyInterrupts has the commands that tests start be ended by an interrupt, also where
// these tests were started in the background by a shell that has its children ignore it.
func obeyInterrupts() {
	if signal.Ignored(syscall.SIGINT) {
		signal.Notify(make(chan os.Signal, 1), syscall.SIGINT)
	}
}

// New gives a rig with an empty BRIG_DIR that is checked for leaks and emptied
// when the test ends. Programs come from bin.
func New(t testing.TB, bin string) *Rig {
	t.Helper()
	obeyInterrupts()
	dir, err := os.MkdirTemp("", "brig-test-")
	if err != nil {
		t.Fatal(err)
	}
	r := &Rig{Bin: bin, Dir: dir}
	if err := os.Mkdir(filepath.Join(dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
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

// Empty deletes every instance and every image of the rig, for good.
func (r *Rig) Empty(t testing.TB) {
	t.Helper()
	for _, name := range strings.Fields(strings.ReplaceAll(r.Run(t, "list", "--all-projects", "-f", "csv", "-c", "en").Stdout, ",", "_")) {
		if res := r.Run(t, "delete", "-f", "--now", name); res.Code != 0 {
			t.Errorf("delete -f --now %s = %d: %s", name, res.Code, res.Stderr)
		}
	}
	for line := range strings.Lines(r.Must(t, "project", "list", "-f", "csv")) {
		in, _, _ := strings.Cut(line, ",")
		r.Must(t, "--project", in, "trash", "empty", "--all")
	}
	for line := range strings.Lines(r.Must(t, "storage", "volume", "list", "-f", "csv")) {
		f := strings.SplitN(line, ",", 3)
		if res := r.Run(t, "storage", "volume", "delete", "--now", f[1], f[0]); res.Code != 0 {
			t.Errorf("storage volume delete --now %s %s = %d: %s", f[1], f[0], res.Code, res.Stderr)
		}
	}
	for _, image := range r.Images(t) {
		if res := r.Run(t, "image", "delete", image); res.Code != 0 {
			t.Errorf("image delete %s = %d: %s", image, res.Code, res.Stderr)
		}
	}
	r.Must(t, "image", "prune")
	r.Must(t, "sweep")
}

// Images gives the fingerprints of the images that are there.
func (r *Rig) Images(t testing.TB) []string {
	t.Helper()
	return strings.Fields(r.Must(t, "image", "list", "-f", "csv", "-c", "F"))
}

// Kernels lends the rig the kernels that other tests have fetched, and keeps for
// them what it fetches.
func (r *Rig) Kernels(t testing.TB) {
	t.Helper()
	dir := filepath.Join(Cache(t), "kernels")
	state := filepath.Join(r.Dir, "state")
	for _, d := range []string{dir, state} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(dir, filepath.Join(state, "kernels")); err != nil {
		t.Fatal(err)
	}
}

// Cache is where what is slow to get stays between runs of tests.
func Cache(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("BRIG_TEST_CACHE"); dir != "" {
		return dir
	}
	user, err := os.UserCacheDir()
	if err != nil {
		user = os.TempDir()
	}
	return filepath.Join(user, "brig-test")
}

// Fails runs a brig command that has to fail with a code, and with a message
// that has all of words in it.
func (r *Rig) Fails(t testing.TB, code int, words []string, args ...string) {
	t.Helper()
	res := r.Run(t, args...)
	CheckFailure(t, res, code, words, args...)
}

// CheckFailure checks how a brig command has failed: its code, the form of its
// message, and that it has all of words in it.
func CheckFailure(t testing.TB, res Result, code int, words []string, args ...string) {
	t.Helper()
	command := "brig " + strings.Join(args, " ")
	if res.Code != code {
		t.Errorf("%s = %d, want %d: %s", command, res.Code, code, res.Stderr)
		return
	}
	message := ""
	for line := range strings.Lines(res.Stderr) {
		if said, ok := strings.CutPrefix(line, "Error: "); ok {
			message += said
		}
	}
	if message == "" || strings.HasSuffix(strings.TrimSpace(message), ".") || strings.Contains(res.Stderr, "goroutine") {
		t.Errorf("%s says %q, want one clear line", command, res.Stderr)
	}
	for _, word := range words {
		if !strings.Contains(message, word) {
			t.Errorf("%s says %q, want %q in it", command, message, word)
		}
	}
}

// Command prepares a brig command.
func (r *Rig) Command(ctx context.Context, args ...string) *exec.Cmd {
	line := slices.Concat(r.Prefix, []string{filepath.Join(r.Bin, "brig")}, args)
	cmd := exec.CommandContext(ctx, line[0], line[1:]...)
	cmd.Env = append(os.Environ(), "BRIG_DIR="+r.Dir, "TMPDIR="+filepath.Join(r.Dir, "tmp"))
	cmd.Env = append(cmd.Env, r.Env...)
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
	return Result{stdout.String(), stderr.String(), CodeOf(cmd.ProcessState)}
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
	Name     string            `json:"name"`
	Status   string            `json:"status"`
	Type     string            `json:"type"`
	ExitCode *int              `json:"exit_code"`
	Health   string            `json:"health"`
	Reason   string            `json:"reason"`
	Config   map[string]string `json:"config"`
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
	deadline := time.Now().Add(5 * time.Minute)
	for pause := time.Millisecond; !is(); pause = min(2*pause, 100*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within five minutes", what)
		}
		<-time.After(pause)
	}
}
