package manager

import (
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

// cutShort leaves what a command leaves that was killed when it had noted that web is
// to run again, and had stopped it if it got that far.
func (k *ticking) cutShort(t *testing.T, stop bool) *instance.Machine {
	t.Helper()
	inst, err := k.open(t.Context(), "web")
	if err == nil {
		_, err = k.noteRestart(inst.spec, StopOptions{Force: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	machine, _, err := k.live(inst, "stop")
	if err == nil && stop {
		err = k.stop(t.Context(), inst, machine, StopOptions{Force: true})
	}
	if err != nil {
		t.Fatal(err)
	}
	return machine
}

// passBy has a command take locks, and checks how web is then and how often it was
// started.
func (k *ticking) passBy(t *testing.T, h *host, what, name string, status instance.Status, starts int) {
	t.Helper()
	held, err := k.lock(t.Context(), "look at", name)
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
	held.Release()
	k.isUp(t, h, what, status, starts)
}

func (k *ticking) isUp(t *testing.T, h *host, what string, status instance.Status, starts int) {
	t.Helper()
	inst, err := k.open(t.Context(), "web")
	if err != nil {
		t.Fatal(err)
	}
	count := len(slices.DeleteFunc(slices.Clone(h.log), func(name string) bool { return name != "web" }))
	if got := k.state(inst.spec).Status; got != status || count != starts {
		t.Errorf("%s: web is %s after %d starts, want %s after %d", what, got, count, status, starts)
	}
	if left, err := k.intents.List(); err != nil || len(left) > 0 {
		t.Errorf("%s: the intents %v, %v are left", what, left, err)
	}
}

func TestWhatWasStoppedToBeStartedAgainIsStarted(t *testing.T) {
	k, h := booting(t, map[string]string{"web": "", "other": ""})
	ctx := t.Context()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var notices []string
	k.cfg.Notice = func(text string) { notices = append(notices, text) }
	must(k.Start(ctx, "web", StartOptions{}))
	must(k.Restart(ctx, "web", StopOptions{Force: true}))
	k.isUp(t, h, "a restart", instance.Running, 2)

	k.cutShort(t, true)
	k.passBy(t, h, "who wants it", "web", instance.Running, 3)
	k.cutShort(t, true)
	k.passBy(t, h, "who wants another", "other", instance.Running, 4)
	// It had not been stopped, or the guest had only been asked to.
	k.cutShort(t, false)
	k.passBy(t, h, "one that was not stopped", "web", instance.Running, 4)
	asked(k.cutShort(t, false))
	k.passBy(t, h, "one that was asked to stop", "web", instance.Running, 5)
	// A stop comes after the start.
	k.cutShort(t, true)
	must(k.Stop(ctx, "web", StopOptions{Force: true}))
	k.isUp(t, h, "a stop", instance.Stopped, 6)
	k.passBy(t, h, "after the stop", "other", instance.Stopped, 6)

	// What cannot start is tried once.
	must(k.Start(ctx, "web", StartOptions{}))
	k.cutShort(t, true)
	h.broken["web"] = true
	k.passBy(t, h, "one that is broken", "web", instance.Stopped, 8)
	if len(notices) == 0 || !strings.Contains(strings.Join(notices, "\n"), "it is broken") {
		t.Errorf("notices %q, want why it did not start", notices)
	}
	h.broken["web"] = false
	k.passBy(t, h, "after the failure", "web", instance.Stopped, 8)
	// One that is gone by now is not missed.
	must(k.Start(ctx, "web", StartOptions{}))
	must(k.Delete(ctx, "web", DeleteOptions{Force: true, Now: true}))
	if _, err := k.open(ctx, "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after delete --force: %v", err)
	}
}

func TestARestoreLeavesWhatRanRunning(t *testing.T) {
	k, h := booting(t, map[string]string{"web": ""})
	ctx := t.Context()
	if err := k.Start(ctx, "web", StartOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := k.CreateSnapshot(ctx, "web", "s1", SnapshotRequest{}); err != nil {
		t.Fatal(err)
	}
	for i, point := range []string{"", "restore.keep.before", "restore.volume.before", "restore.volume.after", "restore.forget.after"} {
		if point != "" {
			k.cfg.Failpoints = Failpoints{point: "error"}
		}
		err := k.RestoreSnapshot(ctx, "web", "s1", RestoreOptions{})
		if (err == nil) != (point == "") {
			t.Errorf("RestoreSnapshot with the failpoint %q = %v", point, err)
		}
		k.cfg.Failpoints = nil
		k.isUp(t, h, "a restore with the failpoint "+point, instance.Running, i+2)
	}
}
