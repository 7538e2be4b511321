package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/instancetest"
)

// spaceLine is a line of df.
type spaceLine struct {
	Name      string `json:"name"`
	Pool      string `json:"pool"`
	Snapshots int    `json:"snapshots"`
	Used      int64  `json:"used"`
	Shared    int64  `json:"shared"`
	Exclusive int64  `json:"exclusive"`
	Total     int64  `json:"total"`
	Free      int64  `json:"free"`
	Reason    string `json:"reason"`
}

// space gives the lines of df by instance and by pool.
func space(t *testing.T, r *instancetest.Rig) (instances, pools map[string]spaceLine) {
	t.Helper()
	var df struct{ Instances, Pools []spaceLine }
	if err := json.Unmarshal([]byte(r.Must(t, "df", "-f", "json")), &df); err != nil {
		t.Fatal(err)
	}
	byName := func(list []spaceLine) map[string]spaceLine {
		m := map[string]spaceLine{}
		for _, l := range list {
			m[l.Name] = l
		}
		return m
	}
	return byName(df.Instances), byName(df.Pools)
}

// btrfsRig is a rig with a pool on btrfs that its table uses, and that is gone
// when the test ends.
func btrfsRig(t *testing.T) *instancetest.Rig {
	t.Helper()
	r := instancetest.New(t, bin)
	r.Must(t, "storage", "create", "fast", "btrfs", "--size", "1GiB")
	t.Cleanup(func() {
		r.Empty(t)
		r.Must(t, "storage", "delete", "fast")
	})
	r.Pool = "fast"
	return r
}

// TestParityOnBtrfs runs the tables where the root of a container is a subvolume
// and not an overlay.
func TestParityOnBtrfs(t *testing.T) {
	t.Run("parity", func(t *testing.T) { instancetest.Parity(t, btrfsRig(t), instance.Container) })
	t.Run("snapshots", func(t *testing.T) { instancetest.Snapshots(t, btrfsRig(t), instance.Container) })
	t.Run("volumes", func(t *testing.T) { instancetest.Volumes(t, btrfsRig(t), instance.Container) })
}

// TestMachinesOnBtrfs looks into snapshots of a machine whose disk is a plain file in
// a subvolume.
func TestMachinesOnBtrfs(t *testing.T) {
	instancetest.Snapshots(t, btrfsRig(t), instance.VirtualMachine)
}

func TestCopyAndMoveBetweenPools(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	r.Must(t, "storage", "create", "far", "overlay", "source="+t.TempDir())
	t.Cleanup(func() { r.Must(t, "storage", "delete", "far") })
	t.Cleanup(func() { r.Empty(t) })
	put := func(text string) {
		t.Helper()
		r.Must(t, "start", "web", "--wait", "ready")
		r.Must(t, "exec", "web", "--", "/bin/probe", "write", "/data/new", text)
		r.Must(t, "stop", "-f", "web")
	}
	said := func(name string) string {
		t.Helper()
		r.Must(t, "start", name, "--wait", "ready")
		text := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/data/new")
		r.Must(t, "stop", "-f", name)
		return text
	}
	r.Must(t, "create", app, "web")
	for _, text := range []string{"one", "two", "three"} {
		put(text)
		if text != "three" {
			r.Must(t, "snapshot", "create", "web", text, "--description", "it says "+text)
		}
	}
	snapshots := r.Must(t, "snapshot", "list", "web", "-f", "csv")

	r.Must(t, "start", "web", "--wait", "ready")
	address := r.Must(t, "list", "web", "-f", "csv", "-c", "4")
	r.Fails(t, 4, []string{"web", "running", "far", "brig stop web"}, "move", "web", "-s", "far")
	r.Must(t, "copy", "web", "live", "-s", "far")
	if got := said("live"); got != "three" {
		t.Errorf("a copy of the running web says %q, want three", got)
	}
	r.Must(t, "delete", "--now", "live")
	r.Must(t, "copy", "web/one", "old", "-s", "far")
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "copy", "web", "db", "-s", "far")
	r.Must(t, "copy", "web", "alone", "-s", "far", "--instance-only")
	for name, want := range map[string]string{"old": "one", "db": "three", "alone": "three"} {
		if got := said(name); got != want {
			t.Errorf("%s says %q, want %q", name, got, want)
		}
	}
	if got := r.Must(t, "snapshot", "list", "db", "-f", "csv"); got != snapshots {
		t.Errorf("snapshots of the copy:\n%swant:\n%s", got, snapshots)
	}
	if got := r.Must(t, "snapshot", "list", "alone", "-f", "csv"); got != "" {
		t.Errorf("snapshots of a copy without: %s", got)
	}

	r.Must(t, "move", "web", "-s", "far")
	if got := r.Must(t, "snapshot", "list", "web", "-f", "csv"); got != snapshots {
		t.Errorf("snapshots after the move:\n%swant:\n%s", got, snapshots)
	}
	r.Must(t, "start", "web", "--wait", "ready")
	if got := r.Must(t, "list", "web", "-f", "csv", "-c", "4"); got != address || address == "" {
		t.Errorf("address after the move: %q, want %q", got, address)
	}
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "snapshot", "restore", "web", "one")
	if got := said("web"); got != "one" {
		t.Errorf("web says %q after the move and restore, want one", got)
	}
	r.Must(t, "snapshot", "restore", "web", "two")
	r.Must(t, "move", "web", "moved", "--storage", "default", "--instance-only")
	r.Must(t, "move", "moved", "again")
	if got := said("again"); got != "two" {
		t.Errorf("again says %q, want two", got)
	}
	r.Fails(t, 2, []string{"default", "again"}, "move", "again", "-s", "default")
	r.Fails(t, 4, []string{"db"}, "move", "again", "db", "-s", "far")
	r.Fails(t, 3, []string{"nowhere"}, "move", "again", "-s", "nowhere")
	r.Fails(t, 3, []string{"nobody"}, "df", "nobody")

	instances, pools := space(t, r)
	for name, pool := range map[string]string{"again": "default", "db": "far", "alone": "far", "old": "far"} {
		if i := instances[name]; i.Pool != pool || i.Used <= 0 || i.Exclusive <= 0 || i.Used != i.Shared+i.Exclusive || i.Reason != "" {
			t.Errorf("df of %s: %+v, want it in %s", name, i, pool)
		}
	}
	if db := instances["db"]; db.Snapshots != 2 {
		t.Errorf("df of db: %+v, want 2 snapshots", db)
	}
	for _, name := range []string{"default", "far"} {
		if p := pools[name]; p.Total <= 0 || p.Free <= 0 || p.Free > p.Total {
			t.Errorf("df of pool %s: %+v", name, p)
		}
	}
}

// smallDisk mounts a small ext4 that only the calling test and what it starts can
// see, on a thread that goes with the test.
func smallDisk(t *testing.T, megabytes int64) string {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, place := filepath.Join(dir, "fs"), filepath.Join(dir, "place")
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, megabytes<<20), os.Mkdir(place, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.ext4", "-q", "-m", "0", "-F", file}, {"mount", "-o", "loop", file, place}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%q: %v %s", cmd, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return place
}

func TestFullSecondPool(t *testing.T) {
	place := smallDisk(t, 64)
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	large := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/probe"}},
		append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "large", Data: noise(70 << 20), Mode: 0o644}))
	r.Must(t, "storage", "create", "small", "overlay", "source="+filepath.Join(place, "pool"))
	t.Cleanup(func() { r.Must(t, "storage", "delete", "small") })
	t.Cleanup(func() { r.Empty(t) })
	r.Must(t, "launch", app, "web", "-s", "small", "--wait", "ready")
	r.Must(t, "create", app, "off", "-s", "small")
	r.Must(t, "snapshot", "create", "off", "s1")
	r.Must(t, "create", large, "big")

	// What cannot fit is refused before anything is written.
	_, pools := space(t, r)
	free := pools["small"].Free
	r.Fails(t, 7, []string{"needs", "small", "free"}, "create", large, "other", "-s", "small")
	r.Fails(t, 7, []string{"needs", "small", "free"}, "copy", "big", "other", "-s", "small")
	r.Fails(t, 7, []string{"needs", "small", "free"}, "move", "big", "-s", "small")
	if _, pools = space(t, r); pools["small"].Free != free {
		t.Errorf("pool small has %d bytes free after refused commands, had %d", pools["small"].Free, free)
	}

	filler := filepath.Join(place, "filler")
	fill(t, place)
	r.Fails(t, 7, []string{"small"}, "copy", "big", "other", "-s", "small")
	if got := r.Must(t, "list", "-f", "csv", "-c", "n"); got != "big\noff\nweb\n" {
		t.Errorf("list on a full pool: %q", got)
	}
	if _, pools = space(t, r); pools["small"].Reason != "" || pools["small"].Free > 1<<20 {
		t.Errorf("df of a full pool: %+v", pools["small"])
	}
	r.Must(t, "stop", "-f", "web")
	r.Must(t, "snapshot", "delete", "off", "s1")
	r.Must(t, "move", "off", "-s", "default")
	r.Must(t, "delete", "--now", "web")
	r.Must(t, "image", "delete", app)
	r.Must(t, "sweep")
	if _, pools = space(t, r); pools["small"].Free < 1<<20 {
		t.Errorf("pool small has %d bytes free after all was deleted", pools["small"].Free)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(r.Must(t, "list", "off", "-f", "csv", "-c", "s")); got != "STOPPED" {
		t.Errorf("off is %q after it was moved off the full pool", got)
	}
}

// noise is data that cannot be compressed.
func noise(n int) []byte {
	b := make([]byte, n)
	state := uint64(1)
	for i := range b {
		state = state*6364136223846793005 + 1442695040888963407
		b[i] = byte(state >> 56)
	}
	return b
}

// TestRefresh keeps copies up to date in pools of every kind.
func TestRefresh(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	t.Cleanup(func() {
		r.Must(t, "storage", "delete", "far")
		r.Must(t, "storage", "delete", "fast")
		r.Must(t, "storage", "delete", "faster")
	})
	t.Cleanup(func() { r.Empty(t) })
	r.Must(t, "storage", "create", "far", "overlay", "source="+t.TempDir())
	r.Must(t, "storage", "create", "fast", "btrfs", "size=512MiB")
	r.Must(t, "storage", "create", "faster", "btrfs", "size=512MiB")
	for _, pools := range [][2]string{{"default", "default"}, {"default", "far"}, {"default", "fast"}, {"fast", "fast"}, {"fast", "faster"}, {"faster", "far"}} {
		t.Run(pools[0]+" "+pools[1], func(t *testing.T) { keepUpToDate(t, r, app, pools[0], pools[1]) })
	}
}

// TestRefreshOfAMachine is TestRefresh for disks, which the two drivers keep in
// different formats.
func TestRefreshOfAMachine(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	app := probeImage(t, r)
	t.Cleanup(func() { r.Must(t, "storage", "delete", "fast") })
	t.Cleanup(func() { r.Empty(t) })
	r.Must(t, "storage", "create", "fast", "btrfs", "size=1GiB")
	for _, pools := range [][2]string{{"default", "fast"}, {"fast", "default"}} {
		t.Run(pools[0]+" "+pools[1], func(t *testing.T) {
			keepUpToDate(t, r, app, pools[0], pools[1], "--vm", "-c", "limits.memory=256MiB")
		})
	}
}

// filesOf is a hash of all files in a snapshot of an instance, their owners, modes and
// times included.
func filesOf(t *testing.T, r *instancetest.Rig, name, snapshot string) string {
	t.Helper()
	dir := t.TempDir()
	r.Must(t, "snapshot", "mount", name+"/"+snapshot, dir)
	defer r.Must(t, "snapshot", "unmount", dir)
	out, err := exec.Command("sh", "-c", `tar -C "$0" --sort=name --numeric-owner --xattrs --format=posix --pax-option=exthdr.name=%d/%f,delete=atime,delete=ctime -c . | sha256sum`, dir).Output()
	if err != nil {
		t.Fatalf("reading %s/%s: %v", name, snapshot, err)
	}
	return string(out)
}

// keepUpToDate makes a copy of an instance in another pool and keeps it up to date,
// with the instance running and stopped.
func keepUpToDate(t *testing.T, r *instancetest.Rig, app, from, to string, more ...string) {
	put := func(name, text string) {
		t.Helper()
		r.Must(t, "exec", name, "--", "/bin/probe", "write", "/data/new", text)
	}
	says := func(name, want string) {
		t.Helper()
		r.Must(t, "start", name, "--wait", "ready")
		if got := r.Must(t, "exec", name, "--", "/bin/probe", "read", "/data/new"); got != want {
			t.Errorf("%s says %q, want %q", name, got, want)
		}
	}
	alike := func() {
		t.Helper()
		want, got := r.Must(t, "snapshot", "list", "web", "-f", "csv"), r.Must(t, "snapshot", "list", "db", "-f", "csv")
		if got != want {
			t.Errorf("snapshots of the copy:\n%swant:\n%s", got, want)
		}
	}
	t.Cleanup(func() { r.Empty(t) })
	r.Must(t, append([]string{"launch", app, "web", "-s", from, "--wait", "ready"}, more...)...)
	put("web", "one")
	r.Must(t, "snapshot", "create", "web", "one", "--description", "the first")
	r.Must(t, "copy", "web", "db", "-s", to, "--refresh")
	alike()
	says("db", "one")
	put("db", "spoilt")
	address := r.Must(t, "list", "db", "-f", "csv", "-c", "4")
	r.Fails(t, 4, []string{"db", "running", "brig stop db"}, "copy", "web", "db", "--refresh")
	r.Must(t, "stop", "-f", "db")

	put("web", "two")
	r.Must(t, "config", "set", "web", "snapshots.schedule=@daily")
	r.Must(t, "snapshot", "create", "web", "two")
	put("web", "three")
	r.Must(t, "snapshot", "delete", "web", "one")
	// The source runs.
	r.Must(t, "copy", "web", "db", "--refresh", "--verify")
	alike()
	says("db", "three")
	if got := r.Must(t, "list", "db", "-f", "csv", "-c", "4"); got != address {
		t.Errorf("address after the refresh: %q, want %q", got, address)
	}
	if got := r.Must(t, "config", "get", "db", "snapshots.schedule"); strings.TrimSpace(got) != "@daily" {
		t.Errorf("snapshots.schedule of the copy is %q", got)
	}
	r.Must(t, "snapshot", "restore", "db", "two")
	if got := r.Must(t, "exec", "db", "--", "/bin/probe", "read", "/data/new"); got != "two" {
		t.Errorf("db says %q after going back, want two", got)
	}
	r.Must(t, "stop", "-f", "db")
	r.Must(t, "copy", "web", "db", "--refresh")
	alike()
	says("db", "three")
	r.Must(t, "stop", "-f", "db")

	// The source is stopped, and in the end both are the same.
	put("web", "four")
	r.Must(t, "stop", "web")
	r.Must(t, "snapshot", "create", "web", "end")
	r.Must(t, "copy", "web", "db", "--refresh", "--verify")
	alike()
	for _, snapshot := range []string{"two", "end"} {
		if want, got := filesOf(t, r, "web", snapshot), filesOf(t, r, "db", snapshot); got != want {
			t.Errorf("the files of %s in the copy are %s, want %s", snapshot, got, want)
		}
	}
	says("db", "four")
	r.Must(t, "stop", "-f", "db")

	r.Fails(t, 2, []string{"db", to}, "copy", "web", "db", "--refresh", "-s", "nowhere")
	r.Fails(t, 4, []string{"web"}, "copy", "web", "web", "--refresh")
	r.Fails(t, 2, []string{"two"}, "copy", "web/two", "db", "--refresh")
	r.Must(t, "delete", "-f", "--now", "web", "db")
}
