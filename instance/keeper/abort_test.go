package keeper

import (
	"os"
	"os/exec"
	"testing"

	"brig/instance"
)

// TestAbortEndsForksToo has a shell stand for a keeper: what it forks is ended
// with it, and what belongs to another machine is not.
func TestAbortEndsForksToo(t *testing.T) {
	start := func(runDir string) *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", "while :; do sleep 60 & wait; done & sleep 60; wait")
		cmd.Env = append(os.Environ(), runDirVariable+"="+runDir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	mine, other := &instance.Machine{Name: "web", RunDir: t.TempDir()}, &instance.Machine{Name: "db", RunDir: t.TempDir()}
	a, b := start(mine.RunDir), start(other.RunDir)
	ended := make(chan error, 1)
	go func() { ended <- a.Wait() }()
	if err := Abort(t.Context(), mine); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err == nil {
		t.Error("the keeper was not ended")
	}
	for _, c := range []struct {
		m    *instance.Machine
		want bool
	}{{mine, false}, {other, true}} {
		if found, err := killMarked(t.Context(), []byte(runDirVariable+"="+c.m.RunDir)); err != nil || found != c.want {
			t.Errorf("after Abort of %q, processes of %q: %v, %v, want %v", mine.Name, c.m.Name, found, err, c.want)
		}
	}
	if err := Abort(t.Context(), other); err != nil {
		t.Fatal(err)
	}
	b.Wait()
}
