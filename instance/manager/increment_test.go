package manager

import (
	"bytes"
	"context"
	"io"
	"slices"
	"strings"
	"testing"

	"brig/instance/fault"
)

func (w *world) exportOf(r BackupRequest) []byte {
	w.t.Helper()
	var file bytes.Buffer
	w.must(w.ExportInstance(w.t.Context(), r, &file))
	return file.Bytes()
}

func (w *world) importOf(name string, files ...[]byte) error {
	var more []io.ReadSeeker
	for _, f := range files[1:] {
		more = append(more, bytes.NewReader(f))
	}
	_, err := w.ImportInstance(w.t.Context(), BackupSource{Name: name, Increments: more}, bytes.NewReader(files[0]))
	return err
}

func (w *world) snapshot(name, snapshot string) {
	w.t.Helper()
	w.must(second(w.CreateSnapshot(w.t.Context(), name, snapshot, SnapshotRequest{})))
}

func TestIncrementsMakeTheInstanceAgain(t *testing.T) {
	w := newWorld(t)
	large := strings.Repeat("what was there first ", 1<<16)
	w.create("web", "one")
	w.write("web", large)
	w.snapshot("web", "s1")
	full := w.exportOf(BackupRequest{Name: "web", Compression: "none"})
	w.write("web", "two")
	w.snapshot("web", "s2")
	w.write("web", "three")
	w.must(w.setKey("web", "user.note", "newest"))
	first := w.exportOf(BackupRequest{Name: "web", Base: "s1", Compression: "none"})
	w.write("web", "four")
	w.snapshot("web", "s3")
	w.write("web", "five")
	next := w.exportOf(BackupRequest{Name: "web", Earlier: bytes.NewReader(first), Compression: "none"})
	if len(first) > 100<<10 || len(next) > 100<<10 || len(full) < len(large) {
		t.Errorf("the files have %d, %d and %d bytes", len(full), len(first), len(next))
	}
	holds := func(name, want string, snapshots ...string) {
		t.Helper()
		w.holds(name, want)
		list, err := w.Snapshots(t.Context(), name)
		w.must(err)
		var names []string
		for _, s := range list {
			names = append(names, s.Name)
		}
		if !slices.Equal(names, snapshots) {
			t.Errorf("%s has the snapshots %q, want %q", name, names, snapshots)
		}
	}
	w.must(w.importOf("db", full, first, next))
	holds("db", "five", "s1", "s2", "s3")
	w.counts("db", "user.note", "newest")
	w.must(w.RestoreSnapshot(t.Context(), "db", "s1", RestoreOptions{}))
	w.holds("db", large)
	w.must(w.RestoreSnapshot(t.Context(), "db", "s2", RestoreOptions{}))
	w.holds("db", "two")
	w.must(w.importOf("part", full, first))
	holds("part", "three", "s1", "s2")
	// One whose base is not the newest snapshot before it stands for what came since.
	again := w.exportOf(BackupRequest{Name: "web", Base: "s1"})
	w.must(w.importOf("again", full, first, again))
	holds("again", "five", "s1", "s2", "s3")

	w.create("other", "other")
	w.snapshot("other", "s1")
	w.write("other", "more")
	strange := w.exportOf(BackupRequest{Name: "other", Base: "s1"})
	before := w.names()
	for name, files := range map[string][][]byte{
		"an increment alone":         {first},
		"an increment to nothing":    {first, next},
		"one is missing":             {full, next},
		"the wrong order":            {full, next, first},
		"of another instance":        {full, strange},
		"a whole file as increment":  {full, full},
		"cut off":                    {full, first[:len(first)-9]},
		"altered":                    {full, altered(first, len(first)/2)},
		"the first altered":          {altered(full, len(full)/2), first},
		"a newer version":            {full, bytes.Replace(first, []byte("brig backup 2"), []byte("brig backup 7"), 1)},
		"says that it is whole":      {bytes.Replace(first, []byte("brig backup 2"), []byte("brig backup 1"), 1)},
		"says that it is not":        {bytes.Replace(full, []byte("brig backup 1"), []byte("brig backup 2"), 1)},
		"something behind it":        {full, append(slices.Clone(first), 0)},
		"another program's":          {full, []byte("PK\x03\x04")},
		"an increment that is empty": {full, nil},
	} {
		err := w.importOf("new", files...)
		if !fault.Is(err, fault.Invalid) && !(name == "a newer version" && fault.Is(err, fault.Unsupported)) {
			t.Errorf("%s: %v, want it refused", name, err)
		}
		if now := w.names(); !slices.Equal(now, before) {
			t.Fatalf("%s: left: %q", name, now)
		}
	}
	pipe := struct{ io.Reader }{bytes.NewReader(full)}
	_, err := w.ImportInstance(t.Context(), BackupSource{Name: "new", Increments: []io.ReadSeeker{bytes.NewReader(first)}}, pipe)
	wants(t, "from a pipe", err, fault.Invalid)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wants(t, "export since nothing", w.ExportInstance(t.Context(), BackupRequest{Name: "web", Base: "nosuch"}, io.Discard), fault.NotFound)
	wants(t, "export since a strange file", w.ExportInstance(t.Context(), BackupRequest{Name: "web", Earlier: bytes.NewReader(strange)}, io.Discard), fault.NotFound)
	wants(t, "export since a damaged file", w.ExportInstance(t.Context(), BackupRequest{Name: "web", Earlier: bytes.NewReader(first[:99])}, io.Discard), fault.Invalid)
	wants(t, "export of the base", w.ExportInstance(t.Context(), BackupRequest{Name: "web", Snapshot: "s1", Base: "s1"}, io.Discard), fault.Invalid)
	if _, err := w.ImportInstance(ctx, BackupSource{Name: "new"}, bytes.NewReader(full)); err == nil {
		t.Error("an import that was given up")
	}
	// A snapshot that has the name and not the data is no base.
	w.must(w.DeleteSnapshot(t.Context(), "web", "s3"))
	w.must(w.DeleteSnapshot(t.Context(), "web", "s2"))
	w.must(w.DeleteSnapshot(t.Context(), "web", "s1"))
	w.snapshot("web", "s1")
	wants(t, "export since what is another now", w.ExportInstance(t.Context(), BackupRequest{Name: "web", Earlier: bytes.NewReader(full)}, io.Discard), fault.NotFound)
}

func altered(file []byte, at int) []byte {
	file = slices.Clone(file)
	file[at] ^= 1
	return file
}
