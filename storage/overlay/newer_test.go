package overlay_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/overlay"
)

// TestVolumeOfANewerBrig has the record of one volume say more than this brig knows:
// nothing of it is touched, and its neighbour is as before.
func TestVolumeOfANewerBrig(t *testing.T) {
	ctx := t.Context()
	place := filepath.Join(t.TempDir(), "pool")
	p, err := overlay.Open(place, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	web, next := storage.Key{Class: storage.Instances, Name: "web"}, storage.Key{Class: storage.Instances, Name: "next"}
	var volumes []storage.Volume
	for _, k := range []storage.Key{web, next} {
		v, err := p.Create(ctx, k, storage.Disk, func(dir *os.Root) error {
			return dir.WriteFile(storage.DiskRaw, make([]byte, 512), 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, v)
	}
	record := filepath.Join(place, "instances/web/volume.json")
	old, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	version, rest, ok := strings.Cut(string(old), ",")
	if !ok || !strings.HasPrefix(version, `{"version":`) {
		t.Fatalf("the record is %s", old)
	}
	if err := os.WriteFile(record, []byte(`{"version":99,`+rest), 0o600); err != nil {
		t.Fatal(err)
	}
	_, openErr := p.Open(ctx, web)
	for what, err := range map[string]error{
		"Open":     openErr,
		"Snapshot": volumes[0].Snapshot(ctx, "s", storage.SnapshotOptions{}),
		"Delete":   p.Delete(ctx, web),
	} {
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "newer brig") || !strings.Contains(err.Error(), "99") {
			t.Errorf("%s of a newer volume = %v, want unsupported, and why", what, err)
		}
	}
	if err := volumes[1].Snapshot(ctx, "s", storage.SnapshotOptions{}); err != nil {
		t.Errorf("Snapshot of its neighbour = %v", err)
	}
	if err := p.Delete(ctx, next); err != nil {
		t.Errorf("Delete of its neighbour = %v", err)
	}
	if err := p.Sweep(ctx); err != nil && !fault.Is(err, fault.Unsupported) {
		t.Errorf("Sweep beside it = %v", err)
	}
	if err := os.WriteFile(record, old, 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := p.Open(ctx, web)
	if err == nil {
		err = v.Snapshot(ctx, "s", storage.SnapshotOptions{})
	}
	if err := errors.Join(err, p.Sweep(ctx)); err != nil {
		t.Errorf("with the record that it had: %v", err)
	}
	if _, err := os.Stat(v.Root().DiskPath); err != nil {
		t.Errorf("its disk: %v", err)
	}
}
