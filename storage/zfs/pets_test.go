package zfs_test

import (
	"os"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestPets keeps a container on ZFS with the built programs: the transcript of what
// is promised of snapshots, what ZFS then has, and an instance whose dataset was
// destroyed, which harms no other.
func TestPets(t *testing.T) {
	inside(t)
	bin := os.Getenv("BRIG_TEST_BIN")
	if bin == "" {
		t.Skip("BRIG_TEST_BIN names no folder with the programs")
	}
	r := instancetest.New(t, bin)
	r.Pool = "pets"
	app := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{
		Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}, StopSignal: "SIGTERM",
	}, instancetest.ProbeFiles(t, bin))
	r.Must(t, "storage", "create", "pets", "zfs", "--size", "1GiB")
	t.Cleanup(func() { r.Must(t, "storage", "delete", "pets") })
	t.Cleanup(func() { r.Empty(t) })
	p := pets{instancetest.Show(t, r, app)}
	fields := []string{"list", "-r", "-t", "filesystem,snapshot", "-o", "name,used,refer,origin,brig:volume,brig:snapshot", "pets"}
	t.Logf("# zfs %s\n%s", strings.Join(fields, " "), tool(t, "zfs", fields...))
	p.Brig("start", "old", "--wait", "ready")
	p.Says("old", "second")
	p.machine(app)
	p.destroyed(app)
	p.Brig("storage", "info", "pets")
}

// pets is a brig with a pool on ZFS, and what is shown of its use.
type pets struct{ instancetest.Transcript }

// machine looks into snapshots of a virtual machine, which is not started.
func (p pets) machine(app string) {
	p.T.Helper()
	const group = "root:x:0:\napp:x:2345:\nextra:x:3456:app\n" // of the probe's image
	p.Brig("create", app, "vm", "--vm", "-s", "pets")
	for _, name := range []string{"one", "two"} {
		p.Brig("snapshot", "create", "vm", name)
	}
	p.Looks("vm", "/etc/group", instancetest.State{Snapshot: "one", Text: group}, instancetest.State{Snapshot: "two", Text: group})
	p.Brig("delete", "--now", "vm")
}

// destroyed has an instance whose dataset somebody destroyed.
func (p pets) destroyed(app string) {
	p.T.Helper()
	p.Brig("create", app, "gone", "-s", "pets")
	found := ""
	for line := range strings.Lines(tool(p.T, "zfs", "list", "-H", "-r", "-o", "name,brig:volume", "-s", "creation", "pets/brig/instances")) {
		found, _, _ = strings.Cut(line, "\t") // the newest is the last
	}
	tool(p.T, "zfs", "destroy", "-r", found)
	res := p.Run(p.T, "start", "gone")
	p.T.Logf("# zfs destroy -r %s\n# brig start gone\n%s", found, res.Stderr)
	instancetest.CheckFailure(p.T, res, 8, []string{"gone", "destroyed"}, "start", "gone")
	p.Brig("list")
	p.Says("old", "second")
	p.Brig("delete", "--now", "gone")
	p.Brig("sweep")
}
