package projectstore

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// FuzzFile has anything lie where a project is. What is accepted can be saved, and is the same.
func FuzzFile(f *testing.F) {
	f.Add([]byte(`{"version":1,"description":"d","config":{"limits.cpu":"1"}}`))
	f.Add([]byte(`{"version":99}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "mine.json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s := New(dir)
		p, err := s.Load("mine")
		if err != nil {
			return
		}
		if p.Name != "mine" {
			t.Errorf("it is called %q", p.Name)
		}
		if err := s.Save(p); err != nil {
			t.Fatal(err)
		}
		if same, err := New(dir).Load("mine"); err != nil || !reflect.DeepEqual(p, same) {
			t.Errorf("%+v became %+v, %v", p, same, err)
		}
	})
}
