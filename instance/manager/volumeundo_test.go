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

// restorableVolume makes a volume with the snapshots one and two, that says three.
func restorableVolume(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.volume("data", "one")
	for i, next := range []string{"two", "three"} {
		w.must(second(w.CreateVolumeSnapshot(t.Context(), "", "data", []string{"one", "two"}[i], SnapshotRequest{})))
		w.writeVolume("data", next)
	}
	return w
}

// volumeUndoes gives the names of the snapshots that are kept for the undo of data.
func (w *world) volumeUndoes() []string {
	w.t.Helper()
	c, err := w.openVolume(w.t.Context(), volumeRef{DefaultPool, "data"})
	w.must(err)
	kept, err := volumeUndoable(w.t.Context(), c.volume)
	w.must(err)
	var names []string
	for _, s := range kept {
		names = append(names, s.Name)
	}
	return names
}

func (w *world) restoreVolumeTo(snapshot string) {
	w.t.Helper()
	w.must(w.RestoreVolumeSnapshot(w.t.Context(), "", "data", snapshot, VolumeRestoreOptions{}))
}

func TestARestoreOfAVolumeCanBeUndone(t *testing.T) {
	w := restorableVolume(t)
	ctx := t.Context()
	_, err := w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{})
	wants(t, "UndoVolume of nothing", err, fault.WrongState)
	_, err = w.UndoVolume(ctx, "", "none", VolumeRestoreOptions{})
	wants(t, "UndoVolume on none", err, fault.NotFound)
	_, err = w.UndoVolume(ctx, "", "a/b", VolumeRestoreOptions{})
	wants(t, "UndoVolume on a bad name", err, fault.Invalid)
	w.restoreVolumeTo("one")
	w.volumeHolds("data", "one")
	undo := func(what, data string) {
		t.Helper()
		got, err := w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{})
		if err != nil || got != what {
			t.Errorf("UndoVolume = %q, %v, want %q", got, err, what)
		}
		w.volumeHolds("data", data)
		w.is("snapshots", w.kept("data"), []string{"one", "two"})
		if kept := w.volumeUndoes(); len(kept) != 1 {
			t.Errorf("kept for undo: %q, want one", kept)
		}
	}
	undo(`restore to "one"`, "three")
	undo(`undo of the restore to "one"`, "one")
	undo(`restore to "one"`, "three")
	w.writeVolume("data", "four")
	w.restoreVolumeTo("two")
	w.volumeHolds("data", "two")
	undo(`restore to "two"`, "four")

	// It goes where the volume goes, but not with a copy.
	w.must(w.CreatePool(ctx, storage.Record{Name: "far", Driver: "overlay", Config: map[string]string{"source": t.TempDir()}}))
	w.must(w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far", To: "copied"}))
	_, err = w.UndoVolume(ctx, "far", "copied", VolumeRestoreOptions{})
	wants(t, "UndoVolume of a copy", err, fault.WrongState)
	w.must(w.MoveVolume(ctx, VolumeCopyRequest{Name: "data", ToPool: "far"}))
	w.must(second(w.UndoVolume(ctx, "far", "data", VolumeRestoreOptions{})))
	w.must(w.MoveVolume(ctx, VolumeCopyRequest{Pool: "far", Name: "data", ToPool: DefaultPool}))
	w.volumeHolds("data", "two")

	w.must(w.ForgetVolumeUndo(ctx, "", "data"))
	_, err = w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{})
	wants(t, "UndoVolume after it was forgotten", err, fault.WrongState)
	w.volumeHolds("data", "two")
}

func TestADeleteOfAVolumeCanBeUndone(t *testing.T) {
	w := restorableVolume(t)
	ctx := t.Context()
	w.restoreVolumeTo("one")
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}))
	for _, want := range []struct{ what, data string }{{"delete", "one"}, {`restore to "one"`, "three"}} {
		if what, err := w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{}); what != want.what || err != nil {
			t.Errorf("UndoVolume = %q, %v, want %q", what, err, want.what)
		}
		w.volumeHolds("data", want.data)
		w.is("snapshots", w.kept("data"), []string{"one", "two"})
	}
}

func TestABlockVolumeIsUndoneWithItsSize(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.must(w.CreateVolume(ctx, VolumeRequest{Name: "data", Content: storage.Disk, Config: map[string]string{"size": "10MiB"}}))
	w.must(second(w.CreateVolumeSnapshot(ctx, "", "data", "small", SnapshotRequest{})))
	w.must(w.ConfigureVolume(ctx, "", "data", ConfigChange{Set: map[string]string{"size": "20MiB"}}))
	w.restoreVolumeTo("small")
	for _, want := range []string{"20MiB", "10MiB"} {
		w.must(second(w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{})))
		v, err := w.Volume(ctx, "", "data", GetOptions{})
		w.must(err)
		if got := v.Info.Config["size"]; got != want || len(v.Snapshots) != 1 || v.SnapshotCount != 1 {
			t.Errorf("its size is %s, its snapshots %+v, want %s and one", got, v.Snapshots, want)
		}
	}
}

func TestVolumeSnapshotsForUndoAreOutOfReach(t *testing.T) {
	w := restorableVolume(t)
	ctx := t.Context()
	w.restoreVolumeTo("one")
	kept := w.volumeUndoes()[0]
	wants(t, "CreateVolumeSnapshot", second(w.CreateVolumeSnapshot(ctx, "", "data", store.UndoPrefix+"x", SnapshotRequest{})), fault.Invalid)
	wants(t, "DeleteVolumeSnapshot", w.DeleteVolumeSnapshot(ctx, "", "data", kept), fault.Invalid)
	wants(t, "RestoreVolumeSnapshot", w.RestoreVolumeSnapshot(ctx, "", "data", kept, VolumeRestoreOptions{}), fault.Invalid)
	wants(t, "RenameVolumeSnapshot", w.RenameVolumeSnapshot(ctx, "", "data", "one", kept), fault.Invalid)
	wants(t, "CopyVolume", w.CopyVolume(ctx, VolumeCopyRequest{Name: "data", Snapshot: kept, To: "copy"}), fault.Invalid)

	// What an instance's undo keeps of a volume is not the volume's own.
	w.must(w.ForgetVolumeUndo(ctx, "", "data"))
	w.create("web", "web")
	w.attach("web", "data", "/srv")
	w.must(second(w.CreateSnapshot(ctx, "web", "s", SnapshotRequest{})))
	w.must(w.RestoreSnapshot(ctx, "web", "s", RestoreOptions{Volumes: true}))
	wants(t, "UndoVolume", second(w.UndoVolume(ctx, "", "data", VolumeRestoreOptions{})), fault.WrongState)
	for _, s := range w.kept("data") {
		if strings.HasPrefix(s, store.UndoPrefix) {
			t.Errorf("the list shows %s, which is kept for undo", s)
		}
	}
	w.must(w.ForgetVolumeUndo(ctx, "", "data"))
	w.writeVolume("data", "later")
	w.must(second(w.Undo(ctx, "web")))
	w.volumeHolds("data", "one")
}

func TestVolumeSnapshotsForUndoExpire(t *testing.T) {
	w := restorableVolume(t)
	ctx := t.Context()
	w.restoreVolumeTo("one")
	fresh := w.volumeUndoes()
	for what, expire := range map[string]func(context.Context) error{"sweep": w.Sweep, "tick": w.Tick} {
		c, err := w.openVolume(ctx, volumeRef{DefaultPool, "data"})
		w.must(err)
		w.must(c.volume.Snapshot(ctx, store.UndoPrefix+"old", storage.SnapshotOptions{
			Description: `{"before":"restore","deleted_at":"2020-01-01T00:00:00Z","passed":-999999999999999}`,
		}))
		w.must(expire(ctx))
		if got := w.volumeUndoes(); !slices.Equal(got, fresh) {
			t.Errorf("kept for undo after a %s: %q, want %q", what, got, fresh)
		}
		w.is("snapshots", w.kept("data"), []string{"one", "two"})
	}
}

// TestInterruptedRestoreOfAVolumeIsRecovered lets each step of a restore, and of its
// undoing, fail, before and after it was done, and lets processes die there.
func TestInterruptedRestoreOfAVolumeIsRecovered(t *testing.T) {
	steps := []string{"keep", "volume", "size", "forget"}
	for _, kind := range []string{"volume-restore", "volume-undo"} {
		for i, step := range steps {
			for _, when := range []string{"before", "after"} {
				point := kind + "." + step + "." + when
				t.Run(point, func(t *testing.T) {
					w := restorableVolume(t)
					began := w.volumeBegun(kind)
					keptBefore := w.volumeUndoes()
					w.cfg.Failpoints = Failpoints{point: "error"}
					var err error
					if kind == "volume-undo" {
						_, err = w.UndoVolume(t.Context(), "", "data", VolumeRestoreOptions{})
					} else {
						err = w.RestoreVolumeSnapshot(t.Context(), "", "data", "one", VolumeRestoreOptions{})
					}
					if err == nil || !strings.Contains(err.Error(), point) {
						t.Fatalf("%s = %v, want the failpoint's error", kind, err)
					}
					w.cfg.Failpoints = nil
					// Up to the step that brings the data back, it has not happened.
					if i == 0 || i == 1 && when == "before" {
						w.volumeRecovered()
						w.volumeHolds("data", began)
						if kept := w.volumeUndoes(); !slices.Equal(kept, keptBefore) {
							t.Errorf("kept for undo: %q, want %q", kept, keptBefore)
						}
						return
					}
					w.volumeCameTo(kind)
				})
			}
		}
		for done := range len(steps) + 1 {
			t.Run(kind+" dies after "+string(rune('0'+done)), func(t *testing.T) {
				w := restorableVolume(t)
				w.volumeBegun(kind)
				c, err := w.openVolume(t.Context(), volumeRef{DefaultPool, "data"})
				w.must(err)
				args := volumeRestoreArgs{DefaultPool, "data", c.info.ID, "one", store.UndoPrefix + newID(), `{"before":"test"}`}
				if kind == "volume-undo" {
					args.Snapshot = w.volumeUndoes()[0]
				}
				w.die(t.Context(), kind, []string{c.ref.lock()}, args, done)
				w.volumeCameTo(kind)
			})
		}
	}
}

// volumeBegun brings the volume to where an operation begins and gives its data.
func (w *world) volumeBegun(kind string) string {
	w.t.Helper()
	if kind == "volume-restore" {
		return "three"
	}
	w.restoreVolumeTo("one")
	w.writeVolume("data", "four")
	return "four"
}

func (w *world) volumeRecovered() {
	w.t.Helper()
	held, err := w.lock(w.t.Context(), "look at", volumeRef{DefaultPool, "data"}.lock())
	w.must(err)
	held.Release()
	if left, err := w.intents.List(); err != nil || len(left) != 0 {
		w.t.Errorf("intents left: %+v, %v", left, err)
	}
	w.is("snapshots", w.kept("data"), []string{"one", "two"})
}

// volumeCameTo checks that an operation was carried on to its end and can be undone.
func (w *world) volumeCameTo(kind string) {
	w.t.Helper()
	w.volumeRecovered()
	after, before := "one", "three"
	if kind == "volume-undo" {
		after, before = "three", "four"
	}
	w.volumeHolds("data", after)
	if kept := w.volumeUndoes(); len(kept) != 1 {
		w.t.Errorf("kept for undo: %q, want one", kept)
	}
	w.must(second(w.UndoVolume(w.t.Context(), "", "data", VolumeRestoreOptions{})))
	w.volumeHolds("data", before)
}
