package instancetest

import (
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
		b.Must(t, "storage", "volume", "create", "default", "data")
		b.Must(t, "storage", "volume", "attach", "default", "data", "app", "/srv/data")
		b.Must(t, "restart", "-f", "app")
		b.ready(t, "app")
		b.write(t, "app", "/srv/data/state", "one")
		b.Must(t, "restart", "-f", "app")
		b.ready(t, "app")
		b.reads(t, "app", "/srv/data/state", "one")
		b.Must(t, "storage", "volume", "create", "default", "other")
		b.Fails(t, 4, []string{"data", "app"}, "storage", "volume", "delete", "default", "data")
		b.Must(t, "storage", "volume", "delete", "default", "other")
	}},
	{"owners are those that the instance sees", func(t *testing.T, b *bench) {
		b.Must(t, "exec", "app", "--", "/bin/probe", "chown", "/srv/data/state", "1234", "2345")
		if got := b.Must(t, "exec", "app", "--", "/bin/probe", "owner", "/srv/data/state"); got != "1234:2345\n" {
			t.Errorf("the owner is %q in the instance", got)
		}
		st, err := os.Stat(filepath.Join(b.volumeDir(t, "data"), "state"))
		if err != nil || owner(st) != 1234 {
			t.Errorf("the owner on disk is %d, %v, want 1234", owner(st), err)
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
		b.Must(t, "storage", "volume", "snapshot", "create", "default", "data", "s")
		b.write(t, "app", "/srv/data/state", "later")
		b.Fails(t, 4, []string{"data", "app"}, "storage", "volume", "snapshot", "restore", "default", "data", "s")
		b.Must(t, "storage", "volume", "copy", "default/data/s", "default/copied")
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "snapshot", "restore", "default", "data", "s")
		b.Must(t, "storage", "volume", "attach", "default", "copied", "app", "copied", "/srv/with space")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", "/srv/data/state", "kept")
		b.reads(t, "app", "/srv/with space/state", "kept")
		b.Must(t, "storage", "volume", "snapshot", "delete", "default", "data", "s")
	}},
	{"only reading", func(t *testing.T, b *bench) {
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "config", "device", "remove", "app", "data", "copied")
		b.Must(t, "config", "device", "add", "app", "data", "disk", "pool=default", "source=data", "path=/srv/data", "readonly=true")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", "/srv/data/state", "kept")
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "write", "/srv/data/state", "x"); res.Code == 0 {
			t.Error("a volume that is read only was written to")
		}
		if res := b.Run(t, "exec", "app", "--", "/bin/probe", "writable", "/srv/data"); res.Code == 0 {
			b.Run(t, "exec", "app", "--", "/bin/probe", "write", "/srv/data/state", "x")
			b.reads(t, "app", "/srv/data/state", "kept")
		}
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "config", "device", "remove", "app", "data")
	}},
	{"a link in the image leads nowhere out", func(t *testing.T, b *bench) {
		outside := t.TempDir()
		b.Must(t, "start", "app", "--wait", "ready")
		b.Must(t, "exec", "app", "--", "/bin/probe", "mkdir", outside)
		b.Must(t, "exec", "app", "--", "/bin/probe", "link", outside, "/data/link")
		b.Must(t, "exec", "app", "--", "/bin/probe", "link", "../../../../../../.."+outside, "/data/up")
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "attach", "default", "data", "app", "/data/link/a")
		b.Must(t, "storage", "volume", "attach", "default", "copied", "app", "/data/up/b")
		b.Must(t, "start", "app", "--wait", "ready")
		b.reads(t, "app", outside+"/a/state", "kept")
		b.reads(t, "app", outside+"/b/state", "kept")
		if left, err := os.ReadDir(outside); err != nil || len(left) != 0 {
			t.Errorf("the host's directory holds %v, %v", left, err)
		}
		b.Must(t, "stop", "-f", "app")
		b.Must(t, "storage", "volume", "detach", "default", "data", "app")
		b.Must(t, "storage", "volume", "detach", "default", "copied", "app")
		b.Must(t, "storage", "volume", "delete", "default", "data", "copied")
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

// volumeDir is where a pool of the overlay driver has a volume's files.
func (b *bench) volumeDir(t testing.TB, name string) string {
	t.Helper()
	var record struct{ Active string }
	data, err := os.ReadFile(filepath.Join(b.Dir, "state/pools/default/custom", name, "volume.json"))
	if err == nil {
		err = json.Unmarshal(data, &record)
	}
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(b.Dir, "state/pools/default/layers", record.Active, "rootfs")
}

// with names what the snapshots of a volume were taken with.
func (b *bench) with(t testing.TB, volume string) []string {
	t.Helper()
	var list []struct {
		TakenWith string `json:"taken_with"`
	}
	decode(t, b.Must(t, "storage", "volume", "snapshot", "list", "default", volume, "-f", "json"), &list)
	var names []string
	for _, s := range list {
		if !strings.HasPrefix(s.TakenWith, "app/brig-undo-") {
			names = append(names, s.TakenWith)
		}
	}
	return names
}
