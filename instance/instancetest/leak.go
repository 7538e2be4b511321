package instancetest

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Host is what instances could leave on the host: one line a thing.
type Host []string

// Look tells what is on the host now. dir is the BRIG_DIR under test: processes
// that name it are its own.
func Look(t testing.TB, dir string) Host {
	t.Helper()
	var h Host
	add := func(kind string, lines []string) {
		for _, l := range lines {
			h = append(h, kind+" "+l)
		}
	}
	add("mount", mounts(t))
	add("loop", loops(t, dir))
	add("interface", names(t, "/sys/class/net"))
	add("nft", nft())
	add("cgroup", cgroups(t))
	add("process", processes(t, dir))
	add("shared file", shared(t))
	slices.Sort(h)
	return h
}

// NoLeak fails the test when the host has something that it did not have
// before, or lost something. What ends by itself right now gets a moment.
func NoLeak(t testing.TB, before Host, dir string) {
	t.Helper()
	var after Host
	same := func() bool {
		after = Look(t, dir)
		return slices.Equal(before, after)
	}
	for range 200 {
		if same() {
			break
		}
		<-time.After(50 * time.Millisecond)
	}
	for _, l := range after {
		if !slices.Contains(before, l) {
			t.Errorf("left on the host: %s", l)
		}
	}
	for _, l := range before {
		if !slices.Contains(after, l) {
			t.Errorf("gone from the host: %s", l)
		}
	}
	for _, l := range files(t, dir) {
		t.Errorf("left in BRIG_DIR: %s", l)
	}
}

func mounts(t testing.TB) []string {
	var list []string
	eachLine(t, "/proc/self/mountinfo", func(line string) {
		f := strings.Fields(line)
		list = append(list, strings.Join(f[3:5], " ")+" "+strings.Join(f[slices.Index(f, "-"):], " "))
	})
	return list
}

// loops are the loop devices of files in dir.
func loops(t testing.TB, dir string) []string {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, f := range files {
		if backing, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(backing), dir) {
			list = append(list, f)
		}
	}
	return list
}

func names(t testing.TB, dir string) []string {
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// nft lists the tables of the packet filter; a host without the tool has no
// other way to have got one than through brig, so the kernel is asked then.
func nft() []string {
	out, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		return []string{"unknown: " + err.Error()}
	}
	return strings.Split(strings.TrimSpace(string(out)), "\n")
}

func cgroups(t testing.TB) []string {
	var list []string
	err := filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "brig") {
			list = append(list, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Quiet waits until no process works for the rig: a command may leave one beside it that
// frees what was deleted.
func (r *Rig) Quiet(t testing.TB) {
	t.Helper()
	Await(t, "nobody works in "+r.Dir, func() bool { return len(processes(t, r.Dir)) == 0 })
}

// processes are those whose command line names the folder under test, or that
// work in it because of their environment, as brig sweep does.
func processes(t testing.TB, dir string) []string {
	var list []string
	for _, n := range names(t, "/proc") {
		pid, err := strconv.Atoi(n)
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", n, "cmdline"))
		env, _ := os.ReadFile(filepath.Join("/proc", n, "environ"))
		if err == nil && (strings.Contains(string(line), dir) || strings.Contains(string(env), "BRIG_DIR="+dir+"\x00")) {
			list = append(list, strings.ReplaceAll(strings.TrimRight(string(line), "\x00"), "\x00", " "))
		}
	}
	return list
}

// sharedDir is where all brigs of a host agree on who has what.
const sharedDir = "/run/brig-host"

// shared lists what brigs have claimed of the host. The claim of a subnet stays
// for as long as its BRIG_DIR: see Claims.
func shared(t testing.TB) []string {
	var list []string
	err := filepath.WalkDir(sharedDir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case path == filepath.Join(sharedDir, "subnets"):
			return fs.SkipDir
		case d.Name() == "lock" || filepath.Dir(path) == sharedDir && d.IsDir() || path == sharedDir:
			return nil
		}
		list = append(list, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// Claims gives the BRIG_DIRs that have claimed a subnet, by subnet.
func Claims(t testing.TB) map[string]string {
	t.Helper()
	found := map[string]string{}
	links, err := filepath.Glob(filepath.Join(sharedDir, "subnets", "*_*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range links {
		if config, err := os.Readlink(link); err == nil {
			found[filepath.Base(link)] = filepath.Dir(filepath.Dir(config))
		}
	}
	return found
}

// Files lists all that is in a BRIG_DIR, folders too.
func Files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		// A lock is there while somebody holds it, which a sweep does at times.
		switch name, _ := filepath.Rel(dir, path); name {
		case "run/locks/.sweep", "run/network", "run/network/lock":
		default:
			list = append(list, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// files are what should not be in an empty BRIG_DIR: anything but its first
// folders, kernels, the pool's own description, and the network's choice of a
// subnet.
func files(t testing.TB, dir string) []string {
	var list []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		for _, kept := range kept {
			if name == kept || strings.HasPrefix(name, kept+"/") {
				return nil
			}
		}
		if !d.IsDir() || strings.HasPrefix(name, "state/pools/default/layers/") {
			list = append(list, name)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	return list
}

// kept are the files that stay when all instances and images are gone: kernels
// are kept on purpose.
var kept = []string{
	"state/clock.json",
	"state/id",
	"state/intents/reserve",
	"state/kernels",
	"state/network.json",
	"state/pools/default/owner.json",
	"state/pools/default/pool.json",
	"state/storage/default.json",
}

func eachLine(t testing.TB, path string, do func(string)) {
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	s := bufio.NewScanner(f)
	s.Buffer(nil, 1<<20)
	for s.Scan() {
		do(s.Text())
	}
	if err := s.Err(); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", path, err))
	}
}
