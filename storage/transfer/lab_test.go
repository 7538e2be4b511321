package transfer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/lvm"
	"brig/storage/storagetest/lab"
	"brig/storage/transfer"
	"brig/storage/zfs"
)

// TestLab runs the tests that need ZFS and LVM where these are.
func TestLab(t *testing.T) {
	if lab.Inside() {
		t.Skip("is in the lab")
	}
	if testing.Short() {
		t.Skip("boots a machine")
	}
	for _, kind := range []struct {
		lab.Kind
		tests string
	}{{lab.User, "^TestLVMPairsInLab$"}, {lab.Emulated, "^TestZFS.*InLab$"}} {
		lab.Run(t, lab.Options{
			Kind:  kind.Kind,
			Tests: []lab.Binary{{Package: "brig/storage/transfer", Run: kind.tests}},
		})
	}
}

// newZFS makes a pool in a zpool of its own, or beside another.
func newZFS(t *testing.T, zpool, name string) storage.Pool {
	t.Helper()
	dataset, dir := zpool+"/"+name, t.TempDir()
	if _, _, err := zfs.Make(t.Context(), dataset, dir); err != nil {
		t.Fatal(err)
	}
	p, err := zfs.Open(t.Context(), zfs.Options{Dataset: dataset, Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		record := storage.Record{Name: filepath.Base(dir), Config: map[string]string{"volatile.zfs.dataset": dataset, "volatile.zfs.made": "dataset"}}
		if err := errors.Join(p.Close(), (zfs.Driver{Mounts: filepath.Dir(dir)}).Destroy(context.Background(), record)); err != nil {
			t.Error(err)
		}
	})
	return p
}

// newLVM makes a pool in a file.
func newLVM(t *testing.T) storage.Pool {
	t.Helper()
	d := lvm.Driver{Files: t.TempDir(), Mounts: t.TempDir()}
	record := storage.Record{Name: "lvm", Config: map[string]string{"size": "2GiB"}}
	var err error
	if record.Config, err = d.Create(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), record); err != nil {
			t.Error(err)
		}
	})
	p, err := d.Open(t.Context(), record)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.(*lvm.Pool).Close() })
	return p
}

func zpool(t *testing.T, name string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "zpool")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<30)); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Output(t.Context(), "zpool", "create", "-O", "mountpoint=none", name, file); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := run.Output(context.Background(), "zpool", "destroy", name); err != nil {
			t.Error(err)
		}
	})
	return name
}

// inLab is a copy from a pool to another.
type inLab struct {
	content  storage.Content
	from, to string
	quick    bool
	short    bool // also where time is short
}

// TestZFSPairsInLab copies to, from and between pools on ZFS, and keeps the copies up
// to date.
func TestZFSPairsInLab(t *testing.T) {
	pairsInLab(t,
		inLab{storage.Tree, "zfs", "zfs", true, false},
		inLab{storage.Tree, "zfs", "zfs-far", true, true},
		inLab{storage.Disk, "zfs", "zfs-far", true, false},
		inLab{storage.Tree, "zfs", "overlay", false, false},
		inLab{storage.Tree, "btrfs", "zfs", false, false},
		inLab{storage.Disk, "overlay", "zfs", false, false},
	)
}

// TestLVMPairsInLab does so with pools on LVM.
func TestLVMPairsInLab(t *testing.T) {
	pairsInLab(t,
		inLab{storage.Tree, "lvm", "lvm", true, true},
		inLab{storage.Tree, "overlay", "lvm", false, true},
		inLab{storage.Disk, "lvm", "lvm", true, true},
		inLab{storage.Disk, "lvm", "overlay", false, true},
		inLab{storage.Disk, "overlay", "lvm", false, true},
	)
}

func pairsInLab(t *testing.T, pairs ...inLab) {
	if !lab.Inside() {
		t.Skip("runs in the lab")
	}
	for _, c := range pairs {
		t.Run(string(c.content)+"/"+c.from+"/"+c.to, func(t *testing.T) {
			if testing.Short() && !c.short {
				t.Skip("takes long")
			}
			all := map[string]func() storage.Pool{
				"overlay": func() storage.Pool { return newPool(t) },
				"btrfs":   func() storage.Pool { return btrfsPool(t) },
				"lvm":     func() storage.Pool { return newLVM(t) },
			}
			for name, in := range map[string]string{"zfs": "one", "zfs-far": "two"} {
				all[name] = func() storage.Pool { return newZFS(t, zpool(t, in), name) }
			}
			from := all[c.from]()
			to := from
			if c.from != c.to {
				to = all[c.to]()
			}
			pair(t, from, counted(to, c.quick), c.content, c.from == c.to)
		})
	}
}

// TestZFSAfterRestoreInLab refreshes a copy after the source went back to an older
// snapshot: ZFS cannot send the difference to a newer one.
func TestZFSAfterRestoreInLab(t *testing.T) {
	if !lab.Inside() {
		t.Skip("runs in the lab")
	}
	if testing.Short() {
		t.Skip("takes long")
	}
	ctx := t.Context()
	from, to := newZFS(t, zpool(t, "one"), "a"), newZFS(t, zpool(t, "two"), "b")
	v := source(t, from)
	if err := transfer.Copy(ctx, transfer.Request{Source: v, Pool: to, Key: far, Dir: t.TempDir(), Mark: transfer.Mark{Name: "mark1"}, Keep: true}); err != nil {
		t.Fatal(err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Restore(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	spoil(t, v)
	if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: to}, "mark2"); err != nil {
		t.Fatal(err)
	}
	same(t, v, made, "one", "two", "")
}
