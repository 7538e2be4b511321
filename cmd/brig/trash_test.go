package main

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
	"brig/instance/run"
)

// trashed is a line of trash list -f json.
type trashed struct {
	Name, ID, Type, Pool string
	DeletedAt            time.Time `json:"deleted_at"`
	KeptUntil            time.Time `json:"kept_until"`
	Size                 int64
}

func trash(t *testing.T, r *instancetest.Rig) []trashed {
	t.Helper()
	var list []trashed
	if err := json.Unmarshal([]byte(r.Must(t, "trash", "list", "-f", "json")), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// says checks what the file of a running instance says.
func says(t *testing.T, r *instancetest.Rig, name, want string) {
	t.Helper()
	if got := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/data/state"); got != want {
		t.Errorf("%s says %q, want %q", name, got, want)
	}
}

func tell(t *testing.T, r *instancetest.Rig, name, text string) {
	t.Helper()
	r.Must(t, "exec", name, "--", "/bin/probe", "write", "/data/state", text)
}

func TestDeleteAndUndo(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "web", "--wait", "ready")
	tell(t, r, "web", "one")
	r.Must(t, "snapshot", "create", "web", "s")
	tell(t, r, "web", "two")
	r.Must(t, "snapshot", "restore", "web", "s")
	says(t, r, "web", "one")
	if out := r.Must(t, "snapshot", "list", "web", "-f", "csv"); strings.Count(out, "\n") != 1 {
		t.Errorf("snapshot list shows %q, want s alone", out)
	}
	if res := r.Run(t, "undo", "web"); res.Code != 0 || !strings.Contains(res.Stderr, `restore to "s"`) {
		t.Errorf("undo = %+v", res)
	}
	says(t, r, "web", "two")
	address := r.List(t)["web"].State.Network["eth0"].Addresses[0].Address

	r.Fails(t, 4, []string{"web", "--force"}, "delete", "web")
	r.Must(t, "delete", "-f", "web")
	if list := r.List(t); len(list) != 0 {
		t.Errorf("list after delete shows %v", list)
	}
	list := trash(t, r)
	if len(list) != 1 || list[0].Name != "web" || list[0].Type != "container" || list[0].Pool != "default" || list[0].Size == 0 || !list[0].KeptUntil.Equal(list[0].DeletedAt.AddDate(0, 0, 7)) {
		t.Errorf("trash list = %+v", list)
	}
	// The name is free, and another gets it.
	r.Must(t, "launch", app, "web", "--wait", "ready")
	tell(t, r, "web", "new")
	r.Fails(t, 4, []string{"web", "--as"}, "trash", "restore", "web")
	r.Must(t, "trash", "restore", list[0].ID, "--as", "old")
	r.Must(t, "start", "old", "--wait", "ready")
	says(t, r, "old", "two")
	if got := r.List(t)["old"].State.Network["eth0"].Addresses[0].Address; got != address {
		t.Errorf("it came back with the address %s, it had %s", got, address)
	}
	r.Must(t, "snapshot", "restore", "old", "s")
	says(t, r, "old", "one")
	r.Must(t, "delete", "-f", "old")
	r.Must(t, "undo", "old")
	r.Must(t, "delete", "old")
	r.Must(t, "trash", "empty", "old")
	r.Fails(t, 3, []string{"old", "brig trash list"}, "trash", "restore", "old")
	r.Fails(t, 3, []string{"old"}, "undo", "old")
	r.Fails(t, 2, []string{"--all"}, "trash", "empty")
	r.Must(t, "delete", "-f", "--now", "web")
	if list := trash(t, r); len(list) != 0 {
		t.Errorf("trash list = %+v, want nothing", list)
	}
}

// TestFullPool has everything of a brig on one small file system with no byte
// free: instances can be listed, deleted and removed for good there.
func TestFullPool(t *testing.T) {
	place := t.TempDir()
	file := filepath.Join(t.TempDir(), "fs")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 96<<20)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-F", file}, {"mount", "-o", "loop", file, place}} {
		if _, err := run.Output(t.Context(), cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	r := &instancetest.Rig{Bin: bin, Dir: filepath.Join(place, "brig")}
	if err := os.MkdirAll(filepath.Join(r.Dir, "tmp"), 0o700); err != nil {
		t.Fatal(err)
	}
	before := instancetest.Look(t, r.Dir)
	t.Cleanup(func() { instancetest.NoLeak(t, before, r.Dir) })
	app := probeImage(t, r)
	for _, name := range []string{"a", "b", "c", "d"} {
		r.Must(t, "create", app, name)
	}
	r.Must(t, "delete", "d")
	fill(t, place)
	r.Fails(t, 7, []string{"no space"}, "copy", "a", "new")
	r.Must(t, "list")
	if res := r.Run(t, "delete", "a", "b"); res.Code != 0 || !strings.Contains(res.Stderr, "brig trash empty a") {
		t.Errorf("delete on a full pool = %+v, want 0 and how to free the space", res)
	}
	if list := r.List(t); len(list) != 1 || len(trash(t, r)) != 3 {
		t.Errorf("list = %v, trash list = %+v, want c there and the others in the trash", list, trash(t, r))
	}
	r.Must(t, "trash", "empty", "a")
	r.Must(t, "trash", "empty", "--all")
	r.Must(t, "sweep")
	if len(trash(t, r)) != 0 {
		t.Errorf("trash list = %+v, want nothing", trash(t, r))
	}
	r.Must(t, "copy", "c", "new")
	r.Empty(t)
}

// fill takes all the space there is in dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, size := range []int{1 << 20, 4096, 512} {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, unix.ENOSPC) {
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestBtrfsPool(t *testing.T) {
	r := instancetest.New(t, bin)
	image := probeImage(t, r)
	r.Must(t, "storage", "create", "fast", "btrfs", "--size", "1GiB")
	r.Must(t, "launch", image, "web", "-s", "fast", "--wait", "ready")
	for _, state := range []string{"one", "two", "three"} {
		r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/state", state)
		r.Must(t, "snapshot", "create", "web", state)
	}
	is := func(want string) {
		t.Helper()
		if got := r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/state"); got != want {
			t.Errorf("the state is %q, want %q", got, want)
		}
	}
	r.Must(t, "snapshot", "restore", "web", "one")
	is("one")
	r.Must(t, "snapshot", "restore", "web", "three")
	is("three")
	r.Must(t, "undo", "web")
	is("one")
	r.Must(t, "delete", "-f", "web")
	if res := r.Run(t, "storage", "delete", "fast"); res.Code != 4 {
		t.Errorf("deleting a pool with trash in it = %d: %s, want 4", res.Code, res.Stderr)
	}
	r.Must(t, "trash", "restore", "web")
	r.Must(t, "move", "web", "-s", "default")
	r.Must(t, "start", "web", "--wait", "ready")
	is("one")
	r.Must(t, "delete", "-f", "--now", "web")
	r.Must(t, "storage", "delete", "fast")
}
