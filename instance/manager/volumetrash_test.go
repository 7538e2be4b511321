package manager

import (
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

func TestADeletedVolumeComesBackWithItsSnapshots(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	w.create("data", "an instance of the same name")
	w.volume("data", "one")
	_, err := w.CreateVolumeSnapshot(ctx, "", "data", "s", SnapshotRequest{Description: "d"})
	w.must(err)
	w.writeVolume("data", "two")
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}))

	if list, err := w.Volumes(ctx, "", GetOptions{}); err != nil || len(list) != 0 {
		t.Errorf("Volumes after delete = %+v, %v", list, err)
	}
	pool, err := w.Pool(ctx, DefaultPool)
	w.must(err)
	w.is("volumes of the pool", pool.Volumes, nil)
	w.is("the trash of the pool", pool.Trashed, []string{"default/data"})
	wants(t, "delete again", w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}), fault.NotFound)
	w.is("the trash", w.inTheTrash(), []string{"default/data"})
	space, err := w.Space(ctx, nil)
	w.must(err)
	if len(space.Trash) != 1 || space.Trash[0].Usage == nil || space.Trash[0].Usage.Exclusive == 0 ||
		space.Pools[0].Exclusive < space.Trash[0].Usage.Exclusive+space.Instances[0].Usage.Exclusive {
		t.Errorf("Space = %+v, want the volume in the trash counted", space)
	}

	// The plain name is that of an instance.
	_, err = w.RestoreTrash(ctx, "data", "")
	wants(t, "RestoreTrash of the plain name", err, fault.NotFound)
	if err != nil && !strings.Contains(err.Error(), "POOL/VOLUME") {
		t.Errorf("RestoreTrash of the plain name = %v, want how volumes are called", err)
	}
	w.volume("data", "new")
	_, err = w.RestoreTrash(ctx, "default/data", "")
	wants(t, "RestoreTrash to a taken name", err, fault.AlreadyExists)
	_, err = w.RestoreTrash(ctx, "default/data", "../x")
	wants(t, "RestoreTrash to a bad name", err, fault.Invalid)
	name, err := w.RestoreTrash(ctx, "default/data", "old")
	if err != nil || name != "default/old" {
		t.Errorf("RestoreTrash = %q, %v", name, err)
	}
	w.volumeHolds("old", "two")
	w.volumeHolds("data", "new")
	w.is("snapshots", w.kept("old"), []string{"s"})
	c, err := w.openVolume(ctx, volumeRef{DefaultPool, "old"})
	w.must(err)
	if _, err := readNote(c.volume); !isGone(err) {
		t.Errorf("the note of the delete: %v, want none", err)
	}
	w.must(w.RestoreVolumeSnapshot(ctx, "", "old", "s", VolumeRestoreOptions{}))
	w.volumeHolds("old", "one")

	// By its id, and for good.
	w.must(w.DeleteVolume(ctx, "", "old", VolumeDeleteOptions{}))
	name, err = w.RestoreTrash(ctx, c.info.ID, "")
	if err != nil || name != "default/old" {
		t.Errorf("RestoreTrash by the id = %q, %v", name, err)
	}
	w.must(w.DeleteVolume(ctx, "", "old", VolumeDeleteOptions{}))
	w.must(w.Delete(ctx, "data", DeleteOptions{}))
	if n, err := w.EmptyTrash(ctx, []string{"default/old"}); err != nil || n != (Emptied{Volumes: 1}) {
		t.Errorf("EmptyTrash = %+v, %v", n, err)
	}
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}))
	if n, err := w.EmptyTrash(ctx, nil); err != nil || n != (Emptied{1, 1}) {
		t.Errorf("EmptyTrash of all = %+v, %v", n, err)
	}
	w.is("the trash", w.inTheTrash(), []string{})
}

func TestDeletedVolumesExpire(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	passed, at := time.Duration(0), time.Now()
	w.cfg.Clock = func() time.Time { return at }
	w.cfg.Uptime = func() (string, time.Duration, error) { return "boot", passed, nil }
	w.volume("data", "one")
	w.must(w.DeleteVolume(ctx, "", "data", VolumeDeleteOptions{}))
	at = at.AddDate(1, 0, 0)
	w.must(w.Sweep(ctx))
	w.is("the trash after the clock went a year ahead", w.inTheTrash(), []string{"default/data"})
	at = at.AddDate(-2, 0, 0)
	passed += keptFor - time.Hour
	w.must(w.Sweep(ctx))
	w.is("the trash after less than seven days", w.inTheTrash(), []string{"default/data"})
	passed += 2 * time.Hour
	if !w.overdue() {
		t.Error("nothing is overdue after more than seven days")
	}
	w.must(w.Sweep(ctx))
	w.is("the trash after more than seven days", w.inTheTrash(), []string{})
}

func TestAKilledDeleteOfAVolumeIsCarriedOn(t *testing.T) {
	for _, done := range []int{0, 1} {
		w := newWorld(t)
		ctx := t.Context()
		w.volume("data", "one")
		c, err := w.openVolume(ctx, volumeRef{DefaultPool, "data"})
		w.must(err)
		a := volumeTrashArgs{DefaultPool, "data", c.info.ID, "data" + trashMark + c.info.ID, deletion{At: now()}}
		locks := []string{c.ref.lock(), volumeTrashLock(a.Pool, a.Trash)}
		w.die(ctx, "volume-delete", locks, a, done)
		w.volume("other", "x") // which tidies up
		w.is("the trash", w.inTheTrash(), []string{"default/data"})

		// A return that is killed half way did not happen; one that was over has.
		w.die(ctx, "volume-untrash", locks, a, done)
		w.must(w.DeleteVolume(ctx, "", "other", VolumeDeleteOptions{Now: true}))
		w.is("the trash after a killed restore", w.inTheTrash(), []string{"default/data"})
		w.die(ctx, "volume-untrash", locks, a, 2)
		w.volumeHolds("data", "one")
		w.volume("other", "x")
		w.volumeHolds("data", "one")
		w.is("the trash after a restore", w.inTheTrash(), []string{})
	}
}

// TestSnapshotsOfVolumesExpire has one that expires, one that does not, and one that
// was taken with an instance, which goes with that.
func TestSnapshotsOfVolumesExpire(t *testing.T) {
	w := newWorld(t)
	ctx := t.Context()
	passed, at := time.Duration(0), time.Now()
	w.cfg.Clock = func() time.Time { return at }
	w.cfg.Uptime = func() (string, time.Duration, error) { return "boot", passed, nil }
	w.volume("data", "one")
	w.create("web", "one")
	w.attach("web", "data", "/srv")
	for name, expires := range map[string]time.Time{"stays": {}, "goes": at.Add(24 * time.Hour)} {
		_, err := w.CreateVolumeSnapshot(ctx, "", "data", name, SnapshotRequest{ExpiresAt: expires})
		w.must(err)
	}
	_, err := w.CreateSnapshot(ctx, "web", "with", SnapshotRequest{})
	w.must(err)
	count := func(when string, want int) {
		t.Helper()
		w.must(w.Tick(ctx))
		if got := w.kept("data"); len(got) != want {
			t.Errorf("%s the volume has the snapshots %q, want %d", when, got, want)
		}
	}
	count("at once", 3)
	at = at.AddDate(1, 0, 0)
	count("after the clock went a year ahead", 3)
	at = at.AddDate(-2, 0, 0)
	passed += 25 * time.Hour
	count("after the clock went back two years", 3)
	at = at.AddDate(1, 0, 2)
	count("after a day", 2)
	w.must(w.sweepOrphans(ctx))
	if v, err := w.Volume(ctx, "", "data", GetOptions{}); err != nil || v.Info.Type != string(storage.Custom) {
		t.Errorf("Volume = %+v, %v", v, err)
	}
}
