package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
)

// sickPools are the pools that things happen to: what makes one named sick, and
// where it is.
var sickPools = map[string]func(t *testing.T, r *instancetest.Rig) (source string){
	"overlay": func(t *testing.T, r *instancetest.Rig) string {
		source := filepath.Join(t.TempDir(), "pool")
		r.Must(t, "storage", "create", "sick", "overlay", "source="+source)
		return source
	},
	"btrfs": func(t *testing.T, r *instancetest.Rig) string {
		r.Must(t, "storage", "create", "sick", "btrfs", "--size", "512MiB")
		return filepath.Join(r.Dir, "state/pools/sick.btrfs")
	},
}

// neighbours gives a rig with a sick pool to be, with a running and a stopped
// instance, and one that runs in another pool. All go when the test ends.
func neighbours(t *testing.T, driver string) (r *instancetest.Rig, app, source string) {
	t.Helper()
	r = instancetest.New(t, bin)
	app = probeImage(t, r)
	source = sickPools[driver](t, r)
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "sick")
	})
	r.Must(t, "launch", app, "well", "--wait", "ready")
	r.Must(t, "launch", app, "runs", "-s", "sick", "--wait", "ready")
	r.Must(t, "exec", "runs", "--", "/bin/probe", "write", "/data/new", "kept")
	r.Must(t, "create", app, "off", "-s", "sick")
	return r, app, source
}

// quick bounds how long list may take whatever state the neighbours are in.
const quick = 5 * time.Second

// unharmed checks that list answers in time, and that the instance in the other pool
// works as if nothing had happened.
func unharmed(t *testing.T, r *instancetest.Rig) map[string]instancetest.Line {
	t.Helper()
	began := time.Now()
	lines := r.List(t)
	if took := time.Since(began); took > quick {
		t.Errorf("list took %s", took)
	}
	if lines["well"].Status != "Running" || !works(t, r, "well") {
		t.Errorf("the instance in the other pool is %+v", lines["well"])
	}
	r.Must(t, "snapshot", "create", "well")
	return lines
}

// lacks checks that an instance cannot be used, for a reason.
func lacks(t *testing.T, r *instancetest.Rig, code int, word, name string) {
	t.Helper()
	for _, args := range [][]string{{"start", name}, {"info", name}, {"snapshot", "create", name}, {"copy", name, "another"}, {"delete", name}} {
		r.Fails(t, code, []string{name, word}, args...)
	}
	if res := r.Run(t, "storage", "info", "sick"); res.Code != 0 || !strings.Contains(res.Stdout, word) {
		t.Errorf("storage info = %d: %s%s, want %q in it", res.Code, res.Stdout, res.Stderr, word)
	}
}

// recovered checks that nothing was lost.
func recovered(t *testing.T, r *instancetest.Rig) {
	t.Helper()
	lines := unharmed(t, r)
	if lines["off"].Status != "Stopped" || lines["runs"].Name == "" {
		t.Errorf("after all is well again: %+v", lines)
	}
	if lines["runs"].Status != "Running" {
		r.Must(t, "start", "runs", "--wait", "ready")
	}
	if got := r.Must(t, "exec", "runs", "--", "/bin/probe", "read", "/data/new"); got != "kept" {
		t.Errorf("what was written is %q", got)
	}
	r.Must(t, "start", "off", "--wait", "ready")
	r.Must(t, "stop", "-f", "off")
}

func TestPoolThatIsGone(t *testing.T) {
	for driver := range sickPools {
		t.Run(driver, func(t *testing.T) {
			elsewhere := filepath.Join(t.TempDir(), "pool") // which goes after the pool
			r, _, source := neighbours(t, driver)
			if err := os.Rename(source, source+".moved"); err != nil {
				t.Fatal(err)
			}
			lines := unharmed(t, r)
			if _, there := lines["off"]; there {
				t.Errorf("an instance of a pool that is gone is listed: %+v", lines["off"])
			}
			if got := lines["runs"]; got.Status != "Running" || !strings.Contains(got.Reason, source) {
				t.Errorf("the running instance of a pool that is gone: %+v, want %q as the reason", got, source)
			}
			if res := r.Run(t, "list"); !strings.Contains(res.Stderr, "sick") {
				t.Errorf("list says nothing of the pool: %s", res.Stderr)
			}
			lacks(t, r, 8, "put it back", "off")
			r.Fails(t, 8, []string{"--force"}, "storage", "delete", "sick")
			r.Fails(t, 4, []string{"runs"}, "storage", "delete", "--force", "sick")
			r.Must(t, "stop", "-f", "runs")
			if driver == "overlay" {
				// The folder that a disk was mounted on.
				if err := os.Mkdir(source, 0o700); err != nil {
					t.Fatal(err)
				}
				lacks(t, r, 8, "disk", "off")
				if err := os.Remove(source); err != nil {
					t.Fatalf("something was made where the pool is not: %v", err)
				}
			}
			if err := os.Rename(source+".moved", source); err != nil {
				t.Fatal(err)
			}
			recovered(t, r)

			// Where it stays elsewhere, it is forgotten, and adopted there.
			r.Must(t, "stop", "-f", "runs")
			r.Must(t, "storage", "delete", "--force", "sick")
			if lines := r.List(t); len(lines) != 1 {
				t.Errorf("instances of a pool that was forgotten are listed: %+v", lines)
			}
			if err := os.Rename(source, elsewhere); err != nil {
				t.Fatal(err)
			}
			r.Must(t, "storage", "create", "sick", driver, "source="+elsewhere, "--adopt")
			recovered(t, r)
		})
	}
}

// edit changes a JSON file.
func edit(t *testing.T, path string, change func(map[string]any)) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var content map[string]any
	if err := json.Unmarshal(data, &content); err != nil {
		t.Fatal(err)
	}
	change(content)
	if data, err = json.Marshal(content); err == nil {
		err = os.WriteFile(path, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// inPool finds the one file of a pool that fits a pattern.
func inPool(t *testing.T, r *instancetest.Rig, driver, source, pattern string) string {
	t.Helper()
	if driver == "btrfs" {
		source = filepath.Join(r.Dir, "run/pools/sick")
	}
	found, err := filepath.Glob(filepath.Join(source, pattern))
	if err != nil || len(found) != 1 {
		t.Fatalf("%q in %q: %v, %v", pattern, source, found, err)
	}
	return found[0]
}

func TestPoolOfANewerBrig(t *testing.T) {
	for driver := range sickPools {
		t.Run(driver, func(t *testing.T) {
			r, _, source := neighbours(t, driver)
			r.Must(t, "stop", "-f", "runs")
			header := inPool(t, r, driver, source, "pool.json")
			var version any
			edit(t, header, func(h map[string]any) { version, h["version"] = h["version"], 99 })
			unharmed(t, r)
			lacks(t, r, 6, "99", "off")
			edit(t, header, func(h map[string]any) { h["version"] = version })
			recovered(t, r)
		})
	}
}

func TestPoolOfTwoBrigs(t *testing.T) {
	for driver := range sickPools {
		t.Run(driver, func(t *testing.T) {
			r, _, source := neighbours(t, driver)
			r.Must(t, "stop", "-f", "runs")
			unharmed(t, r) // which leaves a cgroup in the one that runs
			other := instancetest.New(t, bin)
			other.Fails(t, 4, []string{source, "--adopt"}, "storage", "create", "mine", driver, "source="+source)
			t.Cleanup(func() {
				if other.Run(t, "storage", "info", "mine").Code == 0 {
					other.Must(t, "storage", "delete", "--force", "mine")
				}
				r.Must(t, "storage", "create", "sick", driver, "--adopt")
			})
			// An instance cannot be there twice.
			other.Must(t, "create", probeImage(t, other), "off")
			other.Fails(t, 4, []string{`"off"`, "rename"}, "storage", "create", "mine", driver, "source="+source, "--adopt")
			recovered(t, r)
			r.Must(t, "stop", "-f", "runs")
			other.Must(t, "rename", "off", "mine")
			other.Must(t, "storage", "create", "mine", driver, "source="+source, "--adopt")
			if lines := other.List(t); len(lines) != 3 || lines["runs"].Status != "Stopped" {
				t.Errorf("instances after adopting: %+v", lines)
			}
			other.Must(t, "start", "runs", "--wait", "ready")
			if got := other.Must(t, "exec", "runs", "--", "/bin/probe", "read", "/data/new"); got != "kept" {
				t.Errorf("what was written is %q after adopting", got)
			}
			other.Must(t, "stop", "-f", "runs")

			// Whose it was does not touch it any more, and says why.
			unharmed(t, r)
			lacks(t, r, 4, other.Dir, "off")
			other.Must(t, "storage", "delete", "--force", "mine")
			r.Must(t, "storage", "create", "sick", driver, "--adopt")
			recovered(t, r)
			r.Must(t, "stop", "-f", "runs") // what runs here, the other takes for a leak
		})
	}
}

// TestInstanceThatCannotBeRead damages one instance in several ways: it is listed
// with the reason, can be deleted with --force, and no other feels it.
func TestInstanceThatCannotBeRead(t *testing.T) {
	for driver := range sickPools {
		t.Run(driver, func(t *testing.T) {
			r, app, source := neighbours(t, driver)
			spec := "instances/bad/meta/instance.json"
			if driver == "btrfs" {
				spec = "instances/bad/data/instance.json"
			}
			for _, c := range []struct {
				word   string
				code   int
				damage func()
			}{
				{"newer brig", 6, func() {
					edit(t, inPool(t, r, driver, source, spec), func(s map[string]any) { s["version"] = 99 })
				}},
				{"damaged", 1, func() {
					if err := os.WriteFile(inPool(t, r, driver, source, spec), []byte("{"), 0o600); err != nil {
						t.Fatal(err)
					}
				}},
				{"", 1, func() {
					if err := os.Remove(inPool(t, r, driver, source, spec)); err != nil {
						t.Fatal(err)
					}
				}},
				{"damaged", 8, func() {
					if err := os.WriteFile(inPool(t, r, driver, source, "instances/bad/volume.json"), []byte("{"), 0o600); err != nil {
						t.Fatal(err)
					}
				}},
				{"deleted the subvolume", 8, func() {
					if driver != "btrfs" {
						return
					}
					if out, err := exec.Command("btrfs", "subvolume", "delete", inPool(t, r, driver, source, "instances/bad/data")).CombinedOutput(); err != nil {
						t.Fatalf("btrfs: %v: %s", err, out)
					}
				}},
			} {
				if c.code == 8 && c.word == "deleted the subvolume" && driver != "btrfs" {
					continue
				}
				for _, runs := range []bool{false, true} {
					r.Must(t, "create", app, "bad", "-s", "sick")
					if runs && c.code != 8 {
						r.Must(t, "start", "bad", "--wait", "ready")
					}
					c.damage()
					lines := unharmed(t, r)
					if bad := lines["bad"]; bad.Status != "Error" && bad.Status != "Broken" || !strings.Contains(bad.Reason, c.word) {
						t.Errorf("the line of an instance that cannot be read (%s): %+v", c.word, bad)
					}
					r.Fails(t, c.code, []string{"bad", c.word}, "start", "bad")
					r.Fails(t, c.code, []string{"bad", "--force"}, "delete", "bad")
					r.Must(t, "delete", "--force", "bad")
					lines = unharmed(t, r)
					if _, there := lines["bad"]; there {
						t.Errorf("it is still there after delete --force: %+v", lines["bad"])
					}
					r.Must(t, "trash", "empty", "--all")
				}
			}
			recovered(t, r)
		})
	}
}

func TestReadOnlyPool(t *testing.T) {
	place := smallDisk(t, 64)
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "storage", "create", "sick", "overlay", "source="+filepath.Join(place, "pool"))
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "sick")
	})
	r.Must(t, "launch", app, "well", "--wait", "ready")
	r.Must(t, "create", app, "off", "-s", "sick")
	r.Must(t, "create", app, "runs", "-s", "sick")
	r.Must(t, "start", "runs", "--wait", "ready")
	r.Must(t, "exec", "runs", "--", "/bin/probe", "write", "/data/new", "kept")
	r.Must(t, "stop", "-f", "runs")
	r.Must(t, "snapshot", "create", "off", "s1")
	r.Must(t, "sweep")
	if err := unix.Mount("", place, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if lines := unharmed(t, r); lines["off"].Status != "Stopped" {
		t.Errorf("the line of an instance in a read-only pool: %+v", lines["off"])
	}
	r.Must(t, "info", "off")
	r.Must(t, "snapshot", "list", "off")
	r.Must(t, "df")
	for _, args := range [][]string{
		{"create", app, "new", "-s", "sick"}, {"snapshot", "create", "off"}, {"snapshot", "delete", "off", "s1"},
		{"snapshot", "restore", "off", "s1"}, {"delete", "off"}, {"delete", "--now", "off"}, {"rename", "off", "other"},
	} {
		r.Fails(t, 8, []string{"read-only"}, args...)
	}
	if err := unix.Mount("", place, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	recovered(t, r)
	if got := r.Must(t, "snapshot", "list", "off", "-f", "csv"); !strings.HasPrefix(got, "s1,") {
		t.Errorf("snapshots after the pool was read-only: %s", got)
	}
}

// TestMountedSnapshotKeepsItsInstance looks into a snapshot, and tries to delete what
// it is of.
func TestMountedSnapshotKeepsItsInstance(t *testing.T) {
	r, app, _ := neighbours(t, "btrfs")
	place := t.TempDir()
	r.Must(t, "snapshot", "create", "off", "seen")
	r.Must(t, "snapshot", "mount", "off/seen", place)
	for _, args := range [][]string{
		{"delete", "off"}, {"delete", "--now", "off"}, {"delete", "--force", "off"},
		{"snapshot", "delete", "off", "seen"}, {"move", "off", "-s", "default"},
	} {
		r.Fails(t, 4, []string{"off", place, "brig snapshot unmount"}, args...)
	}
	if _, err := os.Stat(filepath.Join(place, "bin/probe")); err != nil {
		t.Errorf("what is mounted: %v", err)
	}
	cmd := exec.Command("/bin/sleep", "1000")
	cmd.Dir = place
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 4, []string{fmt.Sprintf("process %d", cmd.Process.Pid), "sleep"}, "snapshot", "unmount", place)
	cmd.Process.Kill()
	cmd.Wait()
	r.Must(t, "snapshot", "unmount", place)
	r.Must(t, "delete", "off")
	r.Must(t, "create", app, "off", "-s", "sick")
}

// TestPoolHalfDeleted has something in a pool that cannot be removed for now: a pool of
// which a part is gone is none, and its deletion goes on or is given up.
func TestPoolHalfDeleted(t *testing.T) {
	r := instancetest.New(t, bin)
	folder := filepath.Join(t.TempDir(), "far")
	create := []string{"storage", "create", "far", "overlay", "source=" + folder}
	isListed := func(want bool) {
		t.Helper()
		if out := r.Must(t, "storage", "list", "-f", "csv"); strings.Contains(out, "far,") != want {
			t.Errorf("the pool is to be on the list: %t; that is: %s", want, out)
		}
	}
	halfDelete := func() (release func()) {
		t.Helper()
		r.Must(t, create...)
		kept := filepath.Join(folder, "kept") // where no sweep looks
		if err := os.Mkdir(kept, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("brig-test", kept, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		r.Fails(t, 1, []string{"busy", "carry on"}, "storage", "delete", "far")
		return func() {
			if err := unix.Unmount(kept, 0); err != nil {
				t.Error(err)
			}
		}
	}

	release := halfDelete()
	isListed(true)
	if res := r.Run(t, "create", "--empty", "--vm", "web", "-s", "far"); res.Code == 0 {
		t.Error("an instance was made in the half of a pool")
	}
	r.Must(t, "list")
	r.Must(t, "profile", "list")
	for _, args := range [][]string{{"project", "list", "-f", "csv"}, {"project", "show", "default"}} {
		if res := r.Run(t, args...); res.Code != 0 || !strings.Contains(res.Stdout, "default") || !strings.Contains(res.Stderr, `pool "far"`) {
			t.Errorf("brig %q = %+v", args, res)
		}
	}
	r.Must(t, "project", "create", "other")
	r.Fails(t, 8, []string{`pool "far"`}, "project", "delete", "other")
	release()
	r.Must(t, "sweep")
	isListed(false)
	r.Must(t, "project", "delete", "other")
	if _, err := os.Lstat(folder); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder is there: %v", err)
	}

	release = halfDelete()
	r.Must(t, "storage", "delete", "far", "--force")
	isListed(false)
	release()
	r.Must(t, "sweep")
	if _, err := os.Lstat(folder); err != nil {
		t.Errorf("what is left of a pool that was forgotten was removed: %v", err)
	}
	if err := os.RemoveAll(folder); err != nil {
		t.Fatal(err)
	}
	r.Must(t, create...)
	r.Must(t, "storage", "delete", "far")
}

// TestPoolInUse makes a pool busy that is to be deleted.
func TestPoolInUse(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "storage", "create", "sick", "btrfs", "--size", "512MiB")
	r.Must(t, "storage", "info", "sick")
	f, err := os.Open(filepath.Join(r.Dir, "run/pools/sick/pool.json"))
	if err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 4, []string{"sick", "in use", fmt.Sprintf("process %d", os.Getpid())}, "storage", "delete", "sick")
	f.Close()
	r.Must(t, "storage", "delete", "sick")
}

func TestPoolGrowsAndShrinks(t *testing.T) {
	r, _, source := neighbours(t, "btrfs")
	total := func() int64 { _, pools := space(t, r); return pools["sick"].Total }
	for _, size := range []int64{2 << 30, 300 << 20, 512 << 20} {
		r.Must(t, "storage", "set", "sick", fmt.Sprint("size=", size))
		st, err := os.Stat(source)
		if err != nil || st.Size() != size || total() != size {
			t.Errorf("after size=%d the file has %d bytes, the pool %d", size, st.Size(), total())
		}
		if got := strings.TrimSpace(r.Must(t, "storage", "get", "sick", "size")); got != fmt.Sprint(size) {
			t.Errorf("size is %s, want %d", got, size)
		}
		unharmed(t, r)
	}
	r.Must(t, "exec", "runs", "--", "/bin/probe", "read", "/data/new")
	data := filepath.Join(r.Dir, "run/pools/sick/instances/off/data/rootfs/large")
	if err := os.WriteFile(data, noise(280<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Fails(t, 7, []string{"sick"}, "storage", "set", "sick", "size=256MiB")
	if total() != 512<<20 {
		t.Errorf("after a shrinking that failed the pool has %d bytes", total())
	}
	r.Fails(t, 2, []string{"size"}, "storage", "set", "sick", "size=lots")
	r.Fails(t, 2, []string{"source"}, "storage", "set", "sick", "source=/elsewhere")
	r.Fails(t, 6, []string{"default"}, "storage", "set", "default", "size=1GiB")
	r.Must(t, "storage", "set", "default", "description=the first")
	if got := r.Must(t, "storage", "get", "default", "description"); got != "the first\n" {
		t.Errorf("description of the default pool %q", got)
	}
}

// TestHungMachine stops a QEMU by a signal.
func TestHungMachine(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	r.Must(t, "launch", app, "well", "--wait", "ready")
	r.Must(t, "launch", app, "vm", "--vm", "-c", "limits.memory=256MiB")
	pid := r.List(t)["vm"].State.PID
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	instancetest.Await(t, "a reason on the line of the machine", func() bool {
		return strings.Contains(unharmed(t, r)["vm"].Reason, fmt.Sprint("kill -CONT ", pid))
	})
	if took := time.Since(began); took > 4*quick {
		t.Errorf("it took %s until list said why", took)
	}
	if out := r.Must(t, "list", "-f", "csv", "-c", "ns"); !bytes.Contains([]byte(out), []byte("well,RUNNING")) {
		t.Errorf("list: %s", out)
	}
	r.Must(t, "delete", "-f", "--now", "vm")
}
