package storagetest

import (
	"context"
	"os"
	"testing"
	"time"

	"brig/instance/fault"
	"brig/storage"
)

// maxBulk is the limit that the suite sets.
const maxBulk = 12 << 20

// farOff is a text that is on a disk behind all that bulk writes here.
const farOff = "zzz"

// testLimits writes to a volume with a limit until it fails, and more when the
// limit is lifted.
func testLimits(t *testing.T, d Driver) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	p := smallPool(t, d)
	ctx := t.Context()
	v := p.create(t, instance("web"), map[string]string{farOff: "one"})
	if !d.Limits {
		d.unsupported(t, "SetLimit", storage.SetLimit(ctx, v, maxBulk))
		if limit, err := storage.LimitOf(ctx, v); err != nil || limit.Max != 0 {
			t.Errorf("LimitOf = %+v, %v, want none", limit, err)
		}
		p.holds(t, v, map[string]string{farOff: "one"})
		p.clear(t)
		return
	}
	wants(t, "SetLimit below zero", storage.SetLimit(ctx, v, -1), fault.Invalid)
	p.limit(t, v, maxBulk)
	if err := p.data.bulk(v.Root(), 0, maxBulk/2, 1); err != nil {
		t.Errorf("writing half of the limit = %v", err)
	}
	p.used(t, v, maxBulk/2)
	snapshot(t, v, "s")
	wrote := p.fillLimited(t, v)

	// Where what belongs to a snapshot counts too, there may be no space for one.
	if err := v.Snapshot(ctx, "full", storage.SnapshotOptions{}); err != nil {
		wants(t, "Snapshot at the limit", err, fault.Exhausted)
	} else if err := v.DeleteSnapshot(ctx, "full"); err != nil {
		t.Errorf("DeleteSnapshot at the limit = %v", err)
	}
	// It stays through a restore, and is there for other programs.
	restore(t, v, "s")
	v = p.again(t).open(t, v.Key())
	if limit, err := storage.LimitOf(ctx, v); err != nil || limit.Max != maxBulk {
		t.Errorf("LimitOf after a restore = %+v, %v, want %d", limit, err, maxBulk)
	}
	if err := v.DeleteSnapshot(ctx, "s"); err != nil {
		t.Errorf("DeleteSnapshot of a limited volume = %v", err)
	}
	p.limit(t, v, 0)
	if err := p.data.bulk(v.Root(), wrote, maxBulk, 2); err != nil {
		t.Errorf("writing without a limit = %v", err)
	}
	p.holds(t, v, map[string]string{farOff: "one"})
	p.clear(t)
}

func (p *pool) limit(t *testing.T, v storage.Volume, max int64) {
	t.Helper()
	if err := storage.SetLimit(t.Context(), v, max); err != nil {
		t.Fatalf("SetLimit(%d) = %v", max, err)
	}
	if limit, err := storage.LimitOf(t.Context(), v); err != nil || limit.Max != max {
		t.Errorf("LimitOf = %+v, %v, want %d", limit, err, max)
	}
}

// used waits until a volume is said to hold at least size bytes, which file systems
// count when they get to it.
func (p *pool) used(t *testing.T, v storage.Volume, size int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		limit, err := storage.LimitOf(ctx, v)
		if err != nil {
			t.Fatalf("LimitOf = %v", err)
		}
		if limit.Used >= size {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("LimitOf = %+v, want %d bytes used", limit, size)
		}
	}
}

// fillLimited writes to a volume until it may not, and gives how many bytes are in
// it then.
func (p *pool) fillLimited(t *testing.T, v storage.Volume) int64 {
	t.Helper()
	at := int64(maxBulk / 2)
	for ; at < 2*maxBulk; at += 1 << 20 {
		if err := p.data.bulk(v.Root(), at, 1<<20, 1); err == nil {
			continue
		}
		if at < maxBulk/2+1<<20 {
			t.Errorf("writing failed at %d bytes already", at)
		}
		if info, err := p.Info(t.Context()); err != nil || info.Free < maxBulk {
			t.Errorf("the pool has %d bytes free, %v: this is no matter of the limit", info.Free, err)
		}
		return at
	}
	t.Errorf("%d bytes were written under a limit of %d", at, maxBulk)
	return at
}
