package btrfs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

var web = storage.Key{Class: storage.Instances, Name: "web"}

func openPool(t *testing.T, place string) *btrfs.Pool {
	t.Helper()
	p, err := btrfs.Open(place, btrfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// makeTree makes a volume with an empty tree, and opens it.
func makeTree(t *testing.T, p *btrfs.Pool, key storage.Key) storage.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), key, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("instance.json", []byte("{}"), 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func btrfsTool(t *testing.T, args ...string) {
	t.Helper()
	if _, err := run.Output(t.Context(), "btrfs", args...); err != nil {
		t.Fatal(err)
	}
}

// subvolumes names all subvolumes of the file system that dir is in.
func subvolumes(t *testing.T, dir string) string {
	t.Helper()
	out, err := run.Output(t.Context(), "btrfs", "subvolume", "list", "-o", dir)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// TestGuestsSubvolumes lets a guest make subvolumes in its tree: many in each other,
// deeper than any path, read-only ones, and in a directory that is immutable.
func TestGuestsSubvolumes(t *testing.T) {
	place := newPlace(t)
	p := openPool(t, place)
	ctx := t.Context()
	v := makeTree(t, p, web)
	tree := v.Root().Upper
	fd, err := unix.Open(tree, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for i := range 1500 {
		if err != nil {
			t.Fatal(err)
		}
		name := "directory"
		if i%100 == 99 {
			name = "subvolume"
			err = btrfs.CreateSubvolume(fd, name)
		} else {
			err = unix.Mkdirat(fd, name, 0o700)
		}
		if err == nil {
			var next int
			next, err = unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
	}
	unix.Close(fd)
	const immutable = 0x10
	err = errors.Join(
		os.Mkdir(filepath.Join(tree, "fixed"), 0o700),
		os.Symlink("/", filepath.Join(tree, "link")),
	)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fixed/sub", "fixed/sub/sub", "read-only", "read-only/sub"} {
		btrfsTool(t, "subvolume", "create", filepath.Join(tree, name))
	}
	btrfsTool(t, "property", "set", filepath.Join(tree, "read-only/sub"), "ro", "true")
	btrfsTool(t, "property", "set", filepath.Join(tree, "read-only"), "ro", "true")
	for _, name := range []string{"fixed/sub", "fixed"} {
		f, err := os.Open(filepath.Join(tree, name))
		if err == nil {
			err = errors.Join(unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable), f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}

	// Snapshots do not have them, only empty directories in their place.
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := v.Usage(ctx); err != nil {
		t.Errorf("Usage = %v", err)
	}
	if err := v.Restore(ctx, "s"); err != nil {
		t.Fatal(err)
	}
	if names, err := os.ReadDir(filepath.Join(tree, "read-only")); err != nil || len(names) > 0 {
		t.Errorf("a subvolume after Restore holds %v, %v", names, err)
	}
	if err := errors.Join(p.Delete(ctx, web), p.Sweep(ctx)); err != nil {
		t.Fatalf("Delete and Sweep = %v", err)
	}
	if p.Pending() {
		t.Error("Pending after Sweep = true")
	}
	if left := subvolumes(t, filepath.Dir(place)); left != "" && slices.Contains(filepath.SplitList(left), place) {
		t.Errorf("subvolumes are left: %s", left)
	}
	for _, dir := range []string{"trash", "staging", "instances"} {
		if names, err := os.ReadDir(filepath.Join(place, dir)); err != nil || len(names) > 0 {
			t.Errorf("%s holds %v, %v", dir, names, err)
		}
	}
}

func TestOpenTakesOnlyItsOwn(t *testing.T) {
	if _, err := btrfs.Open(filepath.Join(t.TempDir(), "pool"), btrfs.Options{}); os.Getuid() == 0 && !fault.Is(err, fault.Unsupported) {
		t.Errorf("Open outside of btrfs = %v, want unsupported", err)
	}
	dir := newPlace(t)
	if err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "precious"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := btrfs.Open(dir, btrfs.Options{}); !fault.Is(err, fault.WrongState) {
		t.Errorf("Open of a directory with something else = %v, want wrong-state", err)
	}
	if _, err := btrfs.Open(filepath.Join(dir, "precious"), btrfs.Options{}); err == nil {
		t.Error("Open of a file = nil, want an error")
	}
	for text, class := range map[string]fault.Class{
		`{"version":1,"driver":"zfs"}`:    fault.Unsupported,
		`{"version":99,"driver":"btrfs"}`: fault.Unsupported,
		`{"vers`:                          fault.Unavailable,
	} {
		dir := newPlace(t)
		err := errors.Join(os.Mkdir(dir, 0o700), os.WriteFile(filepath.Join(dir, "pool.json"), []byte(text), 0o600))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := btrfs.Open(dir, btrfs.Options{}); !fault.Is(err, class) {
			t.Errorf("Open with pool.json %q = %v, want %s", text, err, class)
		}
	}
}

// TestDamage changes a pool behind brig's back. What is damaged says so, can be
// deleted, and nothing else suffers.
func TestDamage(t *testing.T) {
	db := storage.Key{Class: storage.Instances, Name: "db"}
	for _, test := range []struct {
		name   string
		damage func(t *testing.T, dir string)
		class  fault.Class // of Snapshot
	}{
		{"no subvolume", func(t *testing.T, dir string) {
			btrfsTool(t, "subvolume", "delete", filepath.Join(dir, "data"))
		}, fault.Unavailable},
		{"directory for subvolume", func(t *testing.T, dir string) {
			data := filepath.Join(dir, "data")
			if err := errors.Join(os.Rename(data, data+"2"), os.Mkdir(data, 0o700)); err != nil {
				t.Fatal(err)
			}
		}, fault.Unavailable},
		{"link for subvolume", func(t *testing.T, dir string) {
			data := filepath.Join(dir, "data")
			if err := errors.Join(os.Rename(data, data+"2"), os.Symlink(data+"2", data)); err != nil {
				t.Fatal(err)
			}
		}, fault.Internal},
		{"newer brig", record(`{"version":2,"content":"filesystem"}`), fault.Unsupported},
		{"cut record", record(`{"version":1,"con`), fault.Unavailable},
		{"record of something else", record(`{"version":1,"content":"tape"}`), fault.Unavailable},
	} {
		t.Run(test.name, func(t *testing.T) {
			place := newPlace(t)
			p := openPool(t, place)
			ctx := t.Context()
			v, other := makeTree(t, p, web), makeTree(t, p, db)
			for _, v := range []storage.Volume{v, other} {
				if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			test.damage(t, filepath.Join(place, "instances", "web"))
			if err := v.Snapshot(ctx, "t", storage.SnapshotOptions{}); !fault.Is(err, test.class) {
				t.Errorf("Snapshot = %v (%s), want %s", err, fault.Of(err), test.class)
			}
			if err := p.Sweep(ctx); err != nil {
				t.Errorf("Sweep = %v", err)
			}
			if _, err := os.Stat(filepath.Join(place, "instances/web/snapshots/s/data/rootfs")); err != nil {
				t.Errorf("a snapshot of a damaged volume was lost: %v", err)
			}
			if err := other.Snapshot(ctx, "t", storage.SnapshotOptions{}); err != nil {
				t.Errorf("Snapshot of another volume = %v", err)
			}
			err := p.Delete(ctx, web)
			if test.class == fault.Unsupported {
				if !fault.Is(err, fault.Unsupported) {
					t.Errorf("Delete of a volume of a newer brig = %v, want unsupported", err)
				}
				return
			}
			if err := errors.Join(err, p.Sweep(ctx)); err != nil {
				t.Errorf("Delete and Sweep = %v", err)
			}
			if got, err := p.List(ctx, storage.Instances); err != nil || !slices.Equal(got, []string{"db"}) {
				t.Errorf("List = %q, %v, want db", got, err)
			}
		})
	}
}

// record replaces the record of a volume.
func record(text string) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		if err := os.WriteFile(filepath.Join(dir, "volume.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestReadOnlyPool(t *testing.T) {
	place := small(t, 256<<20)
	p := openPool(t, place)
	ctx := t.Context()
	v := makeTree(t, p, web)
	if err := v.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	remount := func(flags uintptr) {
		t.Helper()
		if err := unix.Mount("", place, "", unix.MS_REMOUNT|flags, ""); err != nil {
			t.Fatal(err)
		}
	}
	remount(unix.MS_RDONLY)
	defer remount(0)
	for what, err := range map[string]error{
		"Snapshot": v.Snapshot(ctx, "t", storage.SnapshotOptions{}),
		"Restore":  v.Restore(ctx, "s"),
		"Delete":   p.Delete(ctx, web),
	} {
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s in a read-only pool = %v (%s), want unavailable", what, err, fault.Of(err))
		}
	}
	if got, err := p.List(ctx, storage.Instances); err != nil || len(got) != 1 {
		t.Errorf("List = %q, %v, want web", got, err)
	}
	if got, err := v.Snapshots(ctx); err != nil || len(got) != 1 {
		t.Errorf("Snapshots = %v, %v, want s", got, err)
	}
	if _, err := p.Info(ctx); err != nil {
		t.Errorf("Info = %v", err)
	}
}

// TestDeleteWithoutRoomForNames fills the metadata, so that not even a name can be
// changed, and frees space again.
func TestDeleteWithoutRoomForNames(t *testing.T) {
	place := small(t, 128<<20)
	p := openPool(t, place)
	ctx := t.Context()
	v := makeTree(t, p, web)
	for _, name := range []string{"old", "s"} {
		if err := v.Snapshot(ctx, name, storage.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	other := storage.Key{Class: storage.Instances, Name: "other"}
	o := makeTree(t, p, other)
	if err := o.Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Fatal(err)
	}
	btrfsTool(t, "subvolume", "create", filepath.Join(o.Root().Upper, "guests"))
	fillMetadata(t, v.Root().Upper)
	if err := os.Rename(filepath.Join(place, "instances/other"), filepath.Join(place, "trash/other")); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("a name could be changed (%v): the test proves nothing", err)
	}
	if err := v.DeleteSnapshot(ctx, "old"); err != nil {
		t.Errorf("DeleteSnapshot = %v", err)
	}
	if err := p.Delete(ctx, other); err != nil {
		t.Errorf("Delete = %v", err)
	}
	if got, err := p.List(ctx, storage.Instances); err != nil || !slices.Equal(got, []string{"web"}) {
		t.Errorf("List = %q, %v, want web", got, err)
	}
	if err := v.Snapshot(ctx, "t", storage.SnapshotOptions{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Snapshot = %v, want exhausted", err)
	}
	if err := p.Delete(ctx, web); err != nil {
		t.Errorf("Delete = %v", err)
	}
	if err := p.Sweep(ctx); err != nil || p.Pending() {
		t.Errorf("Sweep = %v, Pending = %v", err, p.Pending())
	}
	makeTree(t, p, web)
}

// fillMetadata makes small files until no more can be made.
func fillMetadata(t *testing.T, dir string) {
	t.Helper()
	// What was not written out yet counts more than it takes.
	sync := func() {
		if err := exec.Command("sync", "-f", dir).Run(); err != nil {
			t.Fatal(err)
		}
	}
	failures := 0
	for i := 0; failures < 30; i++ {
		path := filepath.Join(dir, fmt.Sprint(i))
		f, err := os.Create(path)
		if err == nil {
			err = errors.Join(unix.Setxattr(path, "user.fill", make([]byte, 3000), 0), f.Close())
		}
		switch {
		case errors.Is(err, unix.ENOSPC):
			failures++
			sync()
		case err != nil:
			t.Fatal(err)
		case i%1000 == 0:
			sync()
		}
	}
}
