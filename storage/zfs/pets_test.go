package zfs_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// pets is a brig with a pool on ZFS, and what is shown of its use.
type pets struct {
	*instancetest.Rig
	t *testing.T
}

// show runs a brig command that has to succeed and shows it with what it prints.
func (p pets) show(args ...string) string {
	p.t.Helper()
	res := p.Run(p.t, args...)
	p.t.Logf("# brig %s\n%s%s", strings.Join(args, " "), res.Stdout, res.Stderr)
	if res.Code != 0 {
		p.t.Fatalf("brig %s = %d", strings.Join(args, " "), res.Code)
	}
	return res.Stdout
}

// tell puts a text into a file of a running instance.
func (p pets) tell(name, text string) {
	p.t.Helper()
	p.show("exec", name, "--", "/bin/probe", "write", "/data/state", text)
}

// says checks that text.
func (p pets) says(name, want string) {
	p.t.Helper()
	if got := p.show("exec", name, "--", "/bin/probe", "read", "/data/state"); got != want {
		p.t.Errorf("%s says %q, want %q", name, got, want)
	}
}

// TestPets keeps a container on ZFS with the built programs: any snapshot comes
// back while newer ones stay, what is deleted comes back, and one whose dataset was
// destroyed harms no other. With -test.v it is a transcript.
func TestPets(t *testing.T) {
	inside(t)
	bin := os.Getenv("BRIG_TEST_BIN")
	if bin == "" {
		t.Skip("BRIG_TEST_BIN names no folder with the programs")
	}
	p := pets{instancetest.New(t, bin), t}
	app := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{
		Entrypoint: []string{"/bin/probe"}, Cmd: []string{"boots"}, StopSignal: "SIGTERM",
	}, instancetest.ProbeFiles(t, bin))
	p.show("storage", "create", "pets", "zfs", "--size", "1GiB")
	t.Cleanup(func() { p.show("storage", "delete", "pets") })
	t.Cleanup(func() { p.Empty(t) })
	p.show("launch", app, "web", "-s", "pets", "--wait", "ready")
	for _, text := range []string{"one", "two", "three"} {
		p.tell("web", text)
		p.show("snapshot", "create", "web", text)
	}
	p.tell("web", "now")
	for _, name := range []string{"one", "three", "two", "one"} {
		p.show("snapshot", "restore", "web", name)
		p.says("web", name)
		list := p.show("snapshot", "list", "web")
		for _, want := range []string{"one", "two", "three"} {
			if !strings.Contains(list, want) {
				t.Errorf("after going back to %s, snapshot %s is gone", name, want)
			}
		}
	}
	p.tell("web", "after")
	p.show("snapshot", "restore", "web", "three")
	p.show("undo", "web")
	p.says("web", "after")

	p.show("copy", "web/two", "old")
	p.show("start", "old", "--wait", "ready")
	p.says("old", "two")
	p.show("delete", "-f", "web")
	p.show("trash", "list")
	p.says("old", "two")
	p.show("undo", "web")
	p.show("start", "web", "--wait", "ready")
	p.says("web", "after")
	p.show("snapshot", "restore", "web", "one")
	p.says("web", "one")
	p.space()
	p.destroyed(app)
	p.show("storage", "info", "pets")
}

// space looks at what df tells.
func (p pets) space() {
	p.t.Helper()
	p.show("df")
	var df struct {
		Instances []struct {
			Name, Pool, Reason      string
			Snapshots               int
			Used, Shared, Exclusive int64
		}
	}
	if err := json.Unmarshal([]byte(p.Must(p.t, "df", "-f", "json")), &df); err != nil {
		p.t.Fatal(err)
	}
	for _, i := range df.Instances {
		if i.Pool != "pets" || i.Reason != "" || i.Exclusive <= 0 || i.Shared <= 0 || i.Used != i.Shared+i.Exclusive {
			p.t.Errorf("df tells %+v", i)
		}
	}
	if len(df.Instances) != 2 {
		p.t.Errorf("df tells of %d instances, want 2", len(df.Instances))
	}
	out, err := exec.Command("zfs", "list", "-r", "-t", "filesystem,snapshot", "-o", "name,used,refer,origin,brig:volume,brig:snapshot", "pets").CombinedOutput()
	if err != nil {
		p.t.Errorf("zfs list = %v", err)
	}
	p.t.Logf("# zfs list -r -t filesystem,snapshot -o name,used,refer,origin,brig:volume,brig:snapshot pets\n%s", out)
}

// destroyed has an instance whose dataset somebody destroyed.
func (p pets) destroyed(app string) {
	p.t.Helper()
	p.show("create", app, "gone", "-s", "pets")
	found := ""
	for line := range strings.Lines(tool(p.t, "zfs", "list", "-H", "-r", "-o", "name,brig:volume", "-s", "creation", "pets/brig/instances")) {
		found, _, _ = strings.Cut(line, "\t") // the newest is the last
	}
	tool(p.t, "zfs", "destroy", "-r", found)
	res := p.Run(p.t, "start", "gone")
	p.t.Logf("# zfs destroy -r %s\n# brig start gone\n%s", found, res.Stderr)
	instancetest.CheckFailure(p.t, res, 8, []string{"gone", "destroyed"}, "start", "gone")
	p.show("list")
	p.says("old", "two")
	p.show("delete", "--now", "gone")
	p.show("sweep")
}
