package btrfs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

// taken gives the bytes that are taken on the file system of a pool, when all that
// was deleted is free.
func taken(t *testing.T, p *btrfs.Pool, place string) int64 {
	t.Helper()
	if err := p.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Output(t.Context(), "btrfs", "filesystem", "sync", place); err != nil {
		t.Fatal(err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(place, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Blocks-st.Bfree) * st.Bsize
}

// changes makes changes in a tree as a guest would: files come, go, are written
// anew and in part.
func changes(t *testing.T, random *rand.Rand, tree string) {
	t.Helper()
	for range 12 {
		name := filepath.Join(tree, fmt.Sprint("file", random.IntN(20)))
		data := bytes.Repeat([]byte{byte(random.IntN(256))}, 1<<(10+random.IntN(11)))
		var err error
		switch random.IntN(6) {
		case 0:
			if err = os.Remove(name); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		case 1:
			var f *os.File
			if f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600); err == nil {
				_, err = f.WriteAt(data[:len(data)/2], int64(random.IntN(1<<18)))
				err = errors.Join(err, f.Sync(), f.Close())
			}
		case 2:
			_, err = run.Output(t.Context(), "cp", "--reflink=always", name, name+"-copy")
			if _, stat := os.Stat(name); stat != nil {
				err = nil
			}
		default:
			err = os.WriteFile(name, data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	unix.Sync()
}

// TestUsageOfSnapshotsIsWhatDeletingThemFrees makes a history with ways back, asks
// what each snapshot takes, and deletes them one by one to see what that frees.
// Metadata, of which the file system keeps two copies, are only estimated.
func TestUsageOfSnapshotsIsWhatDeletingThemFrees(t *testing.T) {
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			place := small(t, 1<<30)
			p := openPool(t, place)
			ctx := t.Context()
			random := rand.New(rand.NewPCG(seed, 1))
			image := storage.Key{Class: storage.Images, Name: "image"}
			_, err := p.Create(ctx, image, storage.Tree, func(dir *os.Root) error {
				if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
					return err
				}
				return writeFiles(filepath.Join(dir.Name(), storage.RootName), "base", 10)
			})
			if err != nil {
				t.Fatal(err)
			}
			v, err := p.Clone(ctx, storage.Source{Key: image}, web, storage.CloneOptions{})
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for i := range 14 {
				changes(t, random, v.Root().Upper)
				name := fmt.Sprint("s", i)
				if err := v.Snapshot(ctx, name, storage.SnapshotOptions{}); err != nil {
					t.Fatal(err)
				}
				names = append(names, name)
				if i%5 == 4 {
					if err := v.Restore(ctx, names[random.IntN(len(names))]); err != nil {
						t.Fatal(err)
					}
				}
			}
			changes(t, random, v.Root().Upper)
			taken(t, p, place) // which makes changes of its own
			before := taken(t, p, place)
			for len(names) > 0 {
				usage, err := v.Usage(ctx)
				if err != nil || len(usage.Snapshots) != len(names) {
					t.Fatalf("Usage = %+v, %v, want %d snapshots", usage, err, len(names))
				}
				i := random.IntN(len(names))
				s := usage.Snapshots[i]
				if s.Name != names[i] {
					t.Fatalf("snapshot %d is %q, want %q", i, s.Name, names[i])
				}
				if s.Exclusive > usage.Exclusive || s.Used > usage.Used || s.Exclusive > s.Used {
					t.Errorf("snapshot %+v of a volume with %d and %d", s, usage.Used, usage.Exclusive)
				}
				root, err := v.SnapshotRoot(ctx, s.Name)
				if err != nil {
					t.Fatal(err)
				}
				if files := sizeOf(t, root.Lower[0]); s.Used < files || s.Used > files+files/4+256<<10 {
					t.Errorf("snapshot %q takes %d bytes, its files %d", s.Name, s.Used, files)
				}
				if err := v.DeleteSnapshot(ctx, s.Name); err != nil {
					t.Fatal(err)
				}
				after := taken(t, p, place)
				if freed := before - after; s.Exclusive < freed-256<<10 || s.Exclusive > freed+256<<10 {
					t.Errorf("deleting %q freed %d bytes, its exclusive bytes were %d", s.Name, freed, s.Exclusive)
				}
				before = after
				names = append(names[:i], names[i+1:]...)
			}
		})
	}
}

// sizeOf adds up the blocks of the files in a tree. Copies by reference count once
// on disk, so they are left out.
func sizeOf(t *testing.T, tree string) (total int64) {
	t.Helper()
	entries, err := os.ReadDir(tree)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(tree, e.Name()), &st); err != nil {
			t.Fatal(err)
		}
		if filepath.Ext(e.Name()) == "" && !bytes.HasSuffix([]byte(e.Name()), []byte("-copy")) {
			total += st.Blocks * 512
		}
	}
	return total
}
