package overlay_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/overlay"
)

const mega = 1 << 20

// TestUsageOfSnapshots writes a known amount before each snapshot, and looks where
// it is counted: by the snapshots that reach it, and as freed with the only one.
func TestUsageOfSnapshots(t *testing.T) {
	for _, content := range []storage.Content{storage.Tree, storage.Disk} {
		t.Run(string(content), func(t *testing.T) {
			ctx := t.Context()
			p, err := overlay.Open(filepath.Join(t.TempDir(), "pool"), overlay.Options{})
			if err != nil {
				t.Fatal(err)
			}
			base, err := p.Create(ctx, storage.Key{Class: storage.Images, Name: "base"}, content, func(dir *os.Root) error {
				if content == storage.Tree {
					return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("rootfs/base", make([]byte, 8*mega), 0o644))
				}
				_, err := run.Output(ctx, "qemu-io", "-f", "raw", "-c", "write -q 0 8M", raw(t, dir, 64*mega))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			clone := func(from storage.Source, name string) storage.Volume {
				v, err := p.Clone(ctx, from, storage.Key{Class: storage.Instances, Name: name}, storage.CloneOptions{})
				if err != nil {
					t.Fatal(err)
				}
				return v
			}
			put := func(v storage.Volume, at int) {
				t.Helper()
				var err error
				if content == storage.Tree {
					err = os.WriteFile(filepath.Join(v.Root().Upper, fmt.Sprint(at)), make([]byte, mega), 0o644)
				} else {
					_, err = run.Output(ctx, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q %dM 1M", at), v.Root().DiskPath)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			usage := func(v storage.Volume) storage.Usage {
				t.Helper()
				u, err := v.Usage(ctx)
				if err != nil {
					t.Fatal(err)
				}
				return u
			}
			about := func(what string, got int64, want int) {
				t.Helper()
				if got < int64(want)*mega || got >= int64(want+1)*mega {
					t.Errorf("%s = %d KiB, want %d MiB and a little", what, got>>10, want)
				}
			}
			v := clone(storage.Source{Key: base.Key()}, "web")
			for i := range 3 {
				put(v, 10+i)
				if err := v.Snapshot(ctx, fmt.Sprint("s", i), storage.SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			put(v, 20)
			u := usage(v)
			about("Used", u.Used, 12)
			about("Exclusive", u.Exclusive, 4)
			if len(u.Snapshots) != 3 {
				t.Fatalf("Usage has %d snapshots, want 3", len(u.Snapshots))
			}
			for i, s := range u.Snapshots {
				if s.Name != fmt.Sprint("s", i) {
					t.Errorf("snapshot %d is %q", i, s.Name)
				}
				about(s.Name+" Used", s.Used, 9+i)
				about(s.Name+" Exclusive", s.Exclusive, 0) // what is now stands on it
			}
			if err := v.Restore(ctx, "s0"); err != nil {
				t.Fatal(err)
			}
			u = usage(v)
			about("Used after a restore", u.Used, 11)
			about("Exclusive after a restore", u.Exclusive, 3)
			about("s0 Exclusive", u.Snapshots[0].Exclusive, 0)
			about("s1 Exclusive", u.Snapshots[1].Exclusive, 0) // s2 stands on it
			about("s2 Exclusive", u.Snapshots[2].Exclusive, 1)
			clone(storage.Source{Key: v.Key(), Snapshot: "s1"}, "copy")
			u = usage(v)
			about("Exclusive with a clone", u.Exclusive, 1)
			if err := v.DeleteSnapshot(ctx, "s2"); err != nil {
				t.Fatal(err)
			}
			about("Exclusive without s2", usage(v).Exclusive, 0)
		})
	}
}

// TestUsageCountsLinkedFilesOnce merges layers, which links the files of trees.
func TestUsageCountsLinkedFilesOnce(t *testing.T) {
	ctx := t.Context()
	p, err := overlay.Open(filepath.Join(t.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "web"}, storage.Tree, func(dir *os.Root) error {
		return dir.Mkdir(storage.RootName, 0o755)
	})
	if err != nil {
		t.Fatal(err)
	}
	snapshots := 0
	for ; !v.(storage.Shortener).Long(); snapshots++ {
		if err := os.WriteFile(filepath.Join(v.Root().Upper, fmt.Sprint(snapshots)), make([]byte, mega), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := v.Snapshot(ctx, fmt.Sprint(snapshots), storage.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.(storage.Shortener).Shorten(ctx, alone); err != nil {
		t.Fatal(err)
	}
	u, err := v.Usage(ctx)
	if err != nil {
		t.Fatal(err)
	}
	whole := int64(snapshots) * mega
	if u.Used < whole || u.Used > whole+2*mega || u.Exclusive != u.Used {
		t.Errorf("Usage = %d used, %d exclusive, want both %d and a little", u.Used, u.Exclusive, whole)
	}
	last := u.Snapshots[snapshots-1]
	if last.Used < whole || last.Used > whole+2*mega || last.Exclusive > mega {
		t.Errorf("the last snapshot has %d used and %d exclusive, want %d and what links take", last.Used, last.Exclusive, whole)
	}
}
