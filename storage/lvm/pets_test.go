package lvm_test

import (
	"os"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// petsPool makes a rig with a pool on LVM called pets, which is in a file.
func petsPool(t *testing.T) *instancetest.Rig {
	t.Helper()
	inside(t)
	bin := os.Getenv("BRIG_TEST_BIN")
	if bin == "" {
		t.Skip("BRIG_TEST_BIN names no folder with the programs")
	}
	r := instancetest.New(t, bin)
	r.Pool = "pets"
	r.Must(t, "storage", "create", "pets", "lvm", "--size", "3GiB")
	t.Cleanup(func() { r.Must(t, "storage", "delete", "pets") })
	t.Cleanup(func() { r.Empty(t) })
	return r
}

func probeImage(t *testing.T, r *instancetest.Rig) string {
	return instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{
		Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}, StopSignal: "SIGTERM",
	}, instancetest.ProbeFiles(t, r.Bin))
}

// TestPets keeps a container on LVM with the built programs: the transcript of what is
// promised of snapshots, what LVM then has, copies to another driver's pool and back
// that are brought up to date, volumes whose sizes change, and an instance whose
// logical volume was removed, which harms no other.
func TestPets(t *testing.T) {
	r := petsPool(t)
	app := probeImage(t, r)
	p := pets{instancetest.Show(t, r, app)}
	t.Logf("# lvs\n%s", tool(t, "lvs", "-o", "lv_name,lv_size,data_percent,pool_lv,origin,lv_tags"))
	p.Brig("stop", "web")
	p.thereAndBack("web")
	p.sizes()
	p.Brig("start", "old", "--wait", "ready")
	p.Says("old", "second")
	p.removed(app)
	p.Brig("storage", "info", "pets")
}

// pets is a brig with a pool on LVM, and what is shown of its use.
type pets struct{ instancetest.Transcript }

// holds checks the text in an instance that does not run.
func (p pets) holds(name, want string) {
	p.T.Helper()
	p.Brig("snapshot", "create", name, "look")
	if got := p.Must(p.T, "file", "pull", name+"/look/data/state", "-"); got != want {
		p.T.Errorf("%s holds %q, want %q", name, got, want)
	}
	p.Must(p.T, "snapshot", "delete", name, "look")
}

// thereAndBack copies an instance that does not run to a pool of another driver, and
// that copy to one on LVM, and brings both up to date. Its snapshots are first, second
// and third.
func (p pets) thereAndBack(name string) {
	p.T.Helper()
	p.Brig("snapshot", "restore", name, "first")
	p.Brig("copy", name, "there", "-s", "default")
	p.Brig("copy", "there", "back", "-s", p.Pool)
	p.holds("back", "first")
	p.Brig("snapshot", "restore", name, "third")
	p.Brig("snapshot", "delete", name, "second")
	p.Brig("copy", "--refresh", name, "there")
	p.Brig("copy", "--refresh", "--verify", "there", "back")
	for _, copied := range []string{"there", "back"} {
		p.holds(copied, "third")
		p.Has(copied, "first", "third")
		if list := p.Brig("snapshot", "list", copied); strings.Contains(list, "second") {
			p.T.Errorf("%s has a snapshot that its source has not:\n%s", copied, list)
		}
	}
	p.Brig("snapshot", "restore", "back", "first")
	p.holds("back", "first")
	// In one pool, a copy shares what it is brought.
	p.Brig("copy", name, "beside")
	p.Brig("snapshot", "restore", name, "first")
	p.Brig("copy", "--refresh", name, "beside")
	p.holds("beside", "first")
	p.Brig("delete", "--now", "there", "back", "beside")
}

// sizes changes what volumes may hold.
func (p pets) sizes() {
	p.T.Helper()
	p.Brig("storage", "volume", "create", "pets", "files", "size=32MiB")
	p.Brig("storage", "volume", "set", "pets", "files", "size=96MiB")
	p.Brig("storage", "volume", "set", "pets", "files", "size=64MiB")
	p.Brig("storage", "volume", "create", "pets", "blocks", "--type", "block", "size=32MiB")
	p.Brig("storage", "volume", "snapshot", "create", "pets", "blocks", "small")
	p.Brig("storage", "volume", "set", "pets", "blocks", "size=48MiB")
	p.Fails(p.T, 2, []string{"blocks", "48MiB", "only grow"}, "storage", "volume", "set", "pets", "blocks", "size=16MiB")
	p.Brig("storage", "volume", "snapshot", "restore", "pets", "blocks", "small")
	if got := p.Brig("storage", "volume", "get", "pets", "blocks", "size"); got != "32MiB\n" {
		p.T.Errorf("the volume has %s after it went back, want 32MiB", got)
	}
	p.Brig("storage", "volume", "delete", "pets", "files", "blocks")
}

// removed has an instance whose logical volume somebody removed.
func (p pets) removed(app string) {
	p.T.Helper()
	p.Brig("create", app, "gone", "-s", "pets")
	found := tool(p.T, "lvs", "--noheadings", "-o", "vg_name,lv_name", "--separator", "/", "@brig.volume=instances/gone")
	tool(p.T, "lvremove", "-y", found)
	res := p.Run(p.T, "start", "gone")
	p.T.Logf("# lvremove %s\n# brig start gone\n%s", found, res.Stderr)
	instancetest.CheckFailure(p.T, res, 8, []string{"gone", "removed"}, "start", "gone")
	p.Brig("list")
	p.Says("old", "second")
	p.Brig("delete", "--now", "gone")
	p.Brig("sweep")
}

// TestPetsVM keeps a virtual machine on LVM. It runs once, and what becomes of its
// disk is looked at from outside: starting machines in a machine takes long. Copies to
// other pools are made by the tests of storage/transfer.
func TestPetsVM(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a machine in an emulated one")
	}
	r := petsPool(t)
	tool(t, "modprobe", "kvm_amd")
	r.Kernels(t)
	p := pets{instancetest.Transcript{Rig: r, T: t}}
	p.Brig("launch", probeImage(t, r), "web", "--vm", "-s", "pets", "-c", "limits.memory=256MiB", "--wait", "ready")
	for _, state := range []string{"first", "second", "third"} {
		p.Tell("web", state)
		p.Brig("snapshot", "create", "web", state)
	}
	p.Tell("web", "today")
	p.Brig("stop", "web")
	p.holds("web", "today")
	for _, state := range []string{"first", "third", "second", "first"} {
		p.Brig("snapshot", "restore", "web", state)
		p.holds("web", state)
		p.Has("web", "first", "second", "third")
	}
	p.Brig("undo", "web")
	p.holds("web", "second")
	p.Looks("web", "/data/state", instancetest.State{Snapshot: "first", Text: "first"}, instancetest.State{Snapshot: "third", Text: "third"})
	p.Brig("copy", "web/second", "old")
	p.Brig("delete", "web")
	p.holds("old", "second")
	p.Brig("undo", "web")
	p.holds("web", "second")
	p.Has("web", "first", "second", "third")
	p.Brig("df")
}
