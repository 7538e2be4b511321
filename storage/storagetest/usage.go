package storagetest

import (
	"context"
	"slices"
	"strings"
	"testing"

	"brig/storage"
)

func testUsage(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "one"})
	v := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	before, err := v.Usage(ctx)
	shares := before.Used > before.Exclusive
	if err != nil || before.Exclusive <= 0 || before.Used < before.Exclusive || shares != d.Capabilities.InstantClone {
		t.Errorf("Usage of a clone = %+v, %v, want it to share what it was cloned from: %v", before, err, d.Capabilities.InstantClone)
	}
	// On a disk, this is far from what is there: a driver may count in chunks.
	p.write(t, v, map[string]string{"elsewhere": strings.Repeat("x", textSize)})
	after, err := v.Usage(ctx)
	// What is written over data of the image, in one block with them, replaces them.
	if err != nil || after.Exclusive <= before.Exclusive || after.Used < before.Used {
		t.Errorf("Usage after writing = %+v, %v, before it was %+v", after, err, before)
	}
	p.clone(t, storage.Source{Key: v.Key()}, instance("web2"))
	shared, err := v.Usage(ctx)
	if err != nil || shared.Exclusive > after.Exclusive || shares && shared.Exclusive == after.Exclusive {
		t.Errorf("Usage after it was cloned = %+v, %v, before it was %+v", shared, err, after)
	}
	p.clear(t)
}

// The bytes of a state that is written anew before each snapshot, and how much
// file systems may add to it for themselves.
const (
	bulkSize = 1 << 20
	slack    = 256 << 10
)

// testSnapshotUsage takes three snapshots with data of their own, and one without,
// and deletes them: what goes is what they were said to be freed.
func testSnapshotUsage(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), nil)
	v := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	for i, name := range []string{"s1", "s2", "s3"} {
		if err := p.data.bulk(v.Root(), 0, bulkSize, byte(i+1)); err != nil {
			t.Fatal(err)
		}
		snapshot(t, v, name)
	}
	snapshot(t, v, "s4")
	if err := p.data.bulk(v.Root(), 0, bulkSize, 9); err != nil {
		t.Fatal(err)
	}
	u := p.usage(t, v)
	for _, name := range []string{"s2", "s1", "s4"} {
		i := slices.IndexFunc(u.Snapshots, func(s storage.SnapshotUsage) bool { return s.Name == name })
		if i < 0 {
			return // was said already
		}
		s := u.Snapshots[i]
		if s.Used < bulkSize {
			t.Errorf("%s uses %d bytes, want %d and more", name, s.Used, bulkSize)
		}
		// A chain of layers frees a layer only when it is merged with the next.
		own := name != "s4" && (d.Capabilities.LiveSnapshots || !d.Capabilities.InstantClone)
		if own && s.Exclusive < bulkSize {
			t.Errorf("%s has %d bytes for itself, want %d and more", name, s.Exclusive, bulkSize)
		}
		if err := v.DeleteSnapshot(ctx, name); err != nil {
			t.Fatalf("DeleteSnapshot(%q) = %v", name, err)
		}
		p.sweep(t)
		after := p.usage(t, v)
		if freed := u.Used - after.Used; freed < s.Exclusive-slack {
			t.Errorf("deleting %s freed %d bytes, it was said to be %d", name, freed, s.Exclusive)
		}
		u = after
	}
	p.clear(t)
}

// usage measures a volume and checks that the figures agree with each other.
func (p *pool) usage(t *testing.T, v storage.Volume) storage.Usage {
	t.Helper()
	u, err := p.open(t, v.Key()).Usage(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatalf("Usage(%q) = %v", v.Key(), err)
	}
	if u.Exclusive < 0 || u.Exclusive > u.Used {
		t.Errorf("Usage = %+v, want no more exclusive than used", u)
	}
	var list []string
	sum := int64(0)
	for _, s := range u.Snapshots {
		list = append(list, s.Name)
		sum += s.Exclusive
		if s.Exclusive < 0 || s.Exclusive > s.Used || s.Used > u.Used {
			t.Errorf("usage of snapshot %s = %+v, of %d bytes of the volume, want exclusive <= used <= the volume's", s.Name, s, u.Used)
		}
	}
	if sum > u.Used {
		t.Errorf("the snapshots have %d bytes for themselves, of %d of the volume", sum, u.Used)
	}
	if want := names(t, v); !slices.Equal(list, want) {
		t.Errorf("Usage speaks of the snapshots %q, want %q", list, want)
	}
	return u
}
