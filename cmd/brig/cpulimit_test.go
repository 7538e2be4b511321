package main

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// throttling are lines of cpu.stat: in how many periods a cgroup with a quota ran, and
// in how many of these it had to wait.
func throttling(t *testing.T, r *instancetest.Rig, name string) (periods, throttled int) {
	t.Helper()
	for line := range strings.Lines(r.Cgroup(t, name, "cpu.stat")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		n, err := strconv.Atoi(value)
		switch {
		case err != nil:
			t.Fatal(err)
		case key == "nr_periods":
			periods = n
		case key == "nr_throttled":
			throttled = n
		}
	}
	return periods, throttled
}

// TestProcessorLimits has two threads of a container want all the time there is, and
// measures what they get: of a part of each period, and then of one processor, which
// come into force while they run.
func TestProcessorLimits(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "-c", "limits.cpu.allowance=25ms/100ms", "--wait", "ready")
	busy(t, r, "web", "2")
	getsOf(t, r, "web", 25*time.Millisecond)
	r.Must(t, "config", "set", "web", "limits.cpu.allowance=60ms/100ms")
	getsOf(t, r, "web", 60*time.Millisecond)

	r.Must(t, "config", "unset", "web", "limits.cpu.allowance")
	r.Must(t, "config", "set", "web", "limits.cpu=1")
	if set := r.Cgroup(t, "web", "cpuset.cpus"); strings.ContainsAny(set, ",-") {
		t.Errorf("one processor is %q", set)
	}
	begin, used := time.Now(), processorTime(t, r, "web")
	said, _ := busy(t, r, "web", "2")
	if said != "busy on 1" {
		t.Errorf("inside, the container is %q, want one processor", said)
	}
	instancetest.Await(t, "a second of processor time", func() bool { return processorTime(t, r, "web") > used+time.Second })
	got, passed := processorTime(t, r, "web")-used, time.Since(begin)
	if got > passed*11/10+50*time.Millisecond {
		t.Errorf("one processor gave %s in %s", got, passed)
	}
}

// getsOf waits for ten of an instance's periods, and checks that it has got no more
// than a quota in each of them. What else the host does makes that less only.
func getsOf(t *testing.T, r *instancetest.Rig, name string, quota time.Duration) {
	t.Helper()
	const few = 10
	begin, throttled := throttling(t, r, name)
	used := processorTime(t, r, name)
	instancetest.Await(t, "periods to pass", func() bool {
		periods, now := throttling(t, r, name)
		return periods >= begin+few && now > throttled
	})
	got := processorTime(t, r, name) - used
	end, now := throttling(t, r, name)
	// The first and the last period count in part, and each thread may go on until the
	// next tick.
	most := quota*time.Duration(end-begin+2) + 20*time.Millisecond
	t.Logf("%s gets %s of each 100ms: %s in %d periods, throttled in %d", name, quota, got, end-begin, now-throttled)
	if got > most || got < quota {
		t.Errorf("a quota of %s gave %s in %d periods, want at most %s", quota, got, end-begin, most)
	}
}

// TestProcessLimit has a program in a container make processes until it cannot.
func TestProcessLimit(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "-c", "limits.processes=60", "--wait", "ready")
	forks := func() (made int, rest string) {
		t.Helper()
		out := r.Must(t, "exec", "web", "--", "/bin/probe", "fork", "100")
		if _, err := fmt.Sscanf(out, "%d processes", &made); err != nil {
			t.Fatalf("the program says %q", out)
		}
		_, rest, _ = strings.Cut(out, ", then: ")
		return made, rest
	}
	if made, rest := forks(); made >= 60 || made < 20 || rest != "resource temporarily unavailable" {
		t.Errorf("with 60 processes at most, a program made %d, and then %q", made, rest)
	}
	r.Must(t, "config", "unset", "web", "limits.processes")
	if made, rest := forks(); made != 100 || rest != "" {
		t.Errorf("without a limit, a program made %d processes, and then %q", made, rest)
	}
}
