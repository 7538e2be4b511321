package storagetest

import (
	"errors"
	"os"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

// testContents makes a volume of each content, and is told that those the driver
// does not have are unsupported.
func testContents(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	has := map[storage.Content]bool{}
	for _, c := range d.Capabilities.Contents {
		has[c] = true
	}
	if !has[d.Content] {
		t.Errorf("Capabilities.Contents = %q, want %q too", d.Capabilities.Contents, d.Content)
	}
	for _, c := range []storage.Content{storage.Tree, storage.Disk} {
		name := string(c)
		if !has[c] {
			_, err := p.Create(ctx, instance(name), c, func(*os.Root) error { return errors.New("fill was called") })
			d.unsupported(t, "Create of content "+name, err)
			continue
		}
		v, err := p.Create(ctx, instance(name), c, func(dir *os.Root) error { return newAccess(t, c).fill(dir, nil) })
		if err != nil {
			t.Errorf("Create of content %q = %v", c, err)
			continue
		}
		if got := p.again(t).open(t, v.Key()).Content(); got != c {
			t.Errorf("Content = %q, want %q", got, c)
		}
	}
	p.clear(t)
}

// testReadMeta reads metadata files without their directory, where that is
// possible: nothing else can be read that way.
func testReadMeta(t *testing.T, d Driver) {
	p := newPool(t, d)
	v := p.create(t, instance("web"), nil)
	dir, err := v.Dir()
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(dir.Symlink("/etc/passwd", "link"), dir.Mkdir("dir", 0o700), dir.Close()); err != nil {
		t.Fatal(err)
	}
	r, ok := v.(storage.MetaReader)
	if !ok {
		p.clear(t)
		return
	}
	if got, err := r.ReadMeta(metaFile, 3); err != nil || string(got) != "web" {
		t.Errorf("ReadMeta = %q, %v, want web", got, err)
	}
	for what, name := range map[string]string{
		"a link": "link", "a directory": "dir", "a missing file": "none", "the volume's own": "../" + metaFile, "a path": "/etc/passwd", "nothing": "",
	} {
		if got, err := r.ReadMeta(name, 1<<20); err == nil {
			t.Errorf("ReadMeta of %s = %q, want an error", what, got)
		}
	}
	if got, err := r.ReadMeta(metaFile, 2); err == nil {
		t.Errorf("ReadMeta of more than is wanted = %q, want an error", got)
	}
	if err := p.Delete(t.Context(), v.Key()); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadMeta(metaFile, 3); err == nil {
		t.Errorf("ReadMeta of a deleted volume = %q, want an error", got)
	}
	p.clear(t)
}

// testSnapshotFields follows a snapshot with all that it can have through
// everything that can happen to it and its volume.
func testSnapshotFields(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	v := p.create(t, instance("web"), map[string]string{"a": "one"})
	created := time.Date(2031, 2, 3, 4, 5, 6, 7000, time.UTC)
	want := storage.Snapshot{
		Name: "s", Description: "\"quoted\", with\ttabs,\nlines = signs and ümläuts;",
		CreatedAt: created, ExpiresAt: created.Add(36 * time.Hour), Auto: true,
	}
	err := v.Snapshot(ctx, "s", storage.SnapshotOptions{Description: want.Description, CreatedAt: created, ExpiresAt: want.ExpiresAt, Auto: true})
	if err != nil {
		t.Fatalf("Snapshot = %v", err)
	}
	p.write(t, v, map[string]string{"a": "two"})
	root, err := v.SnapshotRoot(ctx, "s")
	if err != nil {
		t.Fatalf("SnapshotRoot = %v", err)
	}
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"taking it", func() error { return nil }},
		{"another snapshot", func() error { return v.Snapshot(ctx, "other", storage.SnapshotOptions{}) }},
		{"renaming it", func() error { want.Name = "renamed"; return v.RenameSnapshot(ctx, "s", "renamed") }},
		{"restoring it", func() error { return v.Restore(ctx, "renamed") }},
		{"restoring another", func() error { return v.Restore(ctx, "other") }},
		{"deleting another", func() error { return v.DeleteSnapshot(ctx, "other") }},
		{"renaming the volume", func() error { return p.Rename(ctx, v.Key(), "www") }},
		{"sweeping", func() error { return p.Sweep(ctx) }},
	} {
		if err := step.do(); err != nil {
			t.Fatalf("%s = %v", step.name, err)
		}
		p = p.again(t)
		key := v.Key()
		if !p.has(t, key) {
			key = instance("www")
		}
		v = p.open(t, key)
		list, err := v.Snapshots(ctx)
		if err != nil || len(list) == 0 {
			t.Fatalf("Snapshots after %s = %+v, %v", step.name, list, err)
		}
		got := list[len(list)-1] // its time is far in the future
		if !got.CreatedAt.Equal(want.CreatedAt) || !got.ExpiresAt.Equal(want.ExpiresAt) {
			t.Errorf("times after %s = %v, %v, want %v, %v", step.name, got.CreatedAt, got.ExpiresAt, want.CreatedAt, want.ExpiresAt)
		}
		got.CreatedAt, got.ExpiresAt = want.CreatedAt, want.ExpiresAt
		if got != want {
			t.Errorf("snapshot after %s = %+v, want %+v", step.name, got, want)
		}
		// Where it is stays as long as names stay.
		if key == instance("web") && got.Name == "s" {
			p.shows(t, "the snapshot after "+step.name, root, map[string]string{"a": "one"})
		}
		now, err := v.SnapshotRoot(ctx, got.Name)
		if err != nil {
			t.Fatalf("SnapshotRoot after %s = %v", step.name, err)
		}
		p.shows(t, "the snapshot after "+step.name, now, map[string]string{"a": "one"})
	}
	// With its new name it is found, and with the old one it is not.
	if root, err = v.SnapshotRoot(ctx, "renamed"); err != nil {
		t.Fatalf("SnapshotRoot = %v", err)
	}
	p.shows(t, "the renamed snapshot", root, map[string]string{"a": "one"})
	_, err = v.SnapshotRoot(ctx, "s")
	wants(t, "SnapshotRoot of the old name", err, fault.NotFound)
	if d.Content == storage.Tree && len(root.Lower) == 0 && root.Upper == "" {
		t.Errorf("SnapshotRoot = %+v, want a topmost directory", root)
	}
	p.clear(t)
}
