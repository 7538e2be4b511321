package main

import (
	"fmt"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestDisksOfRunningMachines gives a running machine disks and takes them away.
func TestDisksOfRunningMachines(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	find := func(name string) (node string) {
		t.Helper()
		instancetest.Await(t, "the disk "+name, func() bool {
			res := r.Run(t, "exec", "box", "--", "/bin/probe", "disk", name)
			node = strings.TrimSpace(res.Stdout)
			return res.Code == 0
		})
		return node
	}
	for i := range 6 {
		r.Must(t, "storage", "volume", "create", "default", fmt.Sprint("disk", i), "--type", "block", "size=16MiB")
	}
	r.Must(t, "launch", app, "box", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
	for i := range 5 {
		name := fmt.Sprint("disk", i)
		res := r.Run(t, "storage", "volume", "attach", "default", name, "box")
		if later := strings.Contains(res.Stderr, "next start"); res.Code != 0 || later != (i == 4) {
			t.Errorf("attach %s = %+v, want it at once on one of four ports, and else later", name, res)
		}
	}
	node := find("disk0")
	r.Must(t, "exec", "box", "--", "/bin/probe", "write", node, "kept")

	// What is in use stays, and a snapshot leaves no trace that gets in the way.
	_, unclaim := probing(t, r, "box", "claim", node)
	r.Fails(t, 4, []string{"disk0", node, "unmount"}, "config", "device", "remove", "box", "disk0")
	unclaim()
	r.Must(t, "storage", "volume", "snapshot", "create", "default", "disk0", "first")
	var last instancetest.Result
	instancetest.Await(t, "the disk to be let go of", func() bool {
		last = r.Run(t, "config", "device", "remove", "box", "disk0")
		return last.Code == 0 || last.Code != 4
	})
	if last.Code != 0 {
		t.Fatalf("device remove = %+v", last)
	}
	if res := r.Run(t, "exec", "box", "--", "/bin/probe", "disk", "disk0"); res.Code == 0 {
		t.Errorf("the machine still has the disk: %+v", res)
	}
	r.Must(t, "storage", "volume", "attach", "default", "disk0", "box")
	if got := r.Must(t, "exec", "box", "--", "/bin/probe", "read", find("disk0")); !strings.HasPrefix(got, "kept\x00") {
		t.Errorf("the disk says %.8q, want what was written before", got)
	}
	// A disk is one machine's: another that runs does not get it.
	r.Must(t, "launch", app, "other", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
	r.Fails(t, 4, []string{"disk0", "box", "security.shared"}, "storage", "volume", "attach", "default", "disk0", "other")
	if got := r.Must(t, "config", "show", "other"); strings.Contains(got, "disk0") {
		t.Errorf("what was refused is a device:\n%s", got)
	}
	r.Must(t, "stop", "-f", "other")
	// What it has had since its start stays.
	r.Must(t, "stop", "-f", "box")
	r.Must(t, "start", "box", "--wait", "ready")
	find("disk4")
	r.Fails(t, 4, []string{"disk4", "stop"}, "config", "device", "remove", "box", "disk4")
}
