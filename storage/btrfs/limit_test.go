package btrfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/btrfs"
)

// writeFiles writes n files of 1 MiB, until there is an error.
func writeFiles(dir, name string, n int) error {
	for i := range n {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(name, i)))
		if err != nil {
			return err
		}
		_, err = f.Write(make([]byte, 1<<20))
		if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// limitOf asks for the limit after the kernel has counted.
func limitOf(t *testing.T, v storage.Volume) storage.Limit {
	t.Helper()
	f, err := os.Open(v.Root().Upper)
	if err == nil {
		err = errors.Join(unix.Syncfs(int(f.Fd())), f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	limit, err := v.(storage.Limiter).Limit(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return limit
}

// TestLimit follows a limited volume through snapshots, restores and clones: the
// limit stays its own.
func TestLimit(t *testing.T) {
	place := small(t, 512<<20)
	p := openPool(t, place)
	ctx := t.Context()
	image := storage.Key{Class: storage.Images, Name: "base"}
	_, err := p.Create(ctx, image, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), writeFiles(dir.Name()+"/"+storage.RootName, "base", 30))
	})
	if err != nil {
		t.Fatal(err)
	}
	clone := func(from storage.Source, name string) storage.Volume {
		t.Helper()
		v, err := p.Clone(ctx, from, storage.Key{Class: storage.Instances, Name: name}, storage.CloneOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := clone(storage.Source{Key: image}, "web")
	if limit := limitOf(t, v); limit != (storage.Limit{}) {
		t.Errorf("Limit of a new volume = %+v, want none", limit)
	}
	setLimit := func(v storage.Volume, n int64) {
		t.Helper()
		if err := v.(storage.Limiter).SetLimit(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	setLimit(v, 20<<20)
	if limit := limitOf(t, v); limit.Max != 20<<20 || limit.Used > 1<<20 {
		t.Errorf("Limit = %+v, want 20 MiB and next to nothing used", limit)
	}
	full := func(v storage.Volume, name string) {
		t.Helper()
		if err := writeFiles(v.Root().Upper, name, 60); !errors.Is(err, unix.EDQUOT) {
			t.Errorf("writing 60 MiB = %v, want %v", err, unix.EDQUOT)
		}
	}
	if err := writeFiles(v.Root().Upper, "a", 12); err != nil {
		t.Errorf("writing 12 MiB = %v", err)
	}
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	btrfsTool(t, "subvolume", "create", filepath.Join(v.Root().Upper, "guests"))
	full(v, "b")
	// What a snapshot keeps is still the volume's; a restore changes no limit.
	if err := v.Restore(ctx, "s"); err != nil {
		t.Fatalf("Restore of a volume at its limit = %v", err)
	}
	if err := p.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	full(v, "c")
	if limit := limitOf(t, v); limit.Max != 20<<20 || limit.Used < 15<<20 || limit.Used > 21<<20 {
		t.Errorf("Limit = %+v, want nearly 20 MiB used", limit)
	}
	// Neither a clone nor another volume shares it.
	copied := clone(storage.Source{Key: v.Key(), Snapshot: "s"}, "copy")
	if err := writeFiles(copied.Root().Upper, "d", 30); err != nil {
		t.Errorf("writing 30 MiB to a clone = %v", err)
	}
	if limit := limitOf(t, copied); limit.Max != 0 || limit.Used < 30<<20 || limit.Used > 32<<20 {
		t.Errorf("Limit of the clone = %+v, want none and 30 MiB used", limit)
	}
	setLimit(v, 60<<20)
	if err := writeFiles(v.Root().Upper, "e", 25); err != nil {
		t.Errorf("writing under a larger limit = %v", err)
	}
	setLimit(v, 0)
	if limit := limitOf(t, v); limit.Max != 0 {
		t.Errorf("Limit after it was lifted = %+v, want none", limit)
	}
	if err := writeFiles(v.Root().Upper, "f", 60); err != nil {
		t.Errorf("writing without a limit = %v", err)
	}
	if err := errors.Join(p.Delete(ctx, v.Key()), p.Delete(ctx, copied.Key()), p.Delete(ctx, image), p.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	if groups, err := btrfs.Groups(place); groups != 0 || err != nil {
		t.Errorf("%d quota groups are left, %v", groups, err)
	}
}

func TestLimitRefusals(t *testing.T) {
	place := small(t, 256<<20)
	p := openPool(t, place)
	ctx := t.Context()
	v := makeTree(t, p, web)
	disk, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "vm"}, storage.Disk, func(dir *os.Root) error {
		return dir.WriteFile(storage.DiskRaw, make([]byte, 512), 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	image := makeTree(t, p, storage.Key{Class: storage.Images, Name: "base"})
	for _, test := range []struct {
		v     storage.Volume
		limit int64
		class fault.Class
	}{{v, -1, fault.Invalid}, {disk, 1 << 30, fault.Unsupported}, {image, 1 << 30, fault.Unsupported}} {
		if err := test.v.(storage.Limiter).SetLimit(ctx, test.limit); !fault.Is(err, test.class) {
			t.Errorf("SetLimit(%q, %d) = %v, want %s", test.v.Key(), test.limit, err, test.class)
		}
	}
	btrfsTool(t, "quota", "enable", place)
	if err := v.(storage.Limiter).SetLimit(ctx, 1<<30); !fault.Is(err, fault.Unsupported) {
		t.Errorf("SetLimit under full quota groups = %v, want unsupported", err)
	}
	if err := v.(storage.Limiter).SetLimit(ctx, 0); err != nil {
		t.Errorf("lifting no limit = %v", err)
	}
	btrfsTool(t, "quota", "disable", place)
	if err := v.(storage.Limiter).SetLimit(ctx, 1<<30); err != nil {
		t.Errorf("SetLimit = %v", err)
	}
	// An administrator may turn them off, and on again by another limit.
	btrfsTool(t, "quota", "disable", place)
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Error(err)
	}
	if err := v.Restore(ctx, "s"); err != nil {
		t.Error(err)
	}
	if err := v.(storage.Limiter).SetLimit(ctx, 1<<30); err != nil {
		t.Errorf("SetLimit again = %v", err)
	}
	if limit := limitOf(t, v); limit.Max != 1<<30 {
		t.Errorf("Limit = %+v, want 1 GiB", limit)
	}
}
