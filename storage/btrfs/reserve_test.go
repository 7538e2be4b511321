package btrfs_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// TestAFullPoolGivesItsReserveBack fills a pool to the last byte. Nothing is started
// there any more; deleting works and takes the reserve, which Sweep makes again.
func TestAFullPoolGivesItsReserveBack(t *testing.T) {
	place := small(t, 160<<20)
	p := openPool(t, place)
	ctx := t.Context()
	db := storage.Key{Class: storage.Instances, Name: "db"}
	v, _ := makeTree(t, p, web), makeTree(t, p, db)
	if err := p.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	reserve := filepath.Join(place, "reserve")
	kept := func() (bytes int64) {
		st, err := os.Stat(reserve)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err == nil {
			bytes = st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return bytes
	}
	if got := kept(); got != 1<<20 {
		t.Fatalf("the reserve takes %d bytes, want 1 MiB", got)
	}
	fill, err := os.Create(filepath.Join(v.Root().Upper, "fill"))
	if err != nil {
		t.Fatal(err)
	}
	defer fill.Close()
	for piece := make([]byte, 1<<20); len(piece) >= 4<<10; {
		if _, err := fill.Write(piece); err != nil {
			piece = piece[:len(piece)/2]
		} else if err := fill.Sync(); err != nil {
			piece = piece[:len(piece)/2]
		}
	}
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Snapshot on a full pool = %v, want exhausted", err)
	}
	if got := kept(); got != 1<<20 {
		t.Errorf("nothing was deleted, and the reserve takes %d bytes", got)
	}
	if err := p.Delete(ctx, db); err != nil {
		t.Errorf("Delete on a full pool = %v", err)
	}
	if got := kept(); got != 0 {
		t.Errorf("a delete on a full pool left the reserve with %d bytes", got)
	}
	if err := errors.Join(fill.Truncate(0), unix.Syncfs(int(fill.Fd())), p.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	if got := kept(); got != 1<<20 {
		t.Errorf("with space again the reserve takes %d bytes, want 1 MiB", got)
	}
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Errorf("Snapshot with space again = %v", err)
	}
}
