package overlay_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/overlay"
)

// records is a pool with an instance in which each snapshot has found its own name
// in a file.
type records struct {
	*testing.T
	place string
	pool  *overlay.Pool
	web   storage.Volume
}

func newRecords(t *testing.T, snapshots ...string) *records {
	t.Helper()
	r := &records{T: t, place: filepath.Join(t.TempDir(), "pool")}
	r.open()
	image := storage.Key{Class: storage.Images, Name: "base"}
	_, err := r.pool.Create(t.Context(), image, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("instance.json", []byte("{}"), 0o600))
	})
	if err == nil {
		r.web, err = r.pool.Clone(t.Context(), storage.Source{Key: image}, storage.Key{Class: storage.Instances, Name: "web"}, storage.CloneOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range snapshots {
		r.snapshot(name)
	}
	return r
}

// open opens the pool anew.
func (r *records) open() {
	r.Helper()
	var err error
	if r.pool, err = overlay.Open(r.place, overlay.Options{}); err != nil {
		r.Fatal(err)
	}
	if r.web != nil {
		if r.web, err = r.pool.Open(r.Context(), r.web.Key()); err != nil {
			r.Fatal(err)
		}
	}
}

func (r *records) snapshot(name string) {
	r.Helper()
	err := os.WriteFile(filepath.Join(r.web.Root().Upper, "file"), []byte(name), 0o644)
	if err == nil {
		err = r.web.Snapshot(r.Context(), name, storage.SnapshotOptions{Description: "of " + name})
	}
	if err != nil {
		r.Fatal(err)
	}
}

// has fails unless these are the snapshots, each with what it found. The name before
// a colon is that of a snapshot that was taken under the one after it.
func (r *records) has(want ...string) {
	r.Helper()
	list, err := r.web.Snapshots(r.Context())
	if err != nil {
		r.Fatal(err)
	}
	var got []string
	for _, s := range list {
		root, err := r.web.SnapshotRoot(r.Context(), s.Name)
		if err != nil {
			r.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(root.Lower[0], "file"))
		if err != nil {
			r.Fatal(err)
		}
		name := string(b)
		if s.Description != "of "+name {
			r.Errorf("the snapshot %q is described as %q", s.Name, s.Description)
		}
		if s.Name != name {
			name = s.Name + ":" + name
		}
		got = append(got, name)
	}
	if !slices.Equal(got, want) {
		r.Errorf("Snapshots = %q, want %q", got, want)
	}
}

func (r *records) path(parts ...string) string {
	return filepath.Join(append([]string{r.place, "instances/web"}, parts...)...)
}

// files names the snapshots that have files.
func (r *records) files() (names []string) {
	found, err := filepath.Glob(r.path("snapshots/*.json"))
	if err != nil {
		r.Fatal(err)
	}
	for _, f := range found {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".json"))
	}
	return names
}

// toFormat1 makes of the volume what a brig wrote that knew no files of snapshots.
func (r *records) toFormat1() {
	r.Helper()
	read := func(path string) map[string]any {
		b, err := os.ReadFile(path)
		if err != nil {
			r.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(b, &m); err != nil {
			r.Fatal(err)
		}
		return m
	}
	rec := read(r.path("volume.json"))
	list := rec["snapshots"].([]any)
	for _, name := range r.files() {
		s := read(r.path("snapshots", name+".json"))
		delete(s, "version")
		list = append(list, s)
		if err := os.Remove(r.path("snapshots", name+".json")); err != nil {
			r.Fatal(err)
		}
	}
	rec["snapshots"], rec["version"] = list, 1
	b, err := json.Marshal(rec)
	if err == nil {
		err = os.WriteFile(r.path("volume.json"), b, 0o600)
	}
	if err != nil {
		r.Fatal(err)
	}
}

func TestVolumesOfFormat1AreReadAndBroughtUpToDate(t *testing.T) {
	ctx := t.Context()
	r := newRecords(t, "one", "two", "three", "four")
	r.toFormat1()
	r.open()
	r.has("one", "two", "three", "four")
	if err := r.pool.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(r.web.RenameSnapshot(ctx, "one", "uno"), r.web.DeleteSnapshot(ctx, "two")); err != nil {
		t.Fatal(err)
	}
	if err := r.web.RenameSnapshot(ctx, "three", "uno"); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("RenameSnapshot to a taken name = %v", err)
	}
	r.open()
	r.has("uno:one", "three", "four")
	r.snapshot("five")
	if got, want := r.files(), []string{"four", "three", "uno"}; !slices.Equal(got, want) {
		t.Errorf("after a snapshot, files are there for %q, want %q", got, want)
	}
	if err := r.web.Snapshot(ctx, "uno", storage.SnapshotOptions{}); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Snapshot of a taken name = %v", err)
	}
	if err := errors.Join(r.web.RenameSnapshot(ctx, "uno", "one"), r.web.DeleteSnapshot(ctx, "three"), r.pool.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	r.open()
	r.has("one", "four", "five")
	if err := r.web.Restore(ctx, "one"); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(r.web.Root().Lower[0], "file")); string(b) != "one" || err != nil {
		t.Errorf("after Restore it holds %q, %v", b, err)
	}
}

// TestRecordsDoNotGrow is why a snapshot costs the same however many there are.
func TestRecordsDoNotGrow(t *testing.T) {
	r := newRecords(t, "first", "second")
	size := func() int64 {
		st, err := os.Stat(r.path("volume.json"))
		if err != nil {
			t.Fatal(err)
		}
		return st.Size()
	}
	before := size()
	for i := range 50 {
		if err := r.web.Snapshot(t.Context(), fmt.Sprintf("s%d", i), storage.SnapshotOptions{Description: "of second"}); err != nil {
			t.Fatal(err)
		}
	}
	if after := size(); after > before+100 {
		t.Errorf("the record has %d bytes after 50 more snapshots, %d before", after, before)
	}
	if list, err := r.web.Snapshots(t.Context()); len(list) != 52 || err != nil {
		t.Errorf("there are %d snapshots, %v", len(list), err)
	}
}

// TestDamagedFilesOfSnapshots makes sure that nothing is collected while nobody
// knows what a damaged file named, and that the snapshot can be deleted.
func TestDamagedFilesOfSnapshots(t *testing.T) {
	ctx := t.Context()
	for _, text := range []string{``, `{`, `{"id":"0123456789abcdef"}`, `{"id":"../meta","layers":["0123456789abcdef"]}`, `{"id":"0123456789abcdef","layers":["../x"]}`} {
		r := newRecords(t, "one", "two")
		if err := r.web.Restore(ctx, "two"); err != nil { // leaves a layer to be collected
			t.Fatal(err)
		}
		file := r.path("snapshots/one.json")
		good, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		_, listErr := r.web.Snapshots(ctx)
		for what, err := range map[string]error{"Snapshots": listErr, "Sweep": r.pool.Sweep(ctx), "Restore": r.web.Restore(ctx, "one")} {
			if !fault.Is(err, fault.Unavailable) {
				t.Errorf("%s with the file %q = %v, want unavailable", what, text, err)
			}
		}
		if err := os.WriteFile(file, good, 0o600); err != nil {
			t.Fatal(err)
		}
		r.has("one", "two")
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(r.web.DeleteSnapshot(ctx, "one"), r.pool.Sweep(ctx)); err != nil {
			t.Errorf("DeleteSnapshot of a damaged one, and Sweep = %v", err)
		}
		r.has("two")
	}
}

// TestSnapshotNamesAreNoPaths asks for a snapshot of another volume.
func TestSnapshotNamesAreNoPaths(t *testing.T) {
	r := newRecords(t, "one", "two")
	other, err := r.pool.Clone(t.Context(), storage.Source{Key: r.web.Key()}, storage.Key{Class: storage.Instances, Name: "other"}, storage.CloneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../../web/snapshots/one", "", ".", "one/", strings.Repeat("x", 300)} {
		_, rootErr := other.SnapshotRoot(t.Context(), name)
		for what, err := range map[string]error{"SnapshotRoot": rootErr, "DeleteSnapshot": other.DeleteSnapshot(t.Context(), name), "RenameSnapshot": other.RenameSnapshot(t.Context(), name, "x")} {
			if !fault.Is(err, fault.NotFound) {
				t.Errorf("%s(%.30q) = %v, want not-found", what, name, err)
			}
		}
	}
	r.has("one", "two")
}
