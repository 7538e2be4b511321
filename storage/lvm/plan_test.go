package lvm_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"brig/storage"
	"brig/storage/lvm"
)

// TestAbandon takes back pools that were planned, begun and made on each kind of
// source.
func TestAbandon(t *testing.T) {
	inside(t)
	vg := group(t, 0)
	d := lvm.Driver{Mounts: "/run/lvmtest/abandoned", Files: t.TempDir()}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 1<<30)); err != nil {
		t.Fatal(err)
	}
	device := tool(t, "losetup", "--show", "-f", disk)
	t.Cleanup(func() { tool(t, "losetup", "-d", device) })
	before := state(t)
	for name, config := range map[string]map[string]string{
		"file":   {"size": "1GiB"},
		"device": {"source": device},
		"group":  {"source": vg, "size": "256MiB"},
		"thin":   {"source": vg + "/pool"},
	} {
		t.Run(name, func(t *testing.T) {
			for _, made := range []string{"nothing", "empty file", "file", "pool"} {
				plan := storage.Record{Name: name, Driver: "lvm", Config: config}
				var err error
				if plan.Config, err = d.Plan(t.Context(), plan); err != nil {
					t.Fatal(err)
				}
				source := plan.Config["source"]
				switch {
				case made == "pool":
					if _, err := d.Create(t.Context(), plan); err != nil {
						t.Fatal(err)
					}
				case name == "file" && made != "nothing":
					if err := os.WriteFile(source, nil, 0o600); err != nil {
						t.Fatal(err)
					}
					if made == "file" {
						if err := os.Truncate(source, 1<<30); err != nil {
							t.Fatal(err)
						}
					}
				}
				for range 2 {
					if err := d.Abandon(t.Context(), plan); err != nil {
						t.Errorf("Abandon of %s = %v", made, err)
					}
				}
				if got := state(t); got != before {
					t.Errorf("Abandon of %s left\n%s\nwant\n%s", made, got, before)
				}
				if files, err := os.ReadDir(d.Files); err != nil || len(files) > 0 {
					t.Errorf("Abandon of %s left the files %v, %v", made, files, err)
				}
			}
		})
	}
}
