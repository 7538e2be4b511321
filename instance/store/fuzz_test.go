package store

import (
	"encoding/json"
	"os"
	"reflect"
	"testing"

	"brig/instance"
)

// FuzzSpec reads anything as instance.json. What is accepted can be written and read
// again, and says the same.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"0123456789abcdef","type":"container","config":{"limits.cpu":"1"},"devices":{"eth0":{"type":"nic"}}}`))
	f.Add([]byte(`{"version":999,"id":7}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		spec, err := ParseSpec(data, "web")
		if err != nil {
			return
		}
		if !ValidID(spec.ID) || spec.Version > instance.SpecVersion || spec.Name != "web" {
			t.Errorf("accepted %+v", spec)
		}
		again, err := json.Marshal(spec)
		if err != nil {
			t.Fatal(err)
		}
		same, err := ParseSpec(again, "web")
		if err != nil {
			t.Fatalf("ParseSpec(%s) = %v", again, err)
		}
		if once, _ := json.Marshal(same); string(once) != string(again) {
			t.Errorf("%s became %s", again, once)
		}
	})
}

// inFolder gives a folder in which one file holds data.
func inFolder(t *testing.T, name string, data []byte) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	if err := root.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

// FuzzIntent has anything lie in the folder of intents. It is an intent about something,
// by its own name, or it is damaged and can be put aside.
func FuzzIntent(f *testing.F) {
	f.Add([]byte(`{"id":"a","kind":"start","names":["web"],"args":{"ID":"x"},"since":"2026-01-02T03:04:05Z"}   `))
	f.Add([]byte(`{"id":"b","names":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := NewIntents(inFolder(t, "a.json", data).Name())
		list, err := s.List()
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range list {
			if i.ID != "a" || len(i.Names) == 0 {
				t.Errorf("accepted %+v", i)
			}
		}
		damaged := s.Damaged()
		if len(list)+len(damaged) != 1 {
			t.Errorf("there are %d intents and %d damaged ones", len(list), len(damaged))
		}
		for _, d := range damaged {
			if err := s.PutAside(d); err != nil || len(s.Damaged()) != 0 {
				t.Errorf("PutAside = %v", err)
			}
		}
	})
}

// FuzzVolume reads anything as volume.json.
func FuzzVolume(f *testing.F) {
	f.Add([]byte(`{"version":1,"id":"0123456789abcdef","type":"filesystem"}`))
	f.Add([]byte(`{"version":999,"id":[]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := inFolder(t, VolumeFile, data)
		v, err := LoadVolume(root, "data")
		if err != nil {
			return
		}
		if !ValidID(v.ID) || v.Version > instance.VolumeVersion {
			t.Errorf("accepted %+v", v)
		}
		if err := SaveVolume(root, v); err != nil {
			t.Fatal(err)
		}
		if same, err := LoadVolume(root, "data"); err != nil || !reflect.DeepEqual(encoded(t, v), encoded(t, same)) {
			t.Errorf("%+v became %+v, %v", v, same, err)
		}
	})
}

func encoded(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// FuzzIdentity has anything be the id of a brig.
func FuzzIdentity(f *testing.F) {
	f.Add([]byte("0123456789abcdef\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		root := inFolder(t, identityFile, data)
		id, err := Dirs{State: root.Name()}.Identity()
		if (err == nil) != ValidID(id) {
			t.Errorf("Identity = %q, %v", id, err)
		}
	})
}
