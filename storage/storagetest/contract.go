package storagetest

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// wants checks the class of an error.
func wants(t *testing.T, what string, err error, class fault.Class) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Errorf("%s = %v (%s), want %s", what, err, fault.Of(err), class)
	}
}

func testContract(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	info, err := p.Info(ctx)
	if err != nil || info.Name == "" || info.Driver == "" || info.Source == "" || info.Limits == "" || info.Total <= 0 || info.Free <= 0 || info.Free > info.Total {
		t.Errorf("Info = %+v, %v", info, err)
	}
	if !reflect.DeepEqual(info.Capabilities, d.Capabilities) {
		t.Errorf("Capabilities = %+v, want %+v", info.Capabilities, d.Capabilities)
	}
	if p.Pending() {
		t.Error("Pending of a new pool = true, want false")
	}
	for _, class := range []storage.Class{storage.Images, storage.Instances, storage.Custom} {
		if got := p.list(t, class); len(got) > 0 {
			t.Errorf("List(%q) of a new pool = %q", class, got)
		}
	}
	_, err = p.Open(ctx, instance("web"))
	wants(t, "Open of a missing volume", err, fault.NotFound)
	wants(t, "Delete of a missing volume", p.Delete(ctx, instance("web")), fault.NotFound)
	wants(t, "Rename of a missing volume", p.Rename(ctx, instance("web"), "db"), fault.NotFound)
	_, err = p.Clone(ctx, storage.Source{Key: image("base")}, instance("web"), storage.CloneOptions{})
	wants(t, "Clone of a missing volume", err, fault.NotFound)

	v := p.create(t, instance("web"), map[string]string{"a": "one"})
	p.create(t, instance("db"), nil)
	p.create(t, image("web"), nil) // a name is taken in its class only
	if v.Key() != instance("web") || v.Content() != d.Content {
		t.Errorf("Create gave %q of %q", v.Key(), v.Content())
	}
	if got := p.list(t, storage.Instances); !slices.Equal(got, []string{"db", "web"}) {
		t.Errorf("List = %q, want db and web", got)
	}
	_, err = p.Create(ctx, instance("web"), d.Content, func(*os.Root) error { return errors.New("fill was called") })
	wants(t, "Create of a taken name", err, fault.AlreadyExists)
	_, err = p.Clone(ctx, storage.Source{Key: instance("db")}, instance("web"), storage.CloneOptions{})
	wants(t, "Clone to a taken name", err, fault.AlreadyExists)
	_, err = p.Clone(ctx, storage.Source{Key: instance("db"), Snapshot: "none"}, instance("new"), storage.CloneOptions{})
	wants(t, "Clone of a missing snapshot", err, fault.NotFound)

	_, err = p.Clone(ctx, storage.Source{Key: instance("db")}, image("new"), storage.CloneOptions{})
	wants(t, "Clone to an image, which is not writable", err, fault.Invalid)

	snapshot(t, v, "s")
	wants(t, "Rename to a taken name", p.Rename(ctx, instance("web"), "db"), fault.AlreadyExists)
	wants(t, "Rename to its own name", p.Rename(ctx, instance("web"), "web"), fault.AlreadyExists)
	if err := p.Rename(ctx, instance("web"), "www"); err != nil {
		t.Fatalf("Rename = %v", err)
	}
	q := p.again(t)
	_, err = q.Open(ctx, instance("web"))
	wants(t, "Open of the old name", err, fault.NotFound)
	v = q.open(t, instance("www"))
	q.holds(t, v, map[string]string{"a": "one"})
	if got := names(t, v); !slices.Equal(got, []string{"s"}) {
		t.Errorf("Snapshots after Rename = %q, want s", got)
	}
	dir, err := v.Dir()
	if got := meta(t, dir, err); got != "web" {
		t.Errorf("metadata after Rename = %q, want web", got)
	}
	if err := p.Delete(ctx, instance("www")); err != nil {
		t.Fatalf("Delete = %v", err)
	}
	wants(t, "Delete again", p.Delete(ctx, instance("www")), fault.NotFound)
	_, err = v.Snapshots(ctx)
	wants(t, "Snapshots of a deleted volume", err, fault.NotFound)
	_, err = v.Dir()
	wants(t, "Dir of a deleted volume", err, fault.NotFound)
	p.create(t, instance("www"), map[string]string{"a": "two"}) // the name is free again
	p.clear(t)
}

func testNames(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	v := p.create(t, instance("web"), nil)
	snapshot(t, v, "s")
	before := p.files(t)
	nothing := func(*os.Root) error { return errors.New("fill was called") }
	for _, bad := range []string{"", ".", "..", "../web", "a/b", "/etc", "-x", ".x", "_x", "a b", "a\x00", "a\n", "ä", "a:b", "a@b", "a*", strings.Repeat("a", 129)} {
		key := instance(bad)
		_, err := p.Create(ctx, key, d.Content, nothing)
		wants(t, "Create of "+bad, err, fault.Invalid)
		_, err = p.Open(ctx, key)
		wants(t, "Open of "+bad, err, fault.Invalid)
		wants(t, "Delete of "+bad, p.Delete(ctx, key), fault.Invalid)
		wants(t, "Rename of "+bad, p.Rename(ctx, key, "new"), fault.Invalid)
		wants(t, "Rename to "+bad, p.Rename(ctx, instance("web"), bad), fault.Invalid)
		_, err = p.Clone(ctx, storage.Source{Key: instance("web")}, key, storage.CloneOptions{})
		wants(t, "Clone to "+bad, err, fault.Invalid)
		_, err = p.Clone(ctx, storage.Source{Key: key}, instance("new"), storage.CloneOptions{})
		wants(t, "Clone of "+bad, err, fault.Invalid)
		wants(t, "Snapshot "+bad, v.Snapshot(ctx, bad, storage.SnapshotOptions{}), fault.Invalid)
		wants(t, "RenameSnapshot to "+bad, v.RenameSnapshot(ctx, "s", bad), fault.Invalid)
	}
	for _, class := range []storage.Class{"", "..", "layers", "Images"} {
		_, err := p.Open(ctx, storage.Key{Class: class, Name: "web"})
		wants(t, "Open in class "+string(class), err, fault.Invalid)
		_, err = p.List(ctx, class)
		wants(t, "List of class "+string(class), err, fault.Invalid)
	}
	if diff := p.changed(t, before); diff != "" {
		t.Errorf("bad names left %s", diff)
	}
	for _, good := range []string{"a", "7", "A.b-c_d", "a..b", strings.Repeat("a", 128)} {
		snapshot(t, p.create(t, instance(good), nil), good)
	}
	p.clear(t)
}

func testCreate(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	broken := errors.New("the source went away")
	_, err := p.Create(ctx, image("base"), d.Content, func(dir *os.Root) error {
		if names := p.list(t, storage.Images); len(names) > 0 {
			t.Errorf("List while it is filled = %q", names)
		}
		return errors.Join(p.data.fill(dir, map[string]string{"a": "x"}), broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("Create = %v, want the error of fill", err)
	}
	for what, fill := range map[string]func(dir *os.Root) error{
		"nothing":       func(dir *os.Root) error { return nil },
		"metadata only": func(dir *os.Root) error { return dir.WriteFile(metaFile, nil, 0o600) },
		"file as tree":  func(dir *os.Root) error { return dir.WriteFile(storage.RootName, nil, 0o600) },
		"link as tree":  func(dir *os.Root) error { return dir.Symlink("/etc", storage.RootName) },
		"empty disk":    func(dir *os.Root) error { return dir.WriteFile(storage.DiskRaw, nil, 0o600) },
		"link as disk":  func(dir *os.Root) error { return dir.Symlink("/etc/passwd", storage.DiskRaw) },
		"both": func(dir *os.Root) error {
			return errors.Join(trees{}.fill(dir, nil), disks{}.fill(dir, nil))
		},
		"the other content": func(dir *os.Root) error {
			if d.Content == storage.Disk {
				return trees{}.fill(dir, nil)
			}
			return disks{}.fill(dir, nil)
		},
	} {
		_, err := p.Create(ctx, image("base"), d.Content, fill)
		wants(t, "Create with "+what, err, fault.Invalid)
	}
	_, err = p.Create(ctx, image("base"), "tape", func(*os.Root) error { return nil })
	wants(t, "Create of content tape", err, fault.Invalid)
	if diff := p.changed(t, p.empty); diff != "" {
		t.Errorf("failed creations left %s", diff)
	}
	// Images serve clones; they show what they were filled with.
	v := p.create(t, image("base"), map[string]string{"a": "one", "b": "two"})
	p.holds(t, v, map[string]string{"a": "one", "b": "two", "c": ""})
	wants(t, "Restore of a missing snapshot", v.Restore(ctx, "s"), fault.NotFound)
	p.clear(t)
}

// testHostileDisks fills volumes with qcow2 files as a stranger may make them.
func testHostileDisks(t *testing.T, d Driver) {
	p := newPool(t, d)
	if d.Content != storage.Disk {
		t.Log("trees are filled through a handle that cannot be left")
		p.clear(t)
		return
	}
	qcow := func(backing, format string) func(dir *os.Root) error {
		return func(dir *os.Root) error {
			f, err := dir.Create(storage.DiskQcow2)
			if err != nil {
				return err
			}
			return errors.Join(qcow2.Create(f, diskSize, backing, format), f.Close())
		}
	}
	for what, fill := range map[string]func(dir *os.Root) error{
		"a backing file of the host": qcow("/etc/passwd", qcow2.Raw),
		"a backing file beside it":   qcow("instance.json", qcow2.Raw),
		"no header":                  func(dir *os.Root) error { return dir.WriteFile(storage.DiskQcow2, make([]byte, 4096), 0o600) },
		"a link":                     func(dir *os.Root) error { return dir.Symlink("/etc/passwd", storage.DiskQcow2) },
		"a directory":                func(dir *os.Root) error { return dir.Mkdir(storage.DiskQcow2, 0o700) },
	} {
		_, err := p.Create(t.Context(), image("evil"), storage.Disk, fill)
		wants(t, "Create with "+what, err, fault.Invalid)
	}
	v, err := p.Create(t.Context(), instance("good"), storage.Disk, qcow("", ""))
	if err != nil {
		t.Fatalf("Create of a good qcow2 file = %v", err)
	}
	p.write(t, v, map[string]string{"a": "one"})
	p.holds(t, p.clone(t, storage.Source{Key: v.Key()}, instance("more")), map[string]string{"a": "one"})
	p.clear(t)
}

func testSnapshots(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	v := p.create(t, instance("web"), map[string]string{"a": "0"})
	created := time.Date(2031, 2, 3, 4, 5, 6, 7000, time.UTC)
	// The oldest comes first, whenever it was taken.
	for _, s := range []struct {
		name string
		o    storage.SnapshotOptions
	}{
		{"later", storage.SnapshotOptions{CreatedAt: created.Add(time.Hour)}},
		{"sooner", storage.SnapshotOptions{CreatedAt: created, ExpiresAt: created.Add(24 * time.Hour), Description: "before the\nupgrade", Auto: true}},
	} {
		if err := v.Snapshot(ctx, s.name, s.o); err != nil {
			t.Fatalf("Snapshot(%q) = %v", s.name, err)
		}
	}
	before := time.Now()
	snapshot(t, v, "now")
	list, err := p.again(t).open(t, v.Key()).Snapshots(ctx)
	if err != nil || len(list) != 3 {
		t.Fatalf("Snapshots = %+v, %v, want 3", list, err)
	}
	if s := list[0]; s.Name != "now" || s.CreatedAt.Before(before.Add(-time.Second)) || s.CreatedAt.After(time.Now()) || !s.ExpiresAt.IsZero() || s.Auto {
		t.Errorf("first snapshot = %+v, want now", s)
	}
	if s := list[1]; s.Name != "sooner" || !s.CreatedAt.Equal(created) || !s.ExpiresAt.Equal(created.Add(24*time.Hour)) || s.Description != "before the\nupgrade" || !s.Auto {
		t.Errorf("second snapshot = %+v, want sooner", s)
	}
	wants(t, "Snapshot of a taken name", v.Snapshot(ctx, "now", storage.SnapshotOptions{}), fault.AlreadyExists)
	wants(t, "RenameSnapshot to a taken name", v.RenameSnapshot(ctx, "now", "later"), fault.AlreadyExists)
	wants(t, "RenameSnapshot of none", v.RenameSnapshot(ctx, "none", "new"), fault.NotFound)
	wants(t, "DeleteSnapshot of none", v.DeleteSnapshot(ctx, "none"), fault.NotFound)
	wants(t, "Restore of none", v.Restore(ctx, "none"), fault.NotFound)
	_, err = v.SnapshotDir(ctx, "none")
	wants(t, "SnapshotDir of none", err, fault.NotFound)
	_, err = v.SnapshotRoot(ctx, "none")
	wants(t, "SnapshotRoot of none", err, fault.NotFound)

	if err := v.RenameSnapshot(ctx, "sooner", "renamed"); err != nil {
		t.Errorf("RenameSnapshot = %v", err)
	}
	if err := v.DeleteSnapshot(ctx, "now"); err != nil {
		t.Errorf("DeleteSnapshot = %v", err)
	}
	if got := names(t, v); !slices.Equal(got, []string{"renamed", "later"}) {
		t.Errorf("Snapshots = %q, want renamed and later", got)
	}
	wants(t, "DeleteSnapshot again", v.DeleteSnapshot(ctx, "now"), fault.NotFound)
	snapshot(t, v, "now") // the name is free again
	p.clear(t)
}

func testRestore(t *testing.T, d Driver) {
	p := newPool(t, d)
	base := p.create(t, image("base"), map[string]string{"kept": "base", "changed": "base", "gone": "base", "dir/file": "base"})
	v := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	states := map[string]map[string]string{
		"s0": {"kept": "base", "changed": "base", "gone": "base", "dir/file": "base", "new": ""},
		"s1": {"kept": "base", "changed": "one", "gone": "", "dir/file": "", "new": "one"},
		"s2": {"kept": "base", "changed": "two", "gone": "back", "dir/file": "", "new": ""},
		"s3": {"kept": "base", "changed": "two", "gone": "back", "dir/file": "", "new": ""}, // nothing changed since s2
	}
	order := []string{"s0", "s1", "s2", "s3"}
	for _, name := range order {
		p.write(t, v, states[name])
		writeMeta(t, v, "meta of "+name)
		snapshot(t, v, name)
		p.holds(t, v, states[name])
	}
	p.write(t, v, map[string]string{"changed": "unsaved", "new": "unsaved"})
	writeMeta(t, v, "meta of now")
	for _, name := range []string{"s1", "s3", "s0", "s2", "s0"} {
		restore(t, v, name)
		p.holds(t, v, states[name])
		if got := names(t, v); !slices.Equal(got, order) {
			t.Fatalf("Snapshots after Restore(%q) = %q, want %q", name, got, order)
		}
		p.write(t, v, map[string]string{"changed": "after " + name, "new": "after " + name})
		p.sweep(t)
	}
	// A snapshot can be looked into without restoring it.
	for _, name := range order {
		root, err := v.SnapshotRoot(t.Context(), name)
		if err != nil {
			t.Fatalf("SnapshotRoot(%q) = %v", name, err)
		}
		p.shows(t, "snapshot "+name, root, states[name])
	}
	// Metadata are the manager's: they stay, and each snapshot has its own.
	dir, err := v.Dir()
	if got := meta(t, dir, err); got != "meta of now" {
		t.Errorf("metadata after Restore = %q, want that of now", got)
	}
	for _, name := range order {
		dir, err := v.SnapshotDir(t.Context(), name)
		if got := meta(t, dir, err); got != "meta of "+name {
			t.Errorf("metadata of %q = %q", name, got)
		}
	}
	// Neither order of deleting harms the others, nor what is there now.
	p.write(t, v, map[string]string{"changed": "last"})
	for _, name := range []string{"s1", "s0", "s3"} {
		if err := v.DeleteSnapshot(t.Context(), name); err != nil {
			t.Fatalf("DeleteSnapshot(%q) = %v", name, err)
		}
		p.sweep(t)
		p.holds(t, v, map[string]string{"kept": "base", "changed": "last"})
	}
	restore(t, v, "s2")
	p.sweep(t)
	p.holds(t, v, states["s2"])
	p.clear(t)
}

// writeMeta changes the metadata file as the contract asks for.
func writeMeta(t *testing.T, v storage.Volume, text string) {
	t.Helper()
	dir, err := v.Dir()
	if err != nil {
		t.Fatalf("Dir = %v", err)
	}
	defer dir.Close()
	if err := errors.Join(dir.WriteFile(metaFile+".new", []byte(text), 0o600), dir.Rename(metaFile+".new", metaFile)); err != nil {
		t.Fatal(err)
	}
}
