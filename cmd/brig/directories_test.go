package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/instancetest"
)

// TestDirectoriesOfTheHost attaches and detaches them while a container runs, also
// from a profile, and starts with them.
func TestDirectoriesOfTheHost(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "--wait", "ready")
	dir := t.TempDir()
	for path, owner := range map[string]int{dir: 0, filepath.Join(dir, "state"): 1234, filepath.Join(dir, "sub/inner"): 0} {
		if path != dir {
			os.MkdirAll(filepath.Dir(path), 0o755)
			if err := os.WriteFile(path, []byte("host"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chown(path, owner, owner); err != nil {
			t.Fatal(err)
		}
	}
	add := []string{"config", "device", "add", "web", "src", "disk", "source=" + dir, "path=/data/src"}
	remove := []string{"config", "device", "remove", "web", "src"}
	owner := func(want string) {
		t.Helper()
		if got := r.Must(t, "exec", "web", "--", "/bin/probe", "owner", "/data/src/state"); strings.TrimSpace(got) != want {
			t.Errorf("the owner is %q in the container, want %s", got, want)
		}
	}
	refused := func(file string) {
		t.Helper()
		if res := r.Run(t, "exec", "web", "--", "/bin/probe", "write", file, "x"); res.Code == 0 {
			t.Errorf("%s was written to", file)
		}
	}

	// Without shift the ids are the host's, which are nobody's.
	r.Must(t, add...)
	got(t, r, "web", "/data/src/state", "host")
	owner("65534:65534")
	refused("/data/src/new")
	// Other mounts of the same file system, and parts of it, are told apart.
	r.Must(t, "config", "device", "add", "web", "sub", "disk", "source="+filepath.Join(dir, "sub"), "path=/data/sub")
	r.Must(t, remove...)
	got(t, r, "web", "/data/sub/inner", "host")
	r.Must(t, "config", "device", "remove", "web", "sub")

	r.Must(t, append(add, "shift=true")...)
	owner("1234:1234")
	put(t, r, "web", "/data/src/made", "in the container")
	if text, err := os.ReadFile(filepath.Join(dir, "made")); err != nil || string(text) != "in the container" {
		t.Errorf("the host has %q, %v", text, err)
	}
	if st, err := os.Stat(filepath.Join(dir, "made")); err != nil || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("what the container's root made is %v, %v, want it root's", st, err)
	}
	r.Must(t, "restart", "-f", "web")
	instancetest.Await(t, "web to answer", func() bool { return works(t, r, "web") })
	owner("1234:1234")
	r.Must(t, remove...)
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/src/state"); res.Code == 0 {
		t.Error("a directory that was taken away is still there")
	}

	// Links of the container lead nowhere out.
	outside := t.TempDir()
	r.Must(t, "exec", "web", "--", "/bin/probe", "mkdir", outside)
	r.Must(t, "exec", "web", "--", "/bin/probe", "link", "../../../../.."+outside, "/data/link")
	r.Must(t, "config", "device", "add", "web", "src", "disk", "source="+dir, "path=/data/link/a", "readonly=true", "shift=true")
	got(t, r, "web", outside+"/a/state", "host")
	refused(outside + "/a/state")
	if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
		t.Errorf("the host's directory holds %v, %v", left, err)
	}
	r.Must(t, remove...)

	// A profile gives it and takes it back; one that is not there can be optional.
	r.Must(t, "profile", "create", "work")
	r.Must(t, "profile", "device", "add", "work", "src", "disk", "source="+dir, "path=/data/src", "shift=true")
	r.Must(t, "profile", "add", "web", "work")
	owner("1234:1234")
	r.Fails(t, 3, []string{"src", "override"}, "config", "device", "set", "web", "src", "shift=false")
	r.Must(t, "config", "device", "override", "web", "src", "readonly=true")
	owner("1234:1234")
	refused("/data/src/state")
	r.Fails(t, 4, []string{"src", "own"}, "config", "device", "override", "web", "src")
	r.Must(t, "config", "device", "set", "web", "src", "path=/data/moved", "readonly=")
	put(t, r, "web", "/data/moved/state", "host")
	r.Fails(t, 2, []string{"shift"}, "config", "device", "set", "web", "src", "path=/data/src", "shift=perhaps")
	r.Fails(t, 3, []string{"size"}, "config", "device", "unset", "web", "src", "shift", "size")
	got(t, r, "web", "/data/moved/state", "host")
	r.Must(t, "config", "device", "set", "web", "src", "path=/data/src")
	owner("1234:1234")
	r.Must(t, "config", "device", "unset", "web", "src", "shift")
	owner("65534:65534")
	r.Must(t, remove...) // the profile's is back
	owner("1234:1234")
	r.Must(t, "profile", "remove", "web", "work")
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/src/state"); res.Code == 0 {
		t.Error("the directory of a profile that was taken away is still there")
	}
	gone := filepath.Join(dir, "gone")
	r.Must(t, "config", "device", "add", "web", "gone", "disk", "source="+gone, "path=/data/gone", "required=false")
	r.Must(t, "restart", "-f", "web")
	if err := os.Mkdir(gone, 0o755); err != nil {
		t.Fatal(err)
	}
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "config", "device", "remove", "web", "gone")
	r.Must(t, "config", "device", "add", "web", "gone", "disk", "source="+gone, "path=/data/gone")
	if err := os.Remove(gone); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 3, []string{"gone", "config device remove"}, "start", "web")
	r.Must(t, "config", "device", "remove", "web", "gone")
	r.Must(t, "delete", "-f", "web")
	r.Must(t, "profile", "delete", "work")

	memoryIsADisk(t, r, app)

	// One with the ids of the host.
	r.Must(t, "launch", app, "web", "-c", "security.privileged=true", "--wait", "ready")
	for range 2 {
		r.Must(t, add...)
		owner("1234:1234")
		r.Must(t, "restart", "-f", "web")
		instancetest.Await(t, "web to answer", func() bool { return works(t, r, "web") })
		owner("1234:1234")
		r.Must(t, remove...)
		if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/src/state"); res.Code == 0 {
			t.Error("a directory that was taken away is still there")
		}
	}
	r.Must(t, "delete", "-f", "web")
}

// memoryIsADisk adds and removes it while a container runs.
func memoryIsADisk(t *testing.T, r *instancetest.Rig, app string) {
	r.Must(t, "launch", app, "web", "--wait", "ready")
	r.Must(t, "config", "device", "add", "web", "tmp", "disk", "source=tmpfs:", "path=/data/tmp", "size=1MiB")
	put(t, r, "web", "/data/tmp/new", "text")
	if got := r.Must(t, "exec", "web", "--", "/bin/probe", "owner", "/data/tmp"); strings.TrimSpace(got) != "0:0" {
		t.Errorf("the owner of the memory is %q, want the container's root", got)
	}
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "zeros", "/data/tmp/zeros", "1048576"); res.Code == 0 {
		t.Error("1 MiB of memory holds more than that")
	}
	r.Must(t, "restart", "-f", "web")
	instancetest.Await(t, "web to answer", func() bool { return works(t, r, "web") })
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/tmp/new"); res.Code == 0 {
		t.Error("the memory was kept over a restart")
	}
	put(t, r, "web", "/data/tmp/new", "text")
	r.Must(t, "config", "device", "remove", "web", "tmp")
	if res := r.Run(t, "exec", "web", "--", "/bin/probe", "read", "/data/tmp/new"); res.Code == 0 {
		t.Error("memory that was taken away is still there")
	}
	r.Must(t, "delete", "-f", "web")
}
