package storagetest

import (
	"errors"
	"os"
	"slices"
	"testing"

	"brig/instance/fault"
	"brig/storage"
)

func testClone(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base", "dir/b": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.holds(t, web, map[string]string{"a": "base", "dir/b": "base"})
	dir, err := web.Dir()
	if got := meta(t, dir, err); got != "web" {
		t.Errorf("metadata of the clone = %q, want web", got)
	}
	dir, err = base.Dir()
	if got := meta(t, dir, err); got != "base" {
		t.Errorf("metadata of the source = %q, want base", got)
	}

	// A source with changes, which both have from then on, and then each its own.
	p.write(t, web, map[string]string{"a": "web", "dir": ""})
	if d.Content == storage.Disk {
		p.write(t, web, map[string]string{"dir/b": ""})
	}
	copied := p.clone(t, storage.Source{Key: web.Key()}, instance("copy"))
	third := p.clone(t, storage.Source{Key: copied.Key()}, storage.Key{Class: storage.Custom, Name: "third"})
	for _, v := range []storage.Volume{web, copied, third} {
		p.holds(t, v, map[string]string{"a": "web", "dir/b": ""})
	}
	p.write(t, web, map[string]string{"a": "web again", "new": "web"})
	p.write(t, copied, map[string]string{"a": "", "dir/b": "copy"})
	p.holds(t, base, map[string]string{"a": "base", "dir/b": "base", "new": ""})
	p.holds(t, web, map[string]string{"a": "web again", "dir/b": "", "new": "web"})
	p.holds(t, copied, map[string]string{"a": "", "dir/b": "copy", "new": ""})
	p.holds(t, third, map[string]string{"a": "web", "dir/b": "", "new": ""})

	// Without Edit the metadata are the source's.
	plain, err := p.Clone(ctx, storage.Source{Key: web.Key()}, instance("plain"), storage.CloneOptions{})
	if err != nil {
		t.Fatalf("Clone without Edit = %v", err)
	}
	dir, err = plain.Dir()
	if got := meta(t, dir, err); got != "web" {
		t.Errorf("metadata without Edit = %q, want the source's", got)
	}
	broken := errors.New("cannot edit")
	p.sweep(t)
	before, files := p.list(t, storage.Instances), p.files(t)
	_, err = p.Clone(ctx, storage.Source{Key: web.Key()}, instance("bad"), storage.CloneOptions{Edit: func(*os.Root) error {
		if got := p.list(t, storage.Instances); !slices.Equal(got, before) {
			t.Errorf("List during Edit = %q, want %q", got, before)
		}
		p.sweep(t) // must not take what is being made
		return broken
	}})
	if !errors.Is(err, broken) {
		t.Errorf("Clone = %v, want the error of Edit", err)
	}
	if got := p.list(t, storage.Instances); !slices.Equal(got, before) {
		t.Errorf("List after a failed Edit = %q, want %q", got, before)
	}
	if diff := p.changed(t, files); diff != "" && !p.Pending() {
		t.Errorf("Pending after a failed Edit = false, and it left %s", diff)
	}
	p.sweep(t)
	if diff := p.changed(t, files); diff != "" {
		t.Errorf("a sweep after a failed Edit left %s", diff)
	}
	p.holds(t, web, map[string]string{"a": "web again"})
	p.clear(t)
}

func testCloneOutlivesSource(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.write(t, web, map[string]string{"a": "snapshot"})
	snapshot(t, web, "s")
	p.write(t, web, map[string]string{"a": "web"})
	fromSnapshot := p.clone(t, storage.Source{Key: web.Key(), Snapshot: "s"}, instance("from-snapshot"))
	fromVolume := p.clone(t, storage.Source{Key: web.Key()}, instance("from-volume"))
	check := func() {
		t.Helper()
		p.sweep(t)
		p.holds(t, fromSnapshot, map[string]string{"a": "snapshot"})
		p.holds(t, fromVolume, map[string]string{"a": "web"})
	}
	check()
	if got := names(t, fromSnapshot); len(got) > 0 {
		t.Errorf("a clone has the snapshots %q", got)
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"delete image", func() error { return p.Delete(ctx, base.Key()) }},
		{"delete snapshot", func() error { return web.DeleteSnapshot(ctx, "s") }},
		{"delete source", func() error { return p.Delete(ctx, web.Key()) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s = %v", step.name, err)
		}
		check()
	}
	_, err := p.Clone(ctx, storage.Source{Key: base.Key()}, instance("late"), storage.CloneOptions{})
	wants(t, "Clone of a deleted image", err, fault.NotFound)
	// The image's name is free, and a new image under it has its own data.
	again := p.create(t, image("base"), map[string]string{"a": "new base"})
	p.holds(t, again, map[string]string{"a": "new base"})
	check()
	p.clear(t)
}
