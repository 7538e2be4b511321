package instancetest

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Transcript runs brig commands as somebody at a terminal would, and logs them with
// what they print: with -test.v that is a transcript.
type Transcript struct {
	*Rig
	T testing.TB
}

// Brig runs a command that has to succeed and gives what it printed.
func (s Transcript) Brig(args ...string) string {
	s.T.Helper()
	return s.Ends(0, args...)
}

// Ends runs a command that has to end with this exit code and gives what it printed.
func (s Transcript) Ends(code int, args ...string) string {
	s.T.Helper()
	res := s.Run(s.T, args...)
	s.T.Logf("# brig %s\n%s%s", strings.Join(args, " "), res.Stdout, res.Stderr)
	if res.Code != code {
		s.T.Fatalf("brig %s = %d, want %d", strings.Join(args, " "), res.Code, code)
	}
	return res.Stdout
}

// Tell puts a text into a file of a running instance.
func (s Transcript) Tell(name, text string) {
	s.T.Helper()
	s.Brig("exec", name, "--", "/bin/probe", "write", "/data/state", text)
}

// Says checks that text.
func (s Transcript) Says(name, want string) {
	s.T.Helper()
	if got := s.Brig("exec", name, "--", "/bin/probe", "read", "/data/state"); got != want {
		s.T.Errorf("%s says %q, want %q", name, got, want)
	}
}

// Has checks that an instance has snapshots, oldest first.
func (s Transcript) Has(name string, want ...string) {
	s.T.Helper()
	at := 0
	list := s.Brig("snapshot", "list", name)
	for _, snapshot := range want {
		i := strings.Index(list[at:], snapshot)
		if i < 0 {
			s.T.Errorf("snapshot list %s shows\n%swant %q in this order", name, list, want)
			return
		}
		at += i
	}
}

// Show is what is promised of snapshots, as a transcript, in the pool of the rig:
// the oldest of three comes back and the newer ones stay and come back too, what a
// restore has overwritten does, and what is deleted does. App is an image of the
// probe. It leaves the running instance web, which says first, and the stopped old,
// which will say second; nothing else is in the pool's df.
func Show(t testing.TB, r *Rig, app string) Transcript {
	t.Helper()
	s := Transcript{r, t}
	s.Brig("storage", "info", r.Pool)
	s.Brig("launch", app, "web", "-s", r.Pool, "--wait", "ready")
	states := []string{"first", "second", "third"}
	for _, state := range states {
		s.Tell("web", state)
		s.Brig("snapshot", "create", "web", state)
	}
	s.Tell("web", "today")
	s.Brig("snapshot", "restore", "web", "first")
	s.Says("web", "first")
	s.Has("web", states...)
	s.Brig("undo", "web")
	s.Says("web", "today")
	for _, state := range []string{"third", "second", "first", "third"} {
		s.Brig("snapshot", "restore", "web", state)
		s.Says("web", state)
		s.Has("web", states...)
	}
	s.Looks("web", "/data/state", State{"first", "first"}, State{"second", "second"}, State{"third", "third"})
	s.Brig("copy", "web/second", "old")
	s.Brig("delete", "-f", "web")
	if list := s.Brig("list"); strings.Contains(list, "web") {
		t.Error("list shows web, which is deleted")
	}
	if list := s.Brig("trash", "list"); !strings.Contains(list, "web") {
		t.Error("trash list does not show web")
	}
	s.Brig("undo", "web")
	s.Brig("start", "web", "--wait", "ready")
	s.Says("web", "third")
	s.Has("web", states...)
	s.Brig("snapshot", "restore", "web", "first")
	s.Says("web", "first")
	s.space("old", "web")
	return s
}

// State is a snapshot and what a file holds in it.
type State struct{ Snapshot, Text string }

// Looks looks into snapshots of an instance without going back to them: a file is
// pulled from each, and read where each is mounted; and the first is compared with the
// last.
func (s Transcript) Looks(name, file string, states ...State) {
	s.T.Helper()
	for _, state := range states {
		if got := s.Brig("file", "pull", name+"/"+state.Snapshot+file, "-"); got != state.Text {
			s.T.Errorf("%s of %s in snapshot %s holds %q, want %q", file, name, state.Snapshot, got, state.Text)
		}
		dir := s.T.TempDir()
		s.Brig("snapshot", "mount", name+"/"+state.Snapshot, dir)
		if got, err := os.ReadFile(filepath.Join(dir, file)); err != nil || string(got) != state.Text {
			s.T.Errorf("%s of %s in the mounted snapshot %s holds %q, %v, want %q", file, name, state.Snapshot, got, err, state.Text)
		}
		s.Brig("snapshot", "unmount", dir)
	}
	first, last := states[0], states[len(states)-1]
	if got := s.Brig("snapshot", "diff", name+"/"+first.Snapshot, last.Snapshot); strings.Contains(got, file) != (first.Text != last.Text) {
		s.T.Errorf("snapshot diff %s %s of %s says\n%s", first.Snapshot, last.Snapshot, name, got)
	}
}

// space checks that df tells of instances, and that what it tells adds up.
func (s Transcript) space(names ...string) {
	s.T.Helper()
	s.Brig("df")
	var df struct {
		Instances []struct {
			Name, Pool, Reason      string
			Used, Shared, Exclusive int64
		}
	}
	if err := json.Unmarshal([]byte(s.Must(s.T, "df", "-f", "json")), &df); err != nil {
		s.T.Fatal(err)
	}
	var told []string
	for _, i := range df.Instances {
		told = append(told, i.Name)
		if i.Pool != s.Pool || i.Reason != "" || i.Exclusive <= 0 || i.Shared <= 0 || i.Used != i.Shared+i.Exclusive {
			s.T.Errorf("df tells %+v", i)
		}
	}
	if got, want := strings.Join(told, " "), strings.Join(names, " "); got != want {
		s.T.Errorf("df tells of %s, want %s", got, want)
	}
}
