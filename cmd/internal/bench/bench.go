package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/keeper"
	"brig/instance/run"
	"brig/instance/store"
)

// bench is a brig of its own with what is measured beside it.
type bench struct {
	options
	work   string // folder with everything, on the file system that is measured
	brig   string // BRIG_DIR, in there
	stderr *os.File
}

// The images that every section can use.
const (
	debianImage = "bench-debian" // a full system
	idleImage   = "bench-idle"   // an app image with nothing to run
	anchor      = "anchor"       // an instance that runs throughout, so that the network stays
)

// cleanTime bounds what is cleaned up at the end, also after an interrupt.
const cleanTime = 5 * time.Minute

func newBench(o options) (_ *bench, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("brig can be measured only as root")
	}
	for _, name := range []string{"brig", "brig-keeper", "brig-guest"} {
		if _, err := os.Stat(filepath.Join(o.bin, name)); err != nil {
			return nil, fmt.Errorf("there is nothing to measure (%w): run make build first", err)
		}
	}
	b := &bench{options: o}
	if b.work, err = os.MkdirTemp(o.dir, "brig-bench-"); err != nil {
		return nil, err
	}
	b.brig = b.path("brig")
	// A file, and not a pipe that somebody would have to read meanwhile.
	if b.stderr, err = os.Create(b.path("stderr")); err == nil {
		err = os.Mkdir(b.brig, 0o700)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(b.work))
	}
	return b, nil
}

// prepare gets the images and starts the anchor.
func (b *bench) prepare(ctx context.Context) error {
	if err := b.importDebian(ctx); err != nil {
		return err
	}
	ref, err := writeIdleImage(b.path("idle"))
	if err != nil {
		return err
	}
	if err := b.do(ctx, "image", "pull", ref, "--alias", idleImage); err != nil {
		return err
	}
	return b.do(ctx, "launch", idleImage, anchor)
}

// importDebian takes the tree from the cache, or has brig make one.
func (b *bench) importDebian(ctx context.Context) error {
	if b.cache != "" {
		cached := filepath.Join(b.cache, "debian.tar")
		if _, err := os.Stat(cached); err == nil {
			b.say("Importing %s", cached)
			return b.do(ctx, "image", "import", cached, "--alias", debianImage)
		}
	}
	b.say("Making a Debian")
	return b.do(ctx, "image", "pull", "debian:bookworm", "--alias", debianImage)
}

// close ends everything and removes it, whatever became of the caller's context.
// When an instance does not end, its files stay for whoever looks into that.
func (b *bench) close() error {
	if err := b.empty(); err != nil {
		return fmt.Errorf("%s was not removed: %w", b.work, err)
	}
	return errors.Join(b.stderr.Close(), os.RemoveAll(b.work))
}

// empty ends what still runs. Stopped instances are nothing but files in the
// folder that goes.
func (b *bench) empty() error {
	ctx, cancel := context.WithTimeout(context.Background(), cleanTime)
	defer cancel()
	lines, err := b.lines(ctx)
	if err != nil {
		return err
	}
	var running []string
	for _, l := range lines {
		if l.Status != string(instance.Stopped) {
			running = append(running, l.Name)
		}
	}
	if len(running) > 0 {
		err = b.do(ctx, append([]string{"delete", "-f"}, running...)...)
	}
	return errors.Join(err, b.do(ctx, "sweep"))
}

func (b *bench) path(names ...string) string {
	return filepath.Join(append([]string{b.work}, names...)...)
}

func (b *bench) say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// machine says where and when this was measured.
func (b *bench) machine() string {
	var uts unix.Utsname
	kernel := "unknown"
	if unix.Uname(&uts) == nil {
		kernel = unix.ByteSliceToString(uts.Release[:])
	}
	return fmt.Sprintf("%s, Linux %s, %d CPUs, medians of %d rounds (slow operations: %d) by turns.",
		time.Now().Format(time.DateOnly), kernel, runtime.NumCPU(), b.rounds, b.slow())
}

// slow is how many rounds an operation gets that takes seconds.
func (b *bench) slow() int { return max(1, b.rounds/3) }

// endTime is how long a brig command may take to clean up when it is interrupted.
const endTime = time.Minute

// command prepares a brig command. When ctx ends it is asked to end.
func (b *bench) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(b.bin, "brig"), args...)
	cmd.Env = append(os.Environ(), "BRIG_DIR="+b.brig)
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = endTime
	return cmd
}

// do runs a brig command that has to work.
func (b *bench) do(ctx context.Context, args ...string) error {
	_, err := b.time(ctx, b.command(ctx, args...))
	return err
}

// timeBrig gives how long a whole brig command takes.
func (b *bench) timeBrig(ctx context.Context, args ...string) (float64, error) {
	return b.time(ctx, b.command(ctx, args...))
}

// time gives how long a command takes from its start to its end, in
// milliseconds. One that fails gives an error with what it said.
func (b *bench) time(ctx context.Context, cmd *exec.Cmd) (float64, error) {
	if err := b.stderr.Truncate(0); err != nil {
		return 0, err
	}
	if _, err := b.stderr.Seek(0, 0); err != nil {
		return 0, err
	}
	cmd.Stderr = b.stderr
	took, err := timed(cmd.Run)
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		said, _ := os.ReadFile(b.stderr.Name())
		return 0, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(said))
	}
	return took, nil
}

// line is what list says of an instance.
type line struct {
	Name   string `json:"name"`
	Status string `json:"status"`
	State  struct {
		PID int `json:"pid"`
	} `json:"state"`
}

func (b *bench) lines(ctx context.Context) ([]line, error) {
	cmd := b.command(ctx, "list", "-f", "json")
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("brig list: %w", err)
	}
	var lines []line
	return lines, json.Unmarshal(out, &lines)
}

// machineOf gives what brig runs as the instance called name.
func (b *bench) machineOf(ctx context.Context, name string) (*instance.Machine, error) {
	dirs, err := filepath.Glob(filepath.Join(store.DirsFor(b.brig).Run, "instances", "*", instance.MachineFile))
	if err != nil {
		return nil, err
	}
	for _, file := range dirs {
		m, err := keeper.Load(filepath.Dir(file))
		if err == nil && m.Name == name {
			return m, nil
		}
	}
	return nil, fmt.Errorf("instance %q does not run", name)
}

// calm waits until what was written is on disk, and what brig frees beside
// itself is free, so that neither falls into what is measured next.
func (b *bench) calm(ctx context.Context) error {
	if err := b.do(ctx, "sweep"); err != nil {
		return err
	}
	dir, err := os.Open(b.work)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// tool runs a program of the host that has to work.
func tool(ctx context.Context, name string, args ...string) error {
	_, err := run.Output(ctx, name, args...)
	return err
}
