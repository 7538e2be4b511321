package main

import (
	"strings"
	"testing"

	"brig/instance/instancetest"
)

// TestRebuildOfAMachine makes a virtual machine new from another image, and undoes it.
func TestRebuildOfAMachine(t *testing.T) {
	r := instancetest.New(t, bin)
	app := probeImage(t, r)
	other := instancetest.WriteImage(t, t.TempDir(), "1", instancetest.ImageConfig{Entrypoint: []string{"/bin/probe"}},
		append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "other", Data: []byte("other"), Mode: 0o644}))
	r.Must(t, "create", app, "v1", "--vm", "-c", "environment.MINE=kept")
	r.Must(t, "snapshot", "create", "v1", "s1")
	holdsOther := func() bool {
		t.Helper()
		r.Must(t, "snapshot", "create", "v1", "look")
		res := r.Run(t, "file", "pull", "v1/look/other", "-")
		r.Must(t, "snapshot", "delete", "v1", "look")
		return res.Code == 0 && res.Stdout == "other"
	}
	if holdsOther() {
		t.Fatal("it holds what the other image does")
	}
	r.Must(t, "rebuild", "v1", other)
	if !holdsOther() {
		t.Error("a rebuilt machine does not hold what its image does")
	}
	if got := r.Must(t, "config", "get", "v1", "environment.MINE"); got != "kept\n" {
		t.Errorf("environment.MINE is %q, want kept", got)
	}
	if got := r.Must(t, "snapshot", "list", "v1", "-f", "csv"); !strings.HasPrefix(got, "s1,") || strings.Count(got, "\n") != 1 {
		t.Errorf("it has the snapshots %q", got)
	}
	r.Must(t, "undo", "v1")
	if holdsOther() {
		t.Error("an undone rebuild is there still")
	}
	r.Fails(t, 3, []string{"nosuch"}, "rebuild", "nosuch")
}
