package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestAProfileLimitsAContainer measures what the limits of a profile do, from outside
// and from inside, from the start and after the profile was changed.
func TestAProfileLimitsAContainer(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "profile", "create", "small", "limits.memory=64MiB", "limits.memory.swap=false", "limits.processes=40",
		"limits.cpu.allowance=20ms/100ms", "limits.kernel.nofile=100:200")
	r.Must(t, "launch", app, "web", "-p", "default", "-p", "small", "--wait", "ready")
	is := func(want string, files ...string) {
		t.Helper()
		if got := r.Cgroup(t, "web", files...); got != want {
			t.Errorf("%s is %q, want %q", files[0], got, want)
		}
	}
	uses := func(mib, code int) {
		t.Helper()
		if res := r.Run(t, "exec", "web", "--", "/bin/probe", "memory", fmt.Sprint(mib<<20)); res.Code != code {
			t.Errorf("using %d MiB = %d: %s, want %d", mib, res.Code, res.Stderr, code)
		}
	}
	is("67108864", "memory.max", "memory.limit_in_bytes")
	is("40", "pids.max")
	uses(8, 0)
	tellsOfLimits(t, r)
	uses(200, 137)
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", r.List(t)["web"].State.PID))
	_, files, _ := strings.Cut(string(limits), "Max open files")
	// A Go program, which the probe is, raises the soft limit by itself.
	if words := strings.Fields(files); err != nil || len(words) < 2 || words[1] != "200" {
		t.Errorf("the limits of init are %s, %v", limits, err)
	}
	r.Must(t, "profile", "set", "small", "limits.memory=400MiB", "limits.processes=50")
	is("419430400", "memory.max", "memory.limit_in_bytes")
	is("50", "pids.max")
	uses(200, 0)
	r.Must(t, "config", "set", "web", "limits.processes=60")
	is("60", "pids.max")
	r.Fails(t, 4, []string{"web"}, "profile", "delete", "small")
	r.Must(t, "profile", "assign", "web", "default")
	is("60", "pids.max")
	if got := r.Cgroup(t, "web", "memory.max", "memory.limit_in_bytes"); got == "419430400" {
		t.Errorf("the limit of memory is still %s", got)
	}
	r.Must(t, "delete", "-f", "--now", "web")
	r.Must(t, "profile", "delete", "small")
}

// tellsOfLimits compares what info says of web's limits with what the profile gave.
func tellsOfLimits(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	var info struct {
		State struct {
			ProcessesTotal int `json:"processes_total"`
			Memory         struct {
				Usage, Total int64
				Peak         int64 `json:"usage_peak"`
			}
			CPU struct {
				Allocated int64 `json:"allocated_time"`
			}
		}
	}
	if err := json.Unmarshal([]byte(r.Must(t, "info", "web", "-f", "json")), &info); err != nil {
		t.Fatal(err)
	}
	s := info.State
	if s.ProcessesTotal != 40 || s.Memory.Total != 64<<20 || s.CPU.Allocated != 2e8 {
		t.Errorf("info tells the limits %+v", s)
	}
	if s.Memory.Peak < 8<<20 || s.Memory.Peak > 64<<20 || s.Memory.Usage > s.Memory.Peak {
		t.Errorf("info tells of %+v after 8 MiB were used", s.Memory)
	}
	out := r.Must(t, "info", "web")
	for _, want := range []string{" of 64.00MiB\n", " of 40\n", "CPU limit: 200ms of each second\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("info = %s, want %q in it", out, want)
		}
	}
}
