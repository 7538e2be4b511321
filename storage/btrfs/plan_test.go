package btrfs_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

// TestAbandon takes back pools that were planned, begun and made on each kind of
// source, and plans that met something else there.
func TestAbandon(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a btrfs")
	}
	ctx, place := t.Context(), t.TempDir()
	d := btrfs.Driver{Files: filepath.Join(place, "files"), Mounts: filepath.Join(place, "mounts")}
	disk := filepath.Join(place, "disk")
	if err := errors.Join(os.WriteFile(disk, nil, 0o600), os.Truncate(disk, 256<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := run.Output(ctx, "losetup", "--show", "--find", disk)
	if err != nil {
		t.Fatal(err)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() { exec.Command("losetup", "--detach", device).Run() })
	folder, err := os.MkdirTemp(filepath.Join(os.Getenv(scratch), "fs"), "pool")
	if err != nil {
		t.Fatal(err)
	}
	empty := func(dir string) {
		t.Helper()
		if entries, _ := os.ReadDir(dir); len(entries) > 0 {
			t.Errorf("there is %v in %s", entries, dir)
		}
	}
	for name, config := range map[string]map[string]string{
		"file":   {"size": "256MiB"},
		"device": {"source": device},
		"folder": {"source": folder},
	} {
		t.Run(name, func(t *testing.T) {
			// Another case may have destroyed the pool in it.
			if err := os.MkdirAll(folder, 0o700); err != nil {
				t.Fatal(err)
			}
			for _, made := range []bool{false, true} {
				plan := storage.Record{Name: name, Driver: "btrfs", Config: config}
				var err error
				if plan.Config, err = d.Plan(ctx, plan); err != nil {
					t.Fatal(err)
				}
				if made {
					got, err := d.Create(ctx, plan)
					if err != nil {
						t.Fatal(err)
					}
					for key := range got {
						if strings.HasPrefix(key, "volatile.") {
							t.Errorf("%s is kept of the plan", key)
						}
					}
				}
				for range 2 {
					if err := d.Abandon(ctx, plan); err != nil {
						t.Fatalf("Abandon (made: %v) = %v", made, err)
					}
				}
				empty(d.Files)
				empty(d.Mounts)
				empty(folder)
				if _, err := os.Stat(folder); err != nil {
					t.Errorf("the folder that was there: %v", err)
				}
			}
			// Nothing is in the way of another try.
			record := storage.Record{Name: name, Driver: "btrfs", Config: config}
			if record.Config, err = d.Create(ctx, record); err != nil {
				t.Fatalf("Create after Abandon = %v", err)
			}
			for range 2 { // wherever it stopped
				if err := d.Destroy(ctx, record); err != nil && name != "folder" {
					t.Errorf("Destroy = %v", err)
				}
			}
		})
	}
	// A device that somebody else formats meanwhile is his.
	plan := storage.Record{Name: "late", Driver: "btrfs", Config: map[string]string{"source": device, "force": "true"}}
	if plan.Config, err = d.Plan(ctx, plan); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Output(ctx, "mkfs.btrfs", "-q", "-f", "-L", "mine", device); err != nil {
		t.Fatal(err)
	}
	if err := d.Abandon(ctx, plan); err != nil {
		t.Error(err)
	}
	if out, err := run.Output(ctx, "blkid", "-p", "-s", "LABEL", "-o", "value", device); err != nil || string(out) != "mine\n" {
		t.Errorf("the file system of somebody else is now %q, %v", out, err)
	}
	file := filepath.Join(d.Files, "there.btrfs")
	if err := errors.Join(os.MkdirAll(d.Files, 0o700), os.WriteFile(file, []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Plan(ctx, storage.Record{Name: "there", Config: map[string]string{"size": "256MiB"}}); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Plan where there is a file = %v, want already-exists", err)
	}
}
