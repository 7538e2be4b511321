package zfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"brig/storage"
	"brig/storage/zfs"
)

// TestAbandon takes back pools that were planned, begun and made on each kind of
// source.
func TestAbandon(t *testing.T) {
	inside(t)
	d := zfs.Driver{Mounts: filepath.Join("/run/zfstest", unique()), Files: t.TempDir()}
	mine := zpool(t) + "/" + unique()
	tool(t, "zfs", "create", "-o", "mountpoint=none", mine)
	for name, config := range map[string]map[string]string{
		"file":     {"size": "300MiB"},
		"new":      {"source": zpool(t) + "/" + unique()},
		"existing": {"source": mine},
	} {
		t.Run(name, func(t *testing.T) {
			datasets := func() string { return tool(t, "zfs", "list", "-H", "-o", "name") }
			before := datasets()
			for _, made := range []string{"nothing", "file", "pool"} {
				plan := storage.Record{Name: unique(), Driver: "zfs", Config: config}
				var err error
				if plan.Config, err = d.Plan(t.Context(), plan); err != nil {
					t.Fatal(err)
				}
				switch {
				case made == "file" && name == "file":
					source := plan.Config["source"]
					if err := errors.Join(os.WriteFile(source, nil, 0o600), os.Truncate(source, 300<<20)); err != nil {
						t.Fatal(err)
					}
				case made == "pool":
					if _, err := d.Create(t.Context(), plan); err != nil {
						t.Fatal(err)
					}
				}
				for range 2 {
					if err := d.Abandon(t.Context(), plan); err != nil {
						t.Errorf("Abandon of %s = %v", made, err)
					}
				}
				if got := datasets(); got != before {
					t.Errorf("Abandon of %s left\n%s\nwant\n%s", made, got, before)
				}
				if files, err := os.ReadDir(d.Files); err != nil || len(files) > 0 {
					t.Errorf("Abandon of %s left the files %v, %v", made, files, err)
				}
			}
		})
	}
	tool(t, "zfs", "destroy", "-r", mine)
}
