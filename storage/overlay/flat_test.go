package overlay_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"brig/storage"
	"brig/storage/overlay"
)

// TestCustomTreesAreOneDirectory goes through all that is done to a volume: what
// several instances mount at once has to stay a single directory.
func TestCustomTreesAreOneDirectory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: copies owners and overlayfs's attributes")
	}
	ctx := t.Context()
	p, err := overlay.Open(t.TempDir(), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := storage.Key{Class: storage.Custom, Name: "data"}
	v, err := p.Create(ctx, key, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("volume.json", []byte("{}"), 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	file := func(v storage.Volume) string {
		t.Helper()
		root := v.Root()
		if root.Upper == "" || root.Work != "" || len(root.Lower) > 0 {
			t.Fatalf("Root of %q = %+v, want one directory", v.Key(), root)
		}
		return filepath.Join(root.Upper, "file")
	}
	write := func(v storage.Volume, text string) {
		t.Helper()
		if err := os.WriteFile(file(v), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	holds := func(v storage.Volume, want string) {
		t.Helper()
		if got, err := os.ReadFile(file(v)); err != nil || string(got) != want {
			t.Errorf("%q holds %q, %v, want %q", v.Key(), got, err, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write(v, "one")
	mounted := file(v)
	frozen := 0
	live := &storage.Live{Freeze: func(context.Context) (func() error, error) {
		frozen++
		return func() error { frozen--; return nil }, nil
	}}
	must(v.Snapshot(ctx, "s1", storage.SnapshotOptions{Live: live}))
	write(v, "two")
	must(v.Snapshot(ctx, "s2", storage.SnapshotOptions{}))
	write(v, "three")
	if frozen != 0 || file(v) != mounted {
		t.Errorf("frozen %d, at %q, want it where it was: %q", frozen, file(v), mounted)
	}
	clone := func(name, snapshot string, to storage.Class, live *storage.Live) storage.Volume {
		t.Helper()
		c, err := p.Clone(ctx, storage.Source{Key: key, Snapshot: snapshot}, storage.Key{Class: to, Name: name}, storage.CloneOptions{Live: live})
		must(err)
		return c
	}
	now, idle, then := clone("now", "", storage.Custom, live), clone("idle", "", storage.Custom, nil), clone("then", "s1", storage.Custom, nil)
	must(v.Restore(ctx, "s1"))
	holds(v, "one")
	must(v.Restore(ctx, "s2"))
	holds(v, "two")
	holds(now, "three")
	holds(idle, "three")
	holds(then, "one")
	write(then, "other")
	must(v.Restore(ctx, "s1"))
	holds(v, "one")
	// An instance's tree is an overlay over the copy.
	if root := clone("web", "s1", storage.Instances, nil).Root(); len(root.Lower) != 1 || root.Upper == "" {
		t.Errorf("Root of an instance = %+v, want an overlay", root)
	}
	again, err := p.Open(ctx, key)
	must(err)
	holds(again, "one")
	must(p.Delete(ctx, key))
	must(p.Sweep(ctx))
	holds(now, "three")
	holds(then, "other")
}
