package main

import (
	"slices"
	"testing"

	"brig/instance/instancetest"
)

// TestLimitsOutlastAReboot changes limits of a container that runs, which then boots
// again by itself: the new cgroups have what counts, not what was there at the start.
func TestLimitsOutlastAReboot(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "-c", "limits.memory=64MiB", "-c", "limits.processes=40", "-c", "limits.cpu.priority=5", "--wait", "ready")
	r.Must(t, "config", "set", "web", "limits.memory=128MiB", "limits.processes=50")
	r.Must(t, "config", "unset", "web", "limits.cpu.priority")
	before := r.List(t)["web"].State.PID
	r.Run(t, "exec", "web", "--", "/bin/probe", "reboot") // it may end with its answer unsaid
	instancetest.Await(t, "the reboot", func() bool {
		web := r.List(t)["web"]
		return web.Status == "Running" && web.State.PID != 0 && web.State.PID != before
	})
	for _, c := range []struct {
		want  []string
		files []string
	}{
		{[]string{"134217728"}, []string{"memory.max", "memory.limit_in_bytes"}},
		{[]string{"50"}, []string{"pids.max"}},
		{[]string{"100", "1024"}, []string{"cpu.weight", "cpu.shares"}},
	} {
		instancetest.Await(t, c.files[0]+" to be as it was", func() bool {
			return slices.Contains(c.want, r.Cgroup(t, "web", c.files...))
		})
	}
}
