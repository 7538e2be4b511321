package manager

import (
	"context"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// restorable makes an instance with the snapshots one and two, that says three.
func restorable(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.create("web", "one")
	for _, next := range []string{"two", "three"} {
		inst, err := w.open(t.Context(), "web")
		w.must(err)
		w.must(second(w.CreateSnapshot(t.Context(), "web", map[string]string{"two": "one", "three": "two"}[next], SnapshotRequest{})))
		inst.spec.Description = next
		w.must(saveSpec(inst.volume, inst.spec))
		w.write("web", next)
	}
	return w
}

func (w *world) snapshotsAre(want ...string) {
	w.t.Helper()
	list, err := w.Snapshots(w.t.Context(), "web")
	w.must(err)
	var got []string
	for _, s := range list {
		got = append(got, s.Name)
	}
	w.is("snapshots", got, want)
}

// undoes gives the names of the snapshots that are kept for undo.
func (w *world) undoes() []string {
	w.t.Helper()
	inst, err := w.open(w.t.Context(), "web")
	w.must(err)
	kept, err := undoable(w.t.Context(), inst.volume)
	w.must(err)
	var names []string
	for _, s := range kept {
		names = append(names, s.Name)
	}
	return names
}

func (w *world) described(want string) {
	w.t.Helper()
	inst, err := w.open(w.t.Context(), "web")
	w.must(err)
	if inst.spec.Description != want {
		w.t.Errorf("its description is %q, want %q", inst.spec.Description, want)
	}
}

func TestARestoreCanBeUndone(t *testing.T) {
	w := restorable(t)
	ctx := t.Context()
	_, err := w.Undo(ctx, "web")
	wants(t, "Undo of nothing", err, fault.WrongState)
	_, err = w.Undo(ctx, "nobody")
	wants(t, "Undo on nobody", err, fault.NotFound)
	w.must(w.RestoreSnapshot(ctx, "web", "one", RestoreOptions{}))
	w.holds("web", "one")
	w.described("")
	undo := func(what, data, description string) {
		t.Helper()
		got, err := w.Undo(ctx, "web")
		if err != nil || got != what {
			t.Errorf("Undo = %q, %v, want %q", got, err, what)
		}
		w.holds("web", data)
		w.described(description)
		w.snapshotsAre("one", "two")
		if kept := w.undoes(); len(kept) != 1 {
			t.Errorf("kept for undo: %q, want one", kept)
		}
	}
	undo(`restore to "one"`, "three", "three")
	undo(`undo of the restore to "one"`, "one", "")
	undo(`restore to "one"`, "three", "three")
	w.write("web", "four")
	w.must(w.RestoreSnapshot(ctx, "web", "two", RestoreOptions{}))
	w.holds("web", "two")
	undo(`restore to "two"`, "four", "three")

	views, err := w.List(ctx)
	w.must(err)
	if views[0].SnapshotCount != 2 {
		t.Errorf("list counts %d snapshots, want 2", views[0].SnapshotCount)
	}
	view, err := w.Get(ctx, "web", GetOptions{})
	w.must(err)
	if view.SnapshotCount != 2 || len(view.Snapshots) != 2 {
		t.Errorf("info shows %+v", view.Snapshots)
	}
	w.must(w.ForgetUndo(ctx, "web"))
	_, err = w.Undo(ctx, "web")
	wants(t, "Undo after it was forgotten", err, fault.WrongState)
	w.must(w.Sweep(ctx))
	w.holds("web", "four")
}

func TestADeleteCanBeUndone(t *testing.T) {
	w := restorable(t)
	ctx := t.Context()
	w.must(w.Delete(ctx, "web", DeleteOptions{}))
	if what, err := w.Undo(ctx, "web"); what != "delete" || err != nil {
		t.Errorf("Undo of a delete = %q, %v", what, err)
	}
	w.holds("web", "three")
	w.snapshotsAre("one", "two")
}

func TestSnapshotsForUndoAreOutOfReach(t *testing.T) {
	w := restorable(t)
	ctx := t.Context()
	w.must(w.RestoreSnapshot(ctx, "web", "one", RestoreOptions{}))
	kept := w.undoes()[0]
	if !strings.HasPrefix(kept, store.UndoPrefix) {
		t.Fatalf("kept for undo: %q", kept)
	}
	_, err := w.CreateSnapshot(ctx, "web", store.UndoPrefix+"x", SnapshotRequest{})
	wants(t, "CreateSnapshot", err, fault.Invalid)
	wants(t, "DeleteSnapshot", w.DeleteSnapshot(ctx, "web", kept), fault.Invalid)
	wants(t, "RestoreSnapshot", w.RestoreSnapshot(ctx, "web", kept, RestoreOptions{}), fault.Invalid)
	wants(t, "RenameSnapshot", w.RenameSnapshot(ctx, "web", "one", kept), fault.Invalid)
	_, err = w.Copy(ctx, CopyRequest{Source: "web", Snapshot: kept, Name: "copy"})
	wants(t, "Copy", err, fault.Invalid)
}

func TestSnapshotsForUndoExpire(t *testing.T) {
	w := restorable(t)
	ctx := t.Context()
	w.create("gone", "x")
	w.must(w.Delete(ctx, "gone", DeleteOptions{}))
	w.must(w.RestoreSnapshot(ctx, "web", "one", RestoreOptions{}))
	fresh := w.undoes()
	for what, expire := range map[string]func(context.Context) error{"sweep": w.Sweep, "tick": w.Tick} {
		inst, err := w.open(ctx, "web")
		w.must(err)
		w.must(inst.volume.Snapshot(ctx, store.UndoPrefix+"old", storage.SnapshotOptions{
			Description: `{"before":"restore","deleted_at":"2020-01-01T00:00:00Z","passed":-999999999999999}`,
		}))
		w.must(expire(ctx))
		if got := w.undoes(); !slices.Equal(got, fresh) {
			t.Errorf("kept for undo after a %s: %q, want %q", what, got, fresh)
		}
		w.snapshotsAre("one", "two")
	}
	w.is("the trash", w.inTheTrash(), []string{"gone"})
}

// TestInterruptedRestoreIsRecovered lets each step of a restore, and of its
// undoing, fail, before and after it was done, and lets processes die there.
func TestInterruptedRestoreIsRecovered(t *testing.T) {
	steps := []string{"keep", "volume", "configuration", "forget"}
	for _, kind := range []string{"restore", "undo"} {
		for i, step := range steps {
			for _, when := range []string{"before", "after"} {
				point := kind + "." + step + "." + when
				t.Run(point, func(t *testing.T) {
					w := restorable(t)
					began := begun(w, kind)
					keptBefore := w.undoes()
					w.cfg.Failpoints = Failpoints{point: "error"}
					var err error
					if kind == "undo" {
						_, err = w.Undo(t.Context(), "web")
					} else {
						err = w.RestoreSnapshot(t.Context(), "web", "one", RestoreOptions{})
					}
					if err == nil || !strings.Contains(err.Error(), point) {
						t.Fatalf("%s = %v, want the failpoint's error", kind, err)
					}
					w.cfg.Failpoints = nil
					// Up to the step that brings the data back, it has not happened.
					if i == 0 || i == 1 && when == "before" {
						w.recovered()
						w.holds("web", began)
						// What undo goes back to is what it was before.
						if kept := w.undoes(); !slices.Equal(kept, keptBefore) {
							t.Errorf("kept for undo: %q, want %q", kept, keptBefore)
						}
						return
					}
					w.cameTo(kind)
				})
			}
		}
		for done := range len(steps) + 1 {
			t.Run(kind+" dies after "+string(rune('0'+done)), func(t *testing.T) {
				w := restorable(t)
				begun(w, kind)
				inst, err := w.open(t.Context(), "web")
				w.must(err)
				args := restoreArgs{"web", inst.spec.ID, "one", store.UndoPrefix + newID(), `{"before":"test"}`, nil}
				if kind == "undo" {
					args.Snapshot = w.undoes()[0]
				}
				w.die(t.Context(), kind, []string{"web"}, args, done)
				w.cameTo(kind)
			})
		}
	}
}

// begun brings the instance to where an operation begins and gives its data.
func begun(w *world, kind string) string {
	w.t.Helper()
	if kind == "restore" {
		return "three"
	}
	w.must(w.RestoreSnapshot(w.t.Context(), "web", "one", RestoreOptions{}))
	w.write("web", "four")
	return "four"
}

func (w *world) recovered() {
	w.t.Helper()
	held, err := w.lock(w.t.Context(), "look at", "web")
	w.must(err)
	held.Release()
	if left, err := w.intents.List(); err != nil || len(left) != 0 {
		w.t.Errorf("intents left: %+v, %v", left, err)
	}
	w.snapshotsAre("one", "two")
}

// cameTo checks that an operation was carried on to its end and can be undone.
func (w *world) cameTo(kind string) {
	w.t.Helper()
	w.recovered()
	after, before, description := "one", "three", ""
	if kind == "undo" {
		after, before, description = "three", "four", "three"
	}
	w.holds("web", after)
	w.described(description)
	if kept := w.undoes(); len(kept) != 1 {
		w.t.Errorf("kept for undo: %q, want one", kept)
	}
	w.must(second(w.Undo(w.t.Context(), "web")))
	w.holds("web", before)
}
