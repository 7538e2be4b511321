package storagetest

import (
	"encoding/json"
	"fmt"
	"testing"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
)

// testGrow makes a disk larger: what is in it and its snapshots stay, and it is never
// made smaller, but by going back to a snapshot.
func testGrow(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	v := p.create(t, instance("web"), map[string]string{"a": "one"})
	grower, ok := v.(storage.Grower)
	if !d.Grows {
		if ok {
			wants(t, "Grow", grower.Grow(ctx, 2*diskSize), fault.Unsupported)
		}
		d.lacks(t)
		p.holds(t, v, map[string]string{"a": "one"})
		p.clear(t)
		return
	}
	if !ok {
		t.Fatal("it cannot grow")
	}
	snapshot(t, v, "small")
	for range 2 {
		if err := grower.Grow(ctx, 2*diskSize); err != nil {
			t.Fatalf("Grow = %v", err)
		}
	}
	p.sized(t, v.Root(), 2*diskSize)
	if err := p.data.bulk(v.Root(), diskSize+diskSize/2, diskSize/2, 7); err != nil {
		t.Errorf("writing behind the old end = %v", err)
	}
	wants(t, "Grow to less", grower.Grow(ctx, diskSize), fault.Invalid)
	snapshot(t, v, "large")
	v = p.again(t).open(t, v.Key())
	p.holds(t, v, map[string]string{"a": "one"})
	small, err := v.SnapshotRoot(ctx, "small")
	if err != nil {
		t.Fatal(err)
	}
	p.sized(t, small, diskSize)
	copied := p.clone(t, storage.Source{Key: v.Key(), Snapshot: "large"}, instance("copied"))
	p.sized(t, copied.Root(), 2*diskSize)
	read := fmt.Sprintf("read -P 7 %d %d", diskSize+diskSize/2, diskSize/2)
	if _, err := run.Output(ctx, "qemu-io", "-r", "-f", copied.Root().DiskFormat, "-c", read, copied.Root().DiskPath); err != nil {
		t.Errorf("reading behind the old end = %v", err)
	}

	m := start(t, v.Root())
	wants(t, "Grow of a disk in use", v.(storage.Grower).Grow(ctx, 3*diskSize), fault.WrongState)
	m.stop()
	restore(t, v, "small")
	p.sized(t, v.Root(), diskSize)
	p.holds(t, v, map[string]string{"a": "one"})
	restore(t, v, "large")
	p.sized(t, v.Root(), 2*diskSize)
	p.clear(t)
}

// sized checks the size of a disk as a machine sees it.
func (p *pool) sized(t *testing.T, root storage.Root, want int64) {
	t.Helper()
	out, err := run.Output(t.Context(), "qemu-img", "info", "--output=json", "-f", root.DiskFormat, root.DiskPath)
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		Size int64 `json:"virtual-size"`
	}
	if err := json.Unmarshal(out, &info); err != nil {
		t.Fatal(err)
	}
	if info.Size != want {
		t.Errorf("%q has %d bytes, want %d", root.DiskPath, info.Size, want)
	}
}
