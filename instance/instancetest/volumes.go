package instancetest

import (
	"cmp"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance"
)

// VolumeTable is what custom volumes do in both forms. The instance app runs in
// it, with the volume data at /srv/data.
var VolumeTable = []Row{
	{"it is there, and a restart keeps it", func(t *testing.T, b *bench) {
		b.Must(t, "storage", "volume", "create", b.pool(), "data")
		b.Must(t, "storage", "volume", "attach", b.pool(), "data", "app", "/srv/data")
		b.Must(t, "restart", "-f", "app")
		b.ready(t, "app")
		b.write(t, "app", "/srv/data/state", "one")
		b.Must(t, "restart", "-f", "app")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/state", "one")
		b.Must(t, "storage", "volume", "create", b.pool(), "other")
		b.Fails(t, 4, []string{"data", "app"}, "storage", "volume", "delete", b.pool(), "data")
		b.Must(t, "storage", "volume", "delete", b.pool(), "other")
	}},
	{"owners are those that the instance sees", func(t *testing.T, b *bench) {
		b.Must(t, "exec", "app", "--", "/bin/probe", "chown", "/srv/data/state", "1234", "2345")
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "owner", "/srv/data/state"); got != "1234:2345\n" {
			t.Errorf("the owner is %q in the instance", got)
		}
		if b.Pool == "" {
			b.ownerOnDisk(t, "data", 1234)
		}
		b.Must(t, "exec", "app", "--user", "app", "--", "/bin/probe", "write", "/srv/data/state", "one")
		if res := b.Run(t, "exec", "app", "--user", "app", "--", "/bin/probe", "write", "/srv/data/no", "x"); res.Code == 0 {
			t.Error("a user wrote into root's directory")
		}
	}},
	{"a snapshot has the volume, and brings it back if asked to", func(t *testing.T, b *bench) {
		b.write(t, "app", "/data/own", "one")
		b.Must(t, "snapshot", "create", "app", "both")
		b.write(t, "app", "/srv/data/state", "two")
		b.write(t, "app", "/data/own", "two")
		b.Must(t, "snapshot", "restore", "app", "both")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/state", "two")
		b.reads(t, "app", "/data/own", "one")
		b.Must(t, "snapshot", "restore", "app", "both", "--volumes")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/state", "one")
		b.Must(t, "undo", "app")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/state", "two")
		b.Must(t, "snapshot", "rename", "app", "both", "it")
		if got := b.with(t, "data"); !slices.Contains(got, "app/it") {
			t.Errorf("the volume's snapshots are of %q, want app/it among them", got)
		}
		b.Must(t, "snapshot", "delete", "app", "it")
		b.Must(t, "undo", "--forget", "app")
		if got := b.with(t, "data"); len(got) != 0 {
			t.Errorf("after all was deleted the volume has snapshots of %q", got)
		}
	}},
	{"a snapshot of the volume alone, while running", func(t *testing.T, b *bench) {
		b.write(t, "app", "/srv/data/state", "kept")
		b.Must(t, "storage", "volume", "snapshot", "create", b.pool(), "data", "s")
		b.write(t, "app", "/srv/data/state", "later")
		b.Fails(t, 4, []string{"data", "app"}, "storage", "volume", "snapshot", "restore", b.pool(), "data", "s")
		b.Must(t, "storage", "volume", "copy", b.pool()+"/data/s", b.pool()+"/copied")
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "snapshot", "restore", b.pool(), "data", "s")
		for _, what := range []string{`restore to "s"`, `undo of the restore to "s"`} {
			if res := b.Run(t, "undo", b.pool()+"/data"); res.Code != 0 || !strings.Contains(res.Stderr, what) {
				t.Errorf("undo of the volume = %+v, want it to undo the %s", res, what)
			}
		}
		b.Must(t, "storage", "volume", "attach", b.pool(), "copied", "app", "copied", "/srv/with space")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", "/srv/data/state", "kept")
		b.reads(t, "app", "/srv/with space/state", "kept")
		b.Must(t, "storage", "volume", "snapshot", "delete", b.pool(), "data", "s")
	}},
	{"only reading and a directory of the host and memory", func(t *testing.T, b *bench) {
		host := t.TempDir()
		if err := os.WriteFile(filepath.Join(host, "file"), []byte("host"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(filepath.Join(host, "file"), 1234, 2345); err != nil {
			t.Fatal(err)
		}
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "config", "device", "add", "app", "memory", "disk", "source=tmpfs:", "path=/srv/memory", "size=1MiB")
		b.Must(t, "config", "device", "add", "app", "host", "disk", "source="+host, "path=/srv/host", "shift=true")
		b.Must(t, "config", "device", "remove", "app", "data", "copied")
		b.Must(t, "config", "device", "add", "app", "data", "disk", "pool="+b.pool(), "source=data", "path=/srv/data", "readonly=true")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", "/srv/data/state", "kept")
		b.write(t, "app", "/srv/memory/new", "text")
		b.reads(t, "app", "/srv/memory/new", "text")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "zeros", "/srv/memory/zeros", "1048576"); res.Code == 0 {
			t.Error("1 MiB of memory holds more than that")
		}
		b.reads(t, "app", "/srv/host/file", "host")
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "owner", "/srv/host/file"); got != "1234:2345\n" {
			t.Errorf("the owner of a file of the host is %q in the instance", got)
		}
		b.write(t, "app", "/srv/host/made", "inside")
		if text, err := os.ReadFile(filepath.Join(host, "made")); err != nil || string(text) != "inside" {
			t.Errorf("what was written to a directory of the host is %q there, %v", text, err)
		}
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "write", "/srv/data/state", "x"); res.Code == 0 {
			t.Error("a volume that is read only was written to")
		}
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "writable", "/srv/data"); res.Code == 0 {
			b.Run(t, "exec", "app", "--", "/bin/probe", "write", "/srv/data/state", "x")
			b.reads(t, "app", "/srv/data/state", "kept")
		}
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "config", "device", "remove", "app", "data", "host", "memory")
	}},
	{"a link in the image leads nowhere out", func(t *testing.T, b *bench) {
		outside := t.TempDir()
		b.Must(t, "start", "app", "--wait", "ready")
		b.Must(t, "exec", "app", "--", "/bin/probe", "mkdir", outside)
		b.Must(t, "exec", "app", "--", "/bin/probe", "link", outside, "/data/link")
		b.Must(t, "exec", "app", "--", "/bin/probe", "link", "../../../../../../.."+outside, "/data/up")
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "attach", b.pool(), "data", "app", "/data/link/a")
		b.Must(t, "storage", "volume", "attach", b.pool(), "copied", "app", "/data/up/b")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", outside+"/a/state", "kept")
		b.reads(t, "app", outside+"/b/state", "kept")
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Errorf("the host's directory holds %v, %v", left, err)
		}
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "detach", b.pool(), "data", "app")
		b.Must(t, "storage", "volume", "detach", b.pool(), "copied", "app")
		b.Must(t, "storage", "volume", "delete", b.pool(), "data", "copied")
		b.Must(t, "start", "app", "--wait", "ready")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "read", "/srv/data/state"); res.Code == 0 {
			t.Error("a volume that was detached is still there")
		}
	}},
}

// Volumes runs the table over one form.
func Volumes(t *testing.T, r *Rig, form instance.Type) {
	images, err := os.MkdirTemp("", "brig-images-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(images) })
	b := &bench{Rig: r, form: form, images: images}
	if form == instance.VirtualMachine {
		r.Kernels(t)
	}
	b.app = WriteImage(t, filepath.Join(images, "app"), "1", ImageConfig{Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}}, ProbeFiles(t, r.Bin))
	b.launch(t, "app", "--wait", "ready")
	for _, row := range VolumeTable {
		if !t.Run(row.Name, func(t *testing.T) { row.Test(t, b) }) {
			t.Fatal("what follows builds on that")
		}
	}
}

func (b *bench) write(t testing.TB, name, file, text string) {
	t.Helper()
	b.Must(t, "exec", name, "--", "/bin/probe", "write", file, text)
}

func (b *bench) reads(t testing.TB, name, file, want string) {
	t.Helper()
	if got := b.Must(t, "exec", name, "--", "/bin/probe", "read", file); got != want {
		t.Errorf("%s of %s holds %q, want %q", file, name, got, want)
	}
}

// ownerOnDisk checks whose the file state of a volume is in a pool of the overlay
// driver.
func (b *bench) ownerOnDisk(t testing.TB, volume string, want uint32) {
	t.Helper()
	var record struct{ Active string }
	pool := filepath.Join(b.Dir, "state/pools/default")
	data, err := os.ReadFile(filepath.Join(pool, "custom", volume, "volume.json"))
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(pool, "layers", record.Active, "rootfs/state"))
	if err != nil || owner(st) != want {
		t.Errorf("the owner on disk is %d, %v, want %d", owner(st), err, want)
	}
}

// pool is where the instances and volumes are.
func (b *bench) pool() string { return cmp.Or(b.Pool, "default") }

// with names what the snapshots of a volume were taken with.
func (b *bench) with(t testing.TB, volume string) []string {
	t.Helper()
	var list []struct {
		TakenWith string `json:"taken_with"`
	}
	decode(t, b.Must(t, "storage", "volume", "snapshot", "list", b.pool(), volume, "-f", "json"), &list)
	var names []string
	for _, s := range list {
		names = append(names, s.TakenWith)
	}
	return names
}
