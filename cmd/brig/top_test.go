package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// topLine is what these tests read of brig top.
type topLine struct {
	Name string
	CPU  struct {
		Percent float64
		Usage   int64
	}
	Memory    struct{ Usage, Total int64 }
	Processes int
	Total     int `json:"processes_total"`
}

// processorTime is what a container has used of the processors, as its cgroup says.
func processorTime(t *testing.T, r *instancetest.Rig, name string) time.Duration {
	t.Helper()
	for line := range strings.Lines(r.Cgroup(t, name, "cpuacct.usage", "cpu.stat")) {
		fields := strings.Fields(line)
		n, err := strconv.ParseInt(fields[len(fields)-1], 10, 64)
		switch {
		case err != nil:
			t.Fatal(err)
		case len(fields) == 1:
			return time.Duration(n)
		case fields[0] == "usage_usec":
			return time.Duration(n) * time.Microsecond
		}
	}
	t.Fatal("the cgroup does not tell of processor time")
	return 0
}

// busy keeps processors of an instance busy until stop.
func busy(t *testing.T, r *instancetest.Rig, name, threads string) (said string, stop func()) {
	t.Helper()
	return probing(t, r, name, "busy", threads)
}

// probing has a probe do something inside until stop, and gives what it says when it has
// begun.
func probing(t *testing.T, r *instancetest.Rig, name string, args ...string) (said string, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := r.Command(ctx, append([]string{"exec", name, "--", "/bin/probe"}, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) } // which exec passes on
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() { cancel(); cmd.Wait() }
	t.Cleanup(stop)
	line := make([]byte, 100)
	n, err := out.Read(line)
	if err != nil {
		t.Fatalf("the probe %q did not begin: %v", args, err)
	}
	return strings.TrimSpace(string(line[:n])), stop
}

// TestTopMeasuresWhatRuns compares what top says of a busy container with what its
// cgroup says, and ends another one while top runs.
func TestTopMeasuresWhatRuns(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "-c", "limits.memory=256MiB", "-c", "limits.processes=50", "--wait", "ready")
	r.Must(t, "launch", app, "ends", "--wait", "ready")
	r.Must(t, "create", app, "off")
	_, stop := busy(t, r, "web", "1")
	used, begin := processorTime(t, r, "web"), time.Now()
	var lines []topLine
	if err := json.Unmarshal([]byte(r.Must(t, "top", "--once", "--interval", "2s", "-f", "json")), &lines); err != nil {
		t.Fatal(err)
	}
	passed := time.Since(begin)
	now := processorTime(t, r, "web")
	if len(lines) != 2 || lines[0].Name != "web" || lines[1].Name != "ends" {
		t.Fatalf("top = %+v, want web and then ends", lines)
	}
	web := lines[0]
	// A loaded host gives less than one processor, so the cgroup is what counts.
	outside := 100 * (now - used).Seconds() / passed.Seconds()
	t.Logf("top says %.1f %%, the cgroup %.1f %%", web.CPU.Percent, outside)
	if math.Abs(web.CPU.Percent-outside) > 10+outside/3 || web.CPU.Percent > 120 || web.CPU.Percent == 0 {
		t.Errorf("top says %.1f %%, the cgroup %.1f %%", web.CPU.Percent, outside)
	}
	if u := time.Duration(web.CPU.Usage); u < used || u > now {
		t.Errorf("top says that %s were used, want between %s and %s", u, used, now)
	}
	if web.Memory.Total != 256<<20 || web.Memory.Usage <= 0 || web.Total != 50 || web.Processes < 2 {
		t.Errorf("top says %+v of what is limited", web)
	}
	stop()

	endsMeanwhile(t, r, "ends")
	r.Must(t, "delete", "-f", "--now", "web", "ends", "off")
	if out := r.Must(t, "top", "--once", "--interval", "100ms", "-f", "json"); out != "[]\n" {
		t.Errorf("top of nothing = %q", out)
	}
}

// endsMeanwhile stops an instance while top runs, which then goes on without it.
func endsMeanwhile(t *testing.T, r *instancetest.Rig, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := r.Command(ctx, "top", "--interval", "100ms", "-f", "json")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tables := json.NewDecoder(out)
	until := func(there bool) {
		for {
			var lines []topLine
			if err := tables.Decode(&lines); err != nil {
				t.Fatalf("top ended: %v", err)
			}
			if slices.ContainsFunc(lines, func(l topLine) bool { return l.Name == name }) == there {
				return
			}
		}
	}
	until(true)
	r.Must(t, "stop", "-f", name)
	until(false)
	cmd.Process.Signal(os.Interrupt)
	if _, err := io.Copy(io.Discard, out); err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	cmd.Wait()
	if code := instancetest.CodeOf(cmd.ProcessState); code != 130 {
		t.Errorf("top that is interrupted gives %d, want 130", code)
	}
}
