package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// smallFileSystems are how the small file systems of smallFolder are made.
var smallFileSystems = map[string][]string{
	"ext4":  {"mkfs.ext4", "-q", "-F", "-m", "0"},
	"btrfs": {"mkfs.btrfs", "-q"},
}

// smallFolder gives a rig whose BRIG_DIR is a small file system of its own, in a
// mount namespace that all its commands are run in.
func smallFolder(t *testing.T, kind string, megabytes int) *instancetest.Rig {
	t.Helper()
	r := instancetest.New(t, bin)
	image := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(image)
	if err == nil {
		err = f.Truncate(int64(megabytes) << 20)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	mkfs := append(slices.Clone(smallFileSystems[kind]), image)
	if out, err := exec.Command(mkfs[0], mkfs[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", mkfs, err, out)
	}
	const script = `mount -o loop "$0" "$1" && mkdir "$1/tmp" && echo mounted && exec cat`
	holder := exec.Command("unshare", "-m", "--propagation", "private", "/bin/sh", "-c", script, image, r.Dir)
	stdin, err := holder.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := holder.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	holder.Stderr = os.Stderr
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	inside := *r
	inside.Prefix = []string{"nsenter", "-t", strconv.Itoa(holder.Process.Pid), "-m", "--"}
	t.Cleanup(func() {
		inside.Empty(t)
		stdin.Close()
		holder.Wait()
	})
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil || line != "mounted\n" {
		t.Fatalf("the small disk is not mounted: %q, %v", line, err)
	}
	return &inside
}

// inside runs a program where the rig's commands run.
func inside(t *testing.T, r *instancetest.Rig, args ...string) (string, error) {
	t.Helper()
	out, err := exec.Command(r.Prefix[0], append(r.Prefix[1:], args...)...).CombinedOutput()
	return string(out), err
}

// inFolder lists what is in the rig's BRIG_DIR.
func inFolder(t *testing.T, r *instancetest.Rig) []string {
	t.Helper()
	out, err := inside(t, r, "find", r.Dir, "-not", "-path", "*/log/*")
	if err != nil {
		t.Fatalf("find: %v: %s", err, out)
	}
	return slices.Sorted(strings.SplitSeq(out, "\n"))
}

func TestFullDisk(t *testing.T) {
	r := smallFolder(t, "ext4", 64)
	app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
	r.Must(t, "launch", app, "web", "--wait", "ready")
	r.Must(t, "create", app, "off")
	r.Must(t, "snapshot", "create", "off", "s1")
	r.Must(t, "sweep")
	before := inFolder(t, r)
	noise := make([]byte, 100<<20)
	rand.Read(noise)
	for what, c := range map[string]struct {
		data []byte
		says string
	}{
		"more than fits":           {noise, "free some space"},
		"more than its size tells": {bytes.Repeat([]byte("more and more\n"), 10<<20), "no space left"},
	} {
		image := instancetest.MakeImage(t, instancetest.ImageConfig{Cmd: []string{"/big"}}, []instancetest.File{{Name: "big", Data: c.data, Mode: 0o755}})
		for _, ref := range []string{image.Layout(t, t.TempDir(), "1"), instancetest.NewRegistry(t).Add("big", "1", image)} {
			r.Fails(t, 7, []string{c.says, ref}, "launch", ref, "big")
			r.Must(t, "sweep")
			for _, file := range inFolder(t, r) {
				if !slices.Contains(before, file) {
					t.Errorf("the failed launch of %s (%s) left %s", ref, what, file)
				}
			}
		}
	}
	if !works(t, r, "web") {
		t.Error("the running instance does not work any more")
	}

	full(t, r, app, nil)
}

// fillFolder takes all the space there is in the rig's BRIG_DIR.
func fillFolder(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	for i, size := range []string{"1M", "4k", "512"} {
		out, err := inside(t, r, "dd", "if=/dev/urandom", "of="+r.Dir+"/fill"+strconv.Itoa(i), "bs="+size, "conv=fsync")
		if err == nil || !strings.Contains(out, "No space left") {
			t.Fatalf("the disk cannot be filled: %v: %s", err, out)
		}
	}
}

// full fills the disk that all is on, with a running and a stopped instance, and
// tries what has to work then. More says where instances are made.
func full(t *testing.T, r *instancetest.Rig, app string, more []string) {
	t.Helper()
	r.Must(t, append([]string{"create", app, "late"}, more...)...)
	fillFolder(t, r)
	r.Must(t, "list")
	r.Must(t, "info", "web")
	r.Must(t, "image", "list")
	r.Must(t, "snapshot", "list", "off")
	r.Must(t, "df")
	r.Must(t, "storage", "list")
	r.Fails(t, 7, []string{"space"}, append([]string{"create", app, "another"}, more...)...)
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "snapshot", "delete", "off", "s1")
	r.Must(t, "delete", "late")
	if list := r.Must(t, "trash", "list", "-f", "csv"); !strings.Contains(list, "late") {
		t.Errorf("the trash on a full disk: %q", list)
	}
	r.Must(t, "trash", "empty", "late")
	r.Must(t, "delete", "--now", "web")
	r.Must(t, "delete", "--now", "off")
	r.Must(t, "sweep")
	if left := r.List(t); len(left) != 0 {
		t.Errorf("after deleting all on a full disk there are %v", left)
	}
	r.Must(t, "trash", "empty", "--all")
	if out, err := inside(t, r, "sh", "-c", "rm "+r.Dir+"/fill*"); err != nil {
		t.Fatalf("rm: %v: %s", err, out)
	}
	r.Must(t, append([]string{"launch", app, "web", "--wait", "ready"}, more...)...)
	if !works(t, r, "web") {
		t.Error("with space again, a new instance does not work")
	}
}

// TestFullBtrfs has BRIG_DIR on a btrfs that gets full, with a pool in a folder of
// it, and with one in a file on it.
func TestFullBtrfs(t *testing.T) {
	for what, args := range map[string][]string{
		"overlay": nil,
		"folder":  {"btrfs", "source=here"},
	} {
		t.Run(what, func(t *testing.T) {
			r := smallFolder(t, "btrfs", 256)
			app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
			var more []string
			if args != nil {
				more = []string{"-s", "small"}
				if out, err := inside(t, r, "mkdir", filepath.Join(r.Dir, "pool")); err != nil {
					t.Fatalf("mkdir: %v: %s", err, out)
				}
				r.Must(t, "storage", "create", "small", args[0], strings.Replace(args[1], "here", filepath.Join(r.Dir, "pool"), 1))
				t.Cleanup(func() {
					r.Empty(t)
					r.Must(t, "storage", "delete", "small")
				})
			}
			r.Must(t, append([]string{"launch", app, "web", "--wait", "ready"}, more...)...)
			r.Must(t, append([]string{"create", app, "off"}, more...)...)
			r.Must(t, "snapshot", "create", "off", "s1")
			r.Must(t, "sweep")
			full(t, r, app, more)
		})
	}
}

// TestFullBelowAFile has a btrfs pool in a sparse file on an ext4 that gets full, which
// btrfs takes for a broken disk. What can be read is listed, what runs can be stopped,
// and with space again all is there and works.
func TestFullBelowAFile(t *testing.T) {
	r := smallFolder(t, "ext4", 200)
	app := instancetest.NewRegistry(t).Add("app", "1", probe(t, r))
	r.Must(t, "storage", "create", "small", "btrfs", "--size", "1GiB")
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "small")
	})
	r.Must(t, "launch", app, "web", "-s", "small", "--wait", "ready")
	r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/new", "kept")
	r.Must(t, "create", app, "off", "-s", "small")
	r.Must(t, "create", app, "well")
	r.Must(t, "sweep")
	fillFolder(t, r)
	r.Fails(t, 7, []string{"full"}, "snapshot", "create", "off")
	if lines := r.List(t); lines["well"].Status != "Stopped" || lines["web"].Status != "Running" {
		t.Errorf("list with a full disk below a pool: %+v", lines)
	}
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "delete", "--now", "well")
	if out, err := inside(t, r, "sh", "-c", "rm "+r.Dir+"/fill*"); err != nil {
		t.Fatalf("rm: %v: %s", err, out)
	}
	r.Must(t, "start", "web", "--wait", "ready")
	if got := r.Must(t, "exec", "web", "--", "/bin/probe", "read", "/data/new"); got != "kept" {
		t.Errorf("what was written before is %q", got)
	}
	r.Must(t, "snapshot", "create", "off", "s1")
}

// TestNoRoomForBlobs has a pool with room for an image, and none where the image is
// fetched to.
func TestNoRoomForBlobs(t *testing.T) {
	r := smallFolder(t, "ext4", 64)
	r.Must(t, "storage", "create", "far", "overlay", "source="+filepath.Join(t.TempDir(), "pool"))
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "far")
	})
	image := instancetest.MakeImage(t, instancetest.ImageConfig{Cmd: []string{"/big"}}, []instancetest.File{{Name: "big", Data: noise(100 << 20), Mode: 0o755}})
	ref := instancetest.NewRegistry(t).Add("big", "1", image)
	r.Must(t, "list") // which makes the default pool
	before := inFolder(t, r)
	r.Fails(t, 7, []string{"needs", "where images are kept", "free", ref}, "create", ref, "big", "-s", "far")
	for _, file := range inFolder(t, r) {
		if !slices.Contains(before, file) {
			t.Errorf("what was refused left %s", file)
		}
	}
	r.Must(t, "create", image.Layout(t, t.TempDir(), "1"), "big", "-s", "far")
}
