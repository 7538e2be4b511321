package main

import (
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// transcript runs brig commands as somebody at a terminal would, and logs them with
// what they print.
type transcript struct {
	*instancetest.Rig
	t *testing.T
}

// brig runs a command that has to succeed and gives what it printed.
func (s transcript) brig(args ...string) string {
	s.t.Helper()
	res := s.Run(s.t, args...)
	s.t.Logf("# brig %s\n%s%s", strings.Join(args, " "), res.Stdout, res.Stderr)
	if res.Code != 0 {
		s.t.Fatalf("brig %s = %d", strings.Join(args, " "), res.Code)
	}
	return res.Stdout
}

func (s transcript) tell(text string) {
	s.t.Helper()
	s.brig("exec", "web", "--", "/bin/probe", "write", "/data/state", text)
}

func (s transcript) says(want string) {
	s.t.Helper()
	if got := s.brig("exec", "web", "--", "/bin/probe", "read", "/data/state"); got != want {
		s.t.Errorf("web says %q, want %q", got, want)
	}
}

// has checks that the snapshots are there, oldest first.
func (s transcript) has(want ...string) {
	s.t.Helper()
	at := 0
	list := s.brig("snapshot", "list", "web")
	for _, name := range want {
		i := strings.Index(list[at:], name)
		if i < 0 {
			s.t.Errorf("snapshot list shows\n%swant %q in this order", list, want)
			return
		}
		at += i
	}
}

// TestShowOnBtrfs is what is promised of snapshots, as a transcript (go test -v):
// the oldest of three comes back and the newer ones stay and come back too, what is
// deleted comes back, and what a restore has overwritten does.
func TestShowOnBtrfs(t *testing.T) {
	s := transcript{btrfsRig(t), t}
	s.brig("storage", "info", "fast")
	s.brig("launch", probeImage(t, s.Rig), "web", "-s", "fast", "--wait", "ready")
	states := []string{"first", "second", "third"}
	for _, state := range states {
		s.tell(state)
		s.brig("snapshot", "create", "web", state)
	}
	s.tell("today")
	s.brig("snapshot", "restore", "web", "first")
	s.says("first")
	s.has(states...)
	s.brig("undo", "web")
	s.says("today")
	for _, state := range []string{"third", "second", "first", "third"} {
		s.brig("snapshot", "restore", "web", state)
		s.says(state)
		s.has(states...)
	}
	s.brig("copy", "web/second", "old")
	s.brig("delete", "-f", "web")
	if list := s.brig("list"); strings.Contains(list, "web") {
		t.Error("list shows web, which is deleted")
	}
	if list := s.brig("trash", "list"); !strings.Contains(list, "web") {
		t.Error("trash list does not show web")
	}
	s.brig("trash", "restore", "web")
	s.brig("start", "web", "--wait", "ready")
	s.says("third")
	s.has(states...)
	s.brig("snapshot", "restore", "web", "first")
	s.says("first")
	if df := s.brig("df"); !strings.Contains(df, "web") || !strings.Contains(df, "old") {
		t.Error("df does not show the instances")
	}
}
