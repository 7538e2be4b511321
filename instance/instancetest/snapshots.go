package instancetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"brig/instance"
)

// SnapshotTable is what snapshots do beyond being taken and restored, for both
// forms. The instance app runs in it.
var SnapshotTable = []Row{
	{"diff of snapshots and of now, while running", func(t *testing.T, b *bench) {
		write := func(name, text string) { b.Must(t, "exec", "app", "--", "/bin/probe", "write", name, text) }
		write("/data/kept", "1")
		write("/data/changed", "1")
		b.Must(t, "snapshot", "create", "app", "first")
		write("/data/changed", "2")
		write("/data/new", "2")
		b.Must(t, "snapshot", "create", "app", "second")
		write("/data/later", "3")
		if got, want := b.diff(t, "app/first", "second"), []string{"changed /data/changed", "added /data/new"}; !slices.Equal(got, want) {
			t.Errorf("diff first second = %q, want %q", got, want)
		}
		if got, want := b.diff(t, "app/second", "first"), []string{"changed /data/changed", "removed /data/new"}; !slices.Equal(got, want) {
			t.Errorf("diff second first = %q, want %q", got, want)
		}
		if got, want := b.diff(t, "app/second"), []string{"added /data/later"}; !slices.Equal(got, want) {
			t.Errorf("diff of the second and now = %q, want %q", got, want)
		}
		if got := b.snapshots(t, "app"); !slices.Equal(got, []string{"first", "second"}) {
			t.Errorf("snapshots after looking = %q", got)
		}
	}},
	{"file pull", func(t *testing.T, b *bench) {
		dir := t.TempDir()
		b.Must(t, "file", "pull", "app/first/data/changed", dir)
		b.Must(t, "file", "pull", "app/second/data/changed", filepath.Join(dir, "second"))
		for name, want := range map[string]string{"changed": "1", "second": "2"} {
			if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
				t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
			}
		}
		if got := b.Must(t, "file", "pull", "app/first/data/changed", "-"); got != "1" {
			t.Errorf("printed %q, want 1", got)
		}
		b.Must(t, "file", "pull", "-r", "app/second/data", dir)
		if got, err := os.ReadFile(filepath.Join(dir, "data", "new")); err != nil || string(got) != "2" {
			t.Errorf("the directory's file holds %q, %v, want 2", got, err)
		}
		for path, code := range map[string]int{"app/first/data/none": 3, "app/none/data": 3, "nobody/first/data": 3, "app/first/data": 2} {
			if res := b.Run(t, "file", "pull", path, dir); res.Code != code {
				t.Errorf("file pull %s = %d: %s, want %d", path, res.Code, res.Stderr, code)
			}
		}
	}},
	{"mount", func(t *testing.T, b *bench) {
		dir := t.TempDir()
		b.Must(t, "snapshot", "mount", "app/first", dir)
		if got, err := os.ReadFile(filepath.Join(dir, "data/changed")); err != nil || string(got) != "1" {
			t.Errorf("the mounted file holds %q, %v, want 1", got, err)
		}
		st, err := os.Stat(filepath.Join(dir, "home/app"))
		if err != nil || owner(st) != 1234 {
			t.Errorf("its owner is %d, %v, want 1234", owner(st), err)
		}
		if err := os.WriteFile(filepath.Join(dir, "data/x"), nil, 0o644); err == nil {
			t.Error("a mounted snapshot can be written to")
		}
		if res := b.Run(t, "snapshot", "delete", "app", "first"); res.Code != 4 || !strings.Contains(res.Stderr, dir) {
			t.Errorf("delete of a mounted snapshot = %d: %s", res.Code, res.Stderr)
		}
		b.Must(t, "snapshot", "unmount", dir)
		if res := b.Run(t, "snapshot", "unmount", dir); res.Code != 3 {
			t.Errorf("second unmount = %d: %s", res.Code, res.Stderr)
		}
	}},
	{"schedule, keep and expiry, while running", func(t *testing.T, b *bench) {
		b.Must(t, "config", "set", "app", "snapshots.schedule=0 0 1 1 *", "snapshots.pattern=auto%d", "snapshots.keep=yearly=1")
		b.Must(t, "snapshot", "create", "app", "brief", "--expiry", "90s")
		b.Must(t, "tick")
		if got := b.snapshots(t, "app"); !slices.Equal(got, []string{"first", "second", "brief"}) {
			t.Errorf("snapshots after the first tick = %q", got)
		}
		for range 2 {
			b.settle(t, time.Now().AddDate(-3, 0, 0))
			b.Must(t, "tick") // three years are one snapshot, which tells when it was
		}
		if got := b.snapshots(t, "app"); !slices.Equal(got, []string{"first", "second", "brief", "auto0"}) {
			t.Errorf("snapshots after years = %q", got)
		}
		if got := b.Must(t, "config", "get", "app", "snapshots.keep"); got != "yearly=1\n" {
			t.Errorf("config get = %q", got)
		}
		b.Must(t, "config", "unset", "app", "snapshots.schedule")
		b.settle(t, time.Now().AddDate(-3, 0, 0))
		b.Must(t, "tick")
		if got := b.snapshots(t, "app"); !slices.Equal(got, []string{"first", "second", "brief", "auto0"}) {
			t.Errorf("snapshots without a schedule = %q", got)
		}
	}},
	{"at startup, and looking at what is stopped", func(t *testing.T, b *bench) {
		b.Must(t, "config", "set", "app", "snapshots.schedule=@startup")
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "snapshot", "delete", "app", "brief", "auto0")
		if got := b.diff(t, "app/second"); !slices.Contains(got, "added /data/later") {
			t.Errorf("diff of a stopped instance = %q, want /data/later in it", got)
		}
		if got, want := b.diff(t, "app/first", "second"), []string{"changed /data/changed", "added /data/new"}; !slices.Equal(got, want) {
			t.Errorf("diff of snapshots of a stopped instance = %q, want %q", got, want)
		}
		if got := b.Must(t, "file", "pull", "app/first/data/changed", "-"); got != "1" {
			t.Errorf("printed %q, want 1", got)
		}
		dir := t.TempDir()
		b.Must(t, "snapshot", "mount", "app/second", dir)
		if got, err := os.ReadFile(filepath.Join(dir, "data/changed")); err != nil || string(got) != "2" {
			t.Errorf("the mounted file of a stopped instance holds %q, %v, want 2", got, err)
		}
		b.Must(t, "snapshot", "unmount", dir)
		b.Must(t, "start", "app", "--wait", "ready")
		if got := b.snapshots(t, "app"); len(got) != 3 {
			t.Errorf("snapshots after a start = %q, want one more", got)
		}
		if res := b.Run(t, "config", "set", "app", "environment.X=1"); res.Code != 0 || !strings.Contains(res.Stderr, "environment.X after its next start") {
			t.Errorf("config set = %+v, want it to tell what comes later", res)
		}
	}},
}

// Snapshots runs the table over one form.
func Snapshots(t *testing.T, r *Rig, form instance.Type) {
	images, err := os.MkdirTemp("", "brig-images-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(images) })
	if form == instance.VirtualMachine {
		r.Kernels(t)
	}
	b := &bench{Rig: r, form: form, images: images}
	b.app = WriteImage(t, filepath.Join(images, "app"), "1", ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}}, ProbeFiles(t, r.Bin))
	b.launch(t, "app", "--wait", "ready")
	for _, row := range SnapshotTable {
		t.Run(row.Name, func(t *testing.T) { row.Test(t, b) })
	}
}

// diff gives the lines of a diff, without what comes and goes by itself.
func (b *bench) diff(t testing.TB, args ...string) []string {
	t.Helper()
	var changes []struct{ Path, Change string }
	decode(t, b.Must(t, append([]string{"snapshot", "diff", "-f", "json"}, args...)...), &changes)
	var lines []string
	for _, c := range changes {
		if strings.HasPrefix(c.Path, "/data/") && c.Path != "/data/boots" {
			lines = append(lines, c.Change+" "+c.Path)
		}
	}
	return lines
}

// snapshots names the snapshots of an instance, oldest first.
func (b *bench) snapshots(t testing.TB, name string) []string {
	t.Helper()
	var list []struct{ Name string }
	decode(t, b.Must(t, "snapshot", "list", name, "-f", "json"), &list)
	var names []string
	for _, s := range list {
		names = append(names, s.Name)
	}
	return names
}

// settle makes all that was due until then count as done.
func (b *bench) settle(t testing.TB, until time.Time) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(b.Dir, "state/schedules/*.json"))
	// What is noted of expiries lies beside it.
	files = slices.DeleteFunc(files, func(f string) bool { return strings.HasSuffix(f, ".expiry.json") })
	if err != nil || len(files) != 1 {
		t.Fatalf("memory of schedules: %q, %v, want one", files, err)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	var memory map[string]any
	decode(t, string(data), &memory)
	memory["settled"] = until
	if data, err = json.Marshal(memory); err == nil {
		err = os.WriteFile(files[0], data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func owner(st os.FileInfo) uint32 {
	if st == nil {
		return 0
	}
	return st.Sys().(*syscall.Stat_t).Uid
}
