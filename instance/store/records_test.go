package store_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"brig/instance/fault"
	"brig/instance/store/profilestore"
	"brig/profiles"
)

func TestRecords(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "profiles")
	s := profilestore.New(dir)
	if p, err := s.Load(profiles.Default); err != nil || p.Name != profiles.Default {
		t.Errorf("without a file the default one is %+v, %v", p, err)
	}
	if _, err := s.Load("small"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that is not there: %v", err)
	}
	for _, size := range []string{"1GiB", "2GiB"} {
		must(t, s.Save(profiles.Profile{Name: "small", Config: map[string]string{"limits.memory": size}}))
		for range 2 { // from the file, and from memory
			if p, err := s.Load("small"); err != nil || p.Config["limits.memory"] != size {
				t.Errorf("read %+v, %v, want what was written: %s", p, err, size)
			}
		}
	}
	for content, class := range map[string]fault.Class{
		`{"version": 1, "config": {}}`:          "",
		`{"version": 2, "config": ["not yet"]}`: fault.Unsupported,
		`{"version": 1, "config": {`:            fault.Internal,
		`{"version": 1, "config": "x"}`:         fault.Internal,
		"":                                      fault.Internal,
	} {
		part := filepath.Join(dir, "part")
		must(t, os.WriteFile(part, []byte(content), 0o600))
		must(t, os.Rename(part, filepath.Join(dir, "other.json")))
		if _, err := s.Load("other"); err != nil && fault.Of(err) != class || err == nil && class != "" {
			t.Errorf("the file %q: %v, want %q", content, err, class)
		}
	}
	must(t, os.WriteFile(filepath.Join(dir, "no name.json"), nil, 0o600))
	if names, err := s.List(); err != nil || !slices.Equal(names, []string{profiles.Default, "other", "small"}) {
		t.Errorf("List = %q, %v", names, err)
	}
	for range 2 {
		must(t, s.Remove("small"))
	}
	if _, err := s.Load("small"); !fault.Is(err, fault.NotFound) {
		t.Errorf("one that was removed: %v", err)
	}
	for _, name := range []string{"../x", "", "a/b"} {
		if err := s.Remove(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("Remove(%q) = %v", name, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
