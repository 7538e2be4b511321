package main

import (
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"brig/instance/instancetest"
)

// restingMachines gives the processes that show the files of a stopped machine.
func restingMachines(t testing.TB, r *instancetest.Rig) []int {
	t.Helper()
	return processes(t, "qemu-system", "boot.json,string=", r.Dir)
}

// TestFilesOfStoppedMachines writes to the disk of a virtual machine that does not run.
func TestFilesOfStoppedMachines(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	r.Must(t, "create", probeImage(t, r), "box", "--vm", "-c", "limits.memory=256MiB")
	push := func(text string, args ...string) instancetest.Result {
		t.Helper()
		return r.Feed(t, strings.NewReader(text), append([]string{"file", "push", "-"}, args...)...)
	}
	start := time.Now()
	if res := push("one", "box/data/note", "--uid", "7", "--mode", "0604"); res.Code != 0 {
		t.Fatalf("push to a machine that has never run = %+v", res)
	}
	t.Logf("a push took %v", time.Since(start))
	r.Must(t, "snapshot", "create", "box", "first")
	if res := push("two", "box/data/note"); res.Code != 0 {
		t.Fatalf("push over a snapshot = %+v", res)
	}
	read := func(where string) string { t.Helper(); return r.Must(t, "file", "pull", where, "-") }
	if now, was := read("box/data/note"), read("box/first/data/note"); now != "two" || was != "one" {
		t.Errorf("the file holds %q, and %q in the snapshot, want two and one", now, was)
	}

	// While it is in hand the machine is stopped, and busy.
	cmd := r.Command(t.Context(), "file", "push", "-", "box/data/note")
	stdin, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		_, err = stdin.Write(make([]byte, 1<<20))
	}
	if err != nil {
		t.Fatal(err)
	}
	instancetest.Await(t, "the machine with its files", func() bool { return len(restingMachines(t, r)) == 1 })
	if got := r.List(t)["box"].Status; got != "Stopped" {
		t.Errorf("its status is %q, want Stopped", got)
	}
	r.Fails(t, 4, []string{"box", "copy files to"}, "start", "box")
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	instancetest.Await(t, "the end of the machine", func() bool { return len(restingMachines(t, r)) == 0 })
	if res := interrupt(t, r, 300*time.Millisecond, syscall.SIGINT, "file", "push", "-r", r.Bin, "box/data/"); res.Code != 130 {
		t.Errorf("an interrupted push = %+v, want 130", res)
	}
	if left := restingMachines(t, r); len(left) != 0 {
		t.Errorf("an interrupted push left the processes %v", left)
	}
	r.Must(t, "start", "box", "--wait", "ready")
	if got := r.Must(t, "exec", "box", "--", "/bin/probe", "read", "/data/note"); got != "two" {
		t.Errorf("after a push was killed the file holds %d bytes, want two", len(got))
	}
	if got := strings.TrimSpace(r.Must(t, "exec", "box", "--", "/bin/probe", "owner", "/data/note")); got != "7:0" {
		t.Errorf("the owner is %s, want 7:0", got)
	}
	r.Must(t, "stop", "-f", "box")
	// What is on the disk is a guest's: a file system that is none is said to be.
	disks, err := filepath.Glob(filepath.Join(r.Dir, "state/pools/default/layers/*/disk.qcow2"))
	if err != nil || len(disks) == 0 {
		t.Fatalf("disks: %v, %v", disks, err)
	}
	for _, disk := range disks {
		if out, err := exec.Command("qemu-io", "-c", "write -P 0x5a 0 64k", disk).CombinedOutput(); err != nil {
			t.Fatalf("qemu-io: %v: %s", err, out)
		}
	}
	if res := push("three", "box/data/note"); res.Code != 8 || !strings.Contains(res.Stderr, "root disk") {
		t.Errorf("push to a broken file system = %+v", res)
	}
}

// TestFilesOfStoppedMachinesOnRawDisks does so where disks are not qcow2 files.
func TestFilesOfStoppedMachinesOnRawDisks(t *testing.T) {
	r := btrfsRig(t)
	r.Kernels(t)
	args := []string{"create", probeImage(t, r), "box", "--vm", "-c", "limits.memory=256MiB"}
	if r.Pool != "" {
		args = append(args, "-s", r.Pool)
	}
	r.Must(t, args...)
	r.Must(t, "snapshot", "create", "box", "first")
	if res := r.Feed(t, strings.NewReader("raw"), "file", "push", "-p", "-", "box/data/deep/note", "--gid", "9"); res.Code != 0 {
		t.Fatalf("push = %+v", res)
	}
	if got := r.Must(t, "file", "pull", "box/data/deep/note", "-"); got != "raw" {
		t.Errorf("the file holds %q, want raw", got)
	}
	r.Fails(t, 3, []string{"note"}, "file", "pull", "box/first/data/deep/note", "-")
}
