package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestManySnapshotsOfARunningMachine takes more snapshots of a running virtual
// machine than its disk should stand on. They are merged beside it, every one can
// be restored, and a damaged disk stops the one machine that stands on it.
func TestManySnapshotsOfARunningMachine(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "vm", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
	r.Must(t, "launch", app, "other", "--wait", "ready")
	const snapshots = 9
	for i := range snapshots {
		r.Must(t, "snapshot", "create", "vm", fmt.Sprint("s", i))
	}
	// A sweep leaves the merging to one that waits to do it.
	pid := r.List(t)["vm"].State.PID
	instancetest.Await(t, fmt.Sprintf("QEMU to have at most 7 disks open after %d snapshots", snapshots), func() bool {
		r.Must(t, "sweep")
		return len(openDisks(t, pid)) <= 7
	})
	if !works(t, r, "vm") {
		t.Error("exec does not work after the merge")
	}
	r.Must(t, "snapshot", "create", "vm", "after")
	r.Must(t, "stop", "vm")
	r.Must(t, "snapshot", "restore", "vm", "s4")
	r.Must(t, "start", "vm", "--wait", "ready")
	disks := openDisks(t, r.List(t)["vm"].State.PID)
	r.Must(t, "stop", "vm", "--force")
	r.Must(t, "sweep")

	top := disks[0]
	for _, disk := range disks {
		if newer(t, disk, top) {
			top = disk
		}
	}
	whole, err := os.ReadFile(top)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(top, append([]byte("not a disk"), whole[10:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	instancetest.CheckFailure(t, r.Run(t, "start", "vm"), 2, []string{"vm", "qcow2"}, "start", "vm")
	if !works(t, r, "other") || r.List(t)["other"].Status != "Running" {
		t.Error("a damaged disk of one instance disturbs another")
	}
	if err := os.WriteFile(top, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "start", "vm", "--wait", "ready")
	if !works(t, r, "vm") {
		t.Error("exec does not work with the disk as it was")
	}
}

// openDisks gives the paths of the disks that a process has open.
func openDisks(t *testing.T, pid int) []string {
	t.Helper()
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	var disks []string
	for _, link := range links {
		path, err := os.Readlink(link)
		if err == nil && strings.HasPrefix(filepath.Base(path), "disk.") && !found[path] {
			found[path] = true
			disks = append(disks, path)
		}
	}
	if len(disks) == 0 {
		t.Fatalf("process %d has no disk open", pid)
	}
	return disks
}

func newer(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Stat(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.Stat(b)
	if err != nil {
		t.Fatal(err)
	}
	return x.ModTime().After(y.ModTime())
}
