package storagetest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
)

// smallSize is the size of a small file system.
const smallSize = 64 << 20

// small mounts a small ext4 for the calling test, on a thread of its own.
func small(t *testing.T) string {
	t.Helper()
	if err := isolate(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file, place := filepath.Join(dir, "fs"), filepath.Join(dir, "place")
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, smallSize), os.Mkdir(place, 0o700))
	if err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{
		{"mkfs.ext4", "-q", "-m", "0", "-F", file},
		// The loop device goes away with the mount.
		{"mount", "-o", "loop", file, place},
	} {
		if _, err := run.Output(t.Context(), cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return place
}

// smallPool makes an empty pool that is soon full. Only the calling test uses it.
func smallPool(t *testing.T, d Driver) *pool {
	t.Helper()
	place := small
	if d.Small != nil {
		place = d.Small
	}
	p := openPool(t, d, place(t))
	if d.Content == storage.Tree {
		// Only this thread sees the file system of the pool.
		p.data = trees{t: t, run: func(f func() error) error { return f() }}
	}
	return p
}

// testFull fills the pool to the last byte, in the middle of a creation, and tries
// what has to work then.
func testFull(t *testing.T, d Driver) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	p := smallPool(t, d)
	ctx := t.Context()
	prepare(t, p)
	ballast(t, p)
	web := p.open(t, instance("web"))
	done := errors.New("done")
	_, err := p.Create(ctx, image("filler"), d.Content, func(dir *os.Root) error {
		if err := fillUp(dir); err != nil {
			return err
		}
		full(t, p, web)
		return done
	})
	if !errors.Is(err, done) {
		t.Errorf("Create = %v, want the error of fill", err)
	}
	// A creation that meets the end of the space says so, and leaves nothing.
	p.sweep(t)
	before, err := p.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	_, err = p.Create(ctx, image("large"), d.Content, func(dir *os.Root) error {
		return writeUntil(dir, "filler", smallSize*2, 1<<20)
	})
	wants(t, "Create of more than there is space for", err, fault.Exhausted)
	after, err := p.Info(ctx)
	if err != nil || after.Free < before.Free-64<<10 {
		t.Errorf("%d bytes are free afterwards, %d before, %v", after.Free, before.Free, err)
	}
	p.holds(t, web, stateNow)
	p.clear(t)
}

// ballastKey is a volume that is large enough for its end to be felt: a file system
// may need some megabytes before it believes that there is space again.
var ballastKey = storage.Key{Class: storage.Custom, Name: "ballast"}

func ballast(t *testing.T, p *pool) {
	t.Helper()
	_, err := p.Create(t.Context(), ballastKey, p.driver.Content, func(dir *os.Root) error {
		if p.driver.Content == storage.Disk {
			return writeUntil(dir, storage.DiskRaw, smallSize/4, 1<<20)
		}
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), writeUntil(dir, storage.RootName+"/data", smallSize/4, 1<<20))
	})
	if err != nil {
		t.Fatalf("Create(%q) = %v", ballastKey, err)
	}
}

// full tries a pool on which no byte is free.
func full(t *testing.T, p *pool, web storage.Volume) {
	ctx := t.Context()
	info, err := p.Info(ctx)
	if err != nil || info.Free > 0 {
		t.Errorf("Info of a full pool = %d bytes free, %v", info.Free, err)
	}
	_, err = p.Clone(ctx, storage.Source{Key: web.Key()}, instance("new"), storage.CloneOptions{})
	wants(t, "Clone on a full pool", err, fault.Exhausted)
	wants(t, "Snapshot on a full pool", web.Snapshot(ctx, "new", storage.SnapshotOptions{}), fault.Exhausted)
	wants(t, "Restore on a full pool", web.Restore(ctx, "one"), fault.Exhausted)
	_, err = p.Create(ctx, instance("new"), p.driver.Content, func(dir *os.Root) error { return fillUp(dir) })
	wants(t, "Create on a full pool", err, fault.Exhausted)
	if got := p.list(t, storage.Instances); !slices.Equal(got, []string{"old", "web"}) {
		t.Errorf("List of a full pool = %q, want old and web", got)
	}
	if got := names(t, p.open(t, web.Key())); !slices.Equal(got, []string{"one", "two"}) {
		t.Errorf("Snapshots on a full pool = %q, want one and two", got)
	}
	if err := web.DeleteSnapshot(ctx, "one"); err != nil {
		t.Errorf("DeleteSnapshot on a full pool = %v", err)
	}
	if got := names(t, p.again(t).open(t, web.Key())); !slices.Equal(got, []string{"two"}) {
		t.Errorf("Snapshots on a full pool = %q, want two", got)
	}
	if err := p.Delete(ctx, instance("old")); err != nil {
		t.Errorf("Delete on a full pool = %v", err)
	}
	if err := p.Delete(ctx, ballastKey); err != nil {
		t.Errorf("Delete on a full pool = %v", err)
	}
	if err := p.Sweep(ctx); err != nil {
		t.Errorf("Sweep of a full pool = %v", err)
	}
	info, err = p.Info(ctx)
	if err != nil || info.Free == 0 {
		t.Errorf("after deleting and sweeping %d bytes are free, %v", info.Free, err)
	}
	p.holds(t, web, stateNow)
	snapshot(t, web, "new")
	if err := web.DeleteSnapshot(ctx, "new"); err != nil {
		t.Errorf("DeleteSnapshot = %v", err)
	}
}

// fillUp takes all the space there is.
func fillUp(dir *os.Root) error {
	for _, size := range []int{1 << 20, 4 << 10, 512} {
		err := writeUntil(dir, fmt.Sprintf("filler%d", size), smallSize*2, size)
		if !errors.Is(err, unix.ENOSPC) {
			return fmt.Errorf("writing without end = %w", err)
		}
	}
	return nil
}

// writeUntil writes a file of the given size, or until it fails.
func writeUntil(dir *os.Root, name string, total, size int) error {
	f, err := dir.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i)
	}
	for n := 0; n < total; n += size {
		if _, err := f.Write(data); err != nil {
			return err
		}
	}
	return f.Sync()
}
