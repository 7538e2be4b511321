package manager

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/instance/flock"
	"brig/storage"
)

// TestManySnapshotsAreMerged takes snapshots until a sweep is asked for, and has it
// merge them.
func TestManySnapshotsAreMerged(t *testing.T) {
	w := newWorld(t)
	asked := 0
	w.cfg.Sweep = func() error { asked++; return nil }
	w.create("web", "image")
	taken := 0
	for ; asked == 0 && taken < 100; taken++ {
		w.write("web", fmt.Sprint(taken))
		_, err := w.CreateSnapshot(t.Context(), "web", fmt.Sprint("s", taken), SnapshotRequest{})
		w.must(err)
	}
	w.write("web", "now")
	inst, err := w.open(t.Context(), "web")
	w.must(err)
	if asked == 0 || !long(inst.volume) {
		t.Fatalf("after %d snapshots a sweep was asked for %d times, and it is long: %v", taken, asked, long(inst.volume))
	}
	w.must(w.Sweep(t.Context()))
	if long(inst.volume) {
		t.Error("a sweep left it long")
	}
	if n := len(inst.volume.Root().Lower); n > 3 {
		t.Errorf("it stands on %d layers, want at most 3", n)
	}
	w.holds("web", "now")
	for _, i := range []int{0, taken / 2, taken - 1} {
		w.must(w.RestoreSnapshot(t.Context(), "web", fmt.Sprint("s", i), RestoreOptions{}))
		w.holds("web", fmt.Sprint(i))
	}
	list, err := w.Snapshots(t.Context(), "web")
	w.must(err)
	if len(list) != taken {
		t.Errorf("there are %d snapshots, want %d", len(list), taken)
	}
}

// TestMergingKeepsNobodyFromFreeing has somebody merge for long.
func TestMergingKeepsNobodyFromFreeing(t *testing.T) {
	w := newWorld(t)
	merging, err := flock.Acquire(t.Context(), w.hiddenLock("merge"))
	w.must(err)
	key := storage.Key{Class: storage.Instances, Name: "old"}
	waste := func() {
		_, err := w.defaultPool().Clone(t.Context(), storage.Source{Key: baseImage}, key, storage.CloneOptions{})
		w.must(err)
		w.must(w.defaultPool().Delete(t.Context(), key))
		if !w.pending() {
			t.Fatal("nothing is to be freed")
		}
	}
	waste()
	first := make(chan error, 1)
	go func() { first <- w.Sweep(t.Context()) }()
	waits := func() bool { // a try to lock it could be in the way
		_, err := os.Stat(w.hiddenLock("merge-next"))
		return err == nil
	}
	for end := time.Now().Add(20 * time.Second); !waits(); {
		if time.Now().After(end) {
			t.Fatal("the first sweep does not wait for its turn to merge")
		}
	}
	if w.pending() {
		t.Error("the first sweep waits before it has freed what was deleted")
	}
	waste()
	w.must(w.Sweep(t.Context())) // and leaves the merging to the first
	if w.pending() {
		t.Error("the second sweep freed nothing")
	}
	merging.Discard()
	w.must(<-first)
}

// TestShortenLeavesWhatIsNoInstance has a long chain in the trash.
func TestShortenLeavesWhatIsNoInstance(t *testing.T) {
	w := newWorld(t)
	w.create("web", "x")
	inst, err := w.open(t.Context(), "web")
	w.must(err)
	for i := 0; !long(inst.volume) && i < 100; i++ {
		w.write("web", fmt.Sprint(i))
		w.must(inst.volume.Snapshot(t.Context(), fmt.Sprint("s", i), storage.SnapshotOptions{}))
	}
	before := inst.volume.Root().Lower
	w.must(w.Delete(t.Context(), "web", DeleteOptions{}))
	w.must(w.Sweep(t.Context())) // in the trash it is nobody's to be fast
	trash, err := w.findTrash(t.Context(), "web")
	w.must(err)
	if len(trash) != 1 {
		t.Fatalf("the trash holds %d, want 1", len(trash))
	}
	volume, err := w.openTrash(t.Context(), trash[0])
	w.must(err)
	if got := volume.Root().Lower; !slices.Equal(got, before) {
		t.Errorf("it stands on %d layers in the trash, want %d as before", len(got), len(before))
	}
	if _, err := w.open(t.Context(), "web"); !fault.Is(err, fault.NotFound) {
		t.Errorf("open = %v, want not-found", err)
	}
}
