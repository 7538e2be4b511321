package outfile

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"brig/instance/fault"
)

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestReplaceIsAllOrNothing(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x")
	put := func(s string, fail error) error {
		return Replace(path, func(f *os.File) error {
			_, err := f.WriteString(s)
			return errors.Join(err, fail)
		})
	}
	if err := put("one", nil); err != nil {
		t.Fatal(err)
	}
	bad := errors.New("no")
	if err := put("half", bad); !errors.Is(err, bad) {
		t.Fatalf("Replace = %v, want the error of what writes", err)
	}
	if got := content(t, path); got != "one" {
		t.Errorf("after a failure the file is %q, want what it was", got)
	}
	if err := put("two", nil); err != nil {
		t.Fatal(err)
	}
	if got := content(t, path); got != "two" {
		t.Errorf("the file is %q, want the new one", got)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != 1 {
		t.Errorf("the folder has %v, %v, want the file alone", list, err)
	}
}

func TestCreateRefusesWhatIsNoFile(t *testing.T) {
	dir := t.TempDir()
	for path, class := range map[string]fault.Class{dir: fault.Invalid, "/dev/null": fault.Invalid, filepath.Join(dir, "no", "x"): fault.NotFound} {
		if _, err := Create(path); fault.Of(err) != class {
			t.Errorf("Create(%q) = %v, want class %q", path, err, class)
		}
	}
}

// TestDiscardWithAName is what happens where files always have names.
func TestDiscardWithAName(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x")
	f, err := os.Create(path + ".part")
	if err != nil {
		t.Fatal(err)
	}
	(&File{File: f, path: path, name: f.Name()}).Discard()
	if list, _ := os.ReadDir(filepath.Dir(path)); len(list) != 0 {
		t.Errorf("left: %v", list)
	}
}
