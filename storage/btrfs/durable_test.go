package btrfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

// TestDurable copies the file of a pool as soon as an operation has returned, which
// is what a power failure leaves, and looks whether the copy shows it.
func TestDurable(t *testing.T) {
	m := newMedium(t)
	ctx := t.Context()
	if err := m.Format(ctx, 256<<20, false); err != nil {
		t.Fatal(err)
	}
	p, err := m.Open(ctx, btrfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	base := storage.Key{Class: storage.Images, Name: "base"}
	www := storage.Key{Class: storage.Instances, Name: "www"}
	open := func(p storage.Pool, key storage.Key) storage.Volume {
		v, err := p.Open(ctx, key)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	snapshots := func(want ...string) func(p storage.Pool) bool {
		return func(p storage.Pool) bool {
			list, err := open(p, web).Snapshots(ctx)
			names := []string{}
			for _, s := range list {
				names = append(names, s.Name)
			}
			return err == nil && slices.Equal(names, want)
		}
	}
	has := func(key storage.Key, name, text string) func(p storage.Pool) bool {
		return func(p storage.Pool) bool {
			b, err := os.ReadFile(filepath.Join(filepath.Dir(tree(open(p, key))), name))
			return err == nil && string(b) == text
		}
	}
	for _, step := range []struct {
		name string
		do   func() error
		seen func(p storage.Pool) bool
	}{
		{"create", func() error { makeTree(t, p, base); return nil }, has(base, "instance.json", "{}")},
		{"clone", func() error {
			_, err := p.Clone(ctx, storage.Source{Key: base}, web, storage.CloneOptions{Edit: func(dir *os.Root) error {
				return dir.WriteFile("instance.json", []byte("web"), 0o600)
			}})
			return err
		}, has(web, "instance.json", "web")},
		{"snapshot", func() error {
			err := os.WriteFile(filepath.Join(tree(open(p, web)), "file"), []byte("before"), 0o600)
			return errors.Join(err, open(p, web).Snapshot(ctx, "s", storage.SnapshotOptions{Description: "first"}))
		}, snapshots("s")},
		{"written out by the snapshot", func() error { return nil }, has(web, "rootfs/file", "before")},
		{"rename snapshot", func() error { return open(p, web).RenameSnapshot(ctx, "s", "one") }, snapshots("one")},
		{"second snapshot", func() error { return open(p, web).Snapshot(ctx, "two", storage.SnapshotOptions{}) }, snapshots("one", "two")},
		{"delete snapshot", func() error { return open(p, web).DeleteSnapshot(ctx, "two") }, snapshots("one")},
		{"restore", func() error {
			f, err := os.Create(filepath.Join(tree(open(p, web)), "file"))
			if err == nil {
				_, err = f.WriteString("after")
				err = errors.Join(err, f.Sync(), f.Close())
			}
			return errors.Join(err, open(p, web).Restore(ctx, "one"))
		}, has(web, "rootfs/file", "before")},
		{"metadata after restore", func() error { return nil }, has(web, "instance.json", "web")},
		{"limit", func() error { return open(p, web).(storage.Limiter).SetLimit(ctx, 1<<30) }, func(p storage.Pool) bool {
			limit, err := open(p, web).(storage.Limiter).Limit(ctx)
			return err == nil && limit.Max == 1<<30
		}},
		{"rename", func() error { return p.Rename(ctx, web, "www") }, func(p storage.Pool) bool {
			list, err := p.List(ctx, storage.Instances)
			return err == nil && slices.Equal(list, []string{"www"})
		}},
		{"delete", func() error { return p.Delete(ctx, www) }, func(p storage.Pool) bool {
			list, err := p.List(ctx, storage.Instances)
			return err == nil && len(list) == 0
		}},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s = %v", step.name, err)
		}
		after(t, m, step.name, step.seen)
	}
}

// tree is where the files of a volume are.
func tree(v storage.Volume) string {
	if r := v.Root(); r.Upper != "" {
		return r.Upper
	}
	return v.Root().Lower[0]
}

// after looks at a copy of a pool's file.
func after(t *testing.T, m btrfs.Medium, what string, seen func(p storage.Pool) bool) {
	t.Helper()
	dir := t.TempDir()
	c := btrfs.Medium{Source: filepath.Join(dir, "copy.img"), At: filepath.Join(dir, "copy")}
	if _, err := run.Output(t.Context(), "cp", "--sparse=always", m.Source, c.Source); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(c.At, unix.MNT_DETACH) }) // if there was an error
	p, err := c.Open(t.Context(), btrfs.Options{})
	if err != nil {
		t.Fatalf("after %s and a power failure: %v", what, err)
	}
	if !seen(p) {
		t.Errorf("%s is gone after a power failure", what)
	}
	if err := errors.Join(p.Sweep(t.Context()), p.Close(), c.Unmount(t.Context())); err != nil {
		t.Errorf("after %s and a power failure: %v", what, err)
	}
}
