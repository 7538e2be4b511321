package storagetest

import (
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"brig/storage"
)

// testReopen opens the pool anew, as other programs do, while something is half
// done: they see the state before, can work and sweep, and do no harm. Handles from
// before stay good.
func testReopen(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	web := p.create(t, instance("web"), map[string]string{"a": "one"})
	snapshot(t, web, "one")
	other := func(during string) {
		q := p.again(t)
		if got := q.list(t, storage.Instances); !slices.Equal(got, []string{"web"}) {
			t.Errorf("List during %s = %q, want web", during, got)
		}
		v := q.open(t, web.Key())
		q.holds(t, v, map[string]string{"a": "one"})
		q.clone(t, storage.Source{Key: v.Key(), Snapshot: "one"}, custom("beside"))
		if err := errors.Join(q.Delete(ctx, custom("beside")), q.Sweep(ctx)); err != nil {
			t.Errorf("deleting and sweeping during %s = %v", during, err)
		}
	}
	made, err := p.Create(ctx, instance("made"), d.Content, func(dir *os.Root) error {
		err := errors.Join(dir.WriteFile(metaFile, []byte("made"), 0o600), p.data.fill(dir, map[string]string{"a": "made"}))
		other("Create")
		return err
	})
	if err != nil {
		t.Fatalf("Create = %v", err)
	}
	p.holds(t, made, map[string]string{"a": "made"})
	if err := p.Delete(ctx, made.Key()); err != nil {
		t.Fatal(err)
	}
	copied, err := p.Clone(ctx, storage.Source{Key: web.Key()}, instance("copied"), storage.CloneOptions{Edit: func(dir *os.Root) error {
		other("Clone")
		return dir.WriteFile(metaFile, []byte("copied"), 0o600)
	}})
	if err != nil {
		t.Fatalf("Clone = %v", err)
	}
	p.holds(t, copied, map[string]string{"a": "one"})
	if d.Content == storage.Tree {
		err := web.Snapshot(ctx, "live", storage.SnapshotOptions{Live: &storage.Live{Freeze: func(context.Context) (func() error, error) {
			if got := names(t, p.again(t).open(t, web.Key())); !slices.Equal(got, []string{"one"}) {
				t.Errorf("Snapshots while another is taken = %q, want one", got)
			}
			return func() error { return nil }, p.again(t).Sweep(ctx)
		}}})
		if err != nil {
			t.Fatalf("Snapshot = %v", err)
		}
		if err := web.DeleteSnapshot(ctx, "live"); err != nil {
			t.Errorf("DeleteSnapshot = %v", err)
		}
	}

	// A handle sees what was done through another.
	p.write(t, web, map[string]string{"a": "two"})
	q := p.again(t)
	v := q.open(t, web.Key())
	snapshot(t, v, "two")
	restore(t, v, "one")
	q.sweep(t)
	p.holds(t, web, map[string]string{"a": "one"})
	snapshot(t, web, "three")
	restore(t, web, "two")
	if got := names(t, v); !slices.Equal(got, []string{"one", "two", "three"}) {
		t.Errorf("Snapshots through two handles = %q, want one, two and three", got)
	}
	q.holds(t, v, map[string]string{"a": "two"})
	p.clear(t)
}
