package lvm_test

import (
	"context"
	"errors"
	"io"
	"os"
	"testing"

	"brig/storage"
)

// TestADiskTellsWhereItsDataIs writes to a disk before and after a snapshot.
func TestADiskTellsWhereItsDataIs(t *testing.T) {
	inside(t)
	p, err := open(makePlace(t, group(t, 0), "pool"), nil)
	if err != nil {
		t.Fatal(err)
	}
	const size, piece = 64 << 20, 64 << 10
	write := func(path string, at int64) error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		data := make([]byte, piece)
		for i := range data {
			data[i] = 'x'
		}
		_, err = f.WriteAt(data, at)
		return errors.Join(err, f.Close())
	}
	key := storage.Key{Class: storage.Custom, Name: "disk"}
	v, err := p.Create(t.Context(), key, storage.Disk, func(dir *os.Root) error {
		path := dir.Name() + "/" + storage.DiskRaw
		return errors.Join(write(path, 0), write(path, 48<<20), os.Truncate(path, size))
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Snapshot(t.Context(), "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := write(v.Root().DiskPath, 16<<20); err != nil { // and no sync
		t.Fatal(err)
	}
	snapshot, err := v.SnapshotRoot(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	before, now := parts(t, snapshot), parts(t, v.Root())
	for at, want := range map[int64][2]bool{0: {true, true}, 48 << 20: {true, true}, 16 << 20: {false, true}, 32 << 20: {false, false}} {
		then, inThen := find(before, at)
		here, inNow := find(now, at)
		if inThen != want[0] || inNow != want[1] || inThen && inNow && then != here {
			t.Errorf("byte %d: %v at %d in the snapshot %v, %v at %d in the disk %v", at, inThen, then, before, inNow, here, now)
		}
	}
	zerosElsewhere(t, v.Root(), now, size)
	zerosElsewhere(t, snapshot, before, size)
}

func parts(t *testing.T, r storage.Root) []storage.Extent {
	t.Helper()
	list, err := r.DiskData(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// find tells where a byte is that is in the list.
func find(list []storage.Extent, at int64) (where int64, ok bool) {
	for _, e := range list {
		if e.Start <= at && at < e.End {
			return e.At + at - e.Start, true
		}
	}
	return 0, false
}

// zerosElsewhere reads what is between the parts.
func zerosElsewhere(t *testing.T, r storage.Root, list []storage.Extent, size int64) {
	t.Helper()
	f, err := os.Open(r.DiskPath)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at, held := int64(0), int64(0)
	for _, e := range append(list, storage.Extent{Start: size}) {
		data := make([]byte, e.Start-at)
		if _, err := io.ReadFull(io.NewSectionReader(f, at, int64(len(data))), data); err != nil {
			t.Fatal(err)
		}
		for i, c := range data {
			if c != 0 {
				t.Fatalf("byte %d holds %q, and is in no part", at+int64(i), c)
			}
		}
		at, held = e.End, held+max(0, e.End-e.Start)
	}
	if held > 4<<20 {
		t.Errorf("the parts are %d bytes, of 192 KiB that were written", held)
	}
}
