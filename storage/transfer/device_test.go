package transfer

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

func TestChangedExtents(t *testing.T) {
	type list = [][3]int64
	extents := func(l list) (all []storage.Extent) {
		for _, e := range l {
			all = append(all, storage.Extent{Start: e[0], End: e[1], At: e[2]})
		}
		return all
	}
	for name, c := range map[string]struct {
		a, b list
		want []place
	}{
		"nothing":          {nil, nil, nil},
		"the same":         {list{{0, 10, 50}}, list{{0, 10, 50}}, nil},
		"the same in two":  {list{{0, 10, 50}}, list{{0, 4, 50}, {4, 10, 54}}, nil},
		"one is empty":     {nil, list{{5, 10, 50}, {20, 21, 0}}, []place{{5, 10}, {20, 21}}},
		"written":          {list{{0, 10, 50}}, list{{0, 3, 50}, {3, 5, 90}, {5, 10, 55}}, []place{{3, 5}}},
		"given back":       {list{{0, 10, 50}}, list{{0, 3, 50}, {5, 10, 55}}, []place{{3, 5}}},
		"elsewhere":        {list{{0, 10, 50}}, list{{0, 10, 51}}, []place{{0, 10}}},
		"moved":            {list{{0, 10, 50}}, list{{5, 15, 50}}, []place{{0, 15}}},
		"before and after": {list{{10, 20, 0}}, list{{0, 5, 100}, {10, 20, 0}, {30, 40, 90}}, []place{{0, 5}, {30, 40}}},
	} {
		if got := changedExtents(extents(c.a), extents(c.b)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if got := changedExtents(extents(c.b), extents(c.a)); !slices.Equal(got, c.want) {
			t.Errorf("%s, the other way round: %v, want %v", name, got, c.want)
		}
	}
}

// TestChangedExtentsByByte compares with what a look at each byte tells.
func TestChangedExtentsByByte(t *testing.T) {
	const end = 60
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var lists [2][]storage.Extent
		var bytesOf [2][end]int64
		for i := range lists {
			for at := rng.Int64N(6); at < end; {
				e := storage.Extent{Start: at, End: min(end, at+1+rng.Int64N(8)), At: at + 100*rng.Int64N(2) + 1}
				lists[i] = append(lists[i], e)
				for b := e.Start; b < e.End; b++ {
					bytesOf[i][b] = e.At + b - e.Start
				}
				at = e.End + rng.Int64N(4)
			}
		}
		var want []place
		for b := range int64(end) {
			if bytesOf[0][b] != bytesOf[1][b] {
				want = append(want, place{b, b + 1})
			}
		}
		if got := changedExtents(lists[0], lists[1]); !slices.Equal(got, merged(want)) {
			t.Fatalf("%v and %v differ at %v, want %v", lists[0], lists[1], got, merged(want))
		}
	}
}

// telling makes a disk of 8 MiB that tells where its data is. All else of its file is
// rubbish, which nobody is to read (where one of two disks has data, both are).
func telling(t *testing.T, data map[int64]string) storage.Root {
	t.Helper()
	disk := bytes.Repeat([]byte("rubbish!"), 1<<20)
	var list []storage.Extent
	for at, text := range data {
		part := disk[at : at+64<<10]
		clear(part)
		copy(part, text)
		list = append(list, storage.Extent{Start: at, End: at + 64<<10, At: at})
	}
	slices.SortFunc(list, func(a, b storage.Extent) int { return int(a.Start - b.Start) })
	file := filepath.Join(t.TempDir(), storage.DiskRaw)
	if err := os.WriteFile(file, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	return storage.Root{DiskPath: file, DiskFormat: qcow2.Raw, DiskData: func(context.Context) ([]storage.Extent, error) { return list, nil }}
}

func TestOnlyWhatHoldsDataIsCopied(t *testing.T) {
	first, last := int64(1<<20), int64(8<<20-64<<10)
	from := telling(t, map[int64]string{0: "one", first: "two", last: "three", 3 << 20: ""})
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := (disk{}).write(t.Context(), from, dir); err != nil {
		t.Fatal(err)
	}
	got, err := dir.ReadFile(storage.DiskRaw)
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 8<<20)
	copy(want, "one")
	copy(want[first:], "two")
	copy(want[last:], "three")
	if !bytes.Equal(got, want) {
		t.Error("the copy holds something else than its source")
	}
	copied := storage.Root{DiskPath: filepath.Join(dir.Name(), storage.DiskRaw), DiskFormat: qcow2.Raw}
	proved := func(what string, a, b storage.Root, same bool) {
		t.Helper()
		for _, pair := range [][2]storage.Root{{a, b}, {b, a}} {
			err := (disk{}).prove(t.Context(), pair[0], pair[1])
			if same && err != nil || !same && !fault.Is(err, fault.Internal) {
				t.Errorf("%s: prove = %v, want them to be the same: %v", what, err, same)
			}
		}
	}
	proved("the copy", from, copied, true)
	proved("both tell", from, telling(t, map[int64]string{0: "one", first: "two", last: "three", 3 << 20: ""}), true)
	proved("another text", telling(t, map[int64]string{0: "one", first: "too", last: "three"}), copied, false)
	proved("less", telling(t, map[int64]string{0: "one", first: "two"}), copied, false)
	proved("more", telling(t, map[int64]string{0: "one", first: "two", last: "three", 2 << 20: "four"}), copied, false)

	// A device may be larger, if that is all.
	if err := os.Truncate(copied.DiskPath, 9<<20); err != nil {
		t.Fatal(err)
	}
	proved("a larger copy", from, copied, true)
	f, err := os.OpenFile(copied.DiskPath, os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteAt([]byte("x"), 9<<20-1)
		f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	proved("a larger copy with something at its end", from, copied, false)

	// Of two states only what they do not share is compared.
	now := telling(t, map[int64]string{0: "one", first: "2", last: "three"})
	before := from.DiskData
	now.DiskData = func(context.Context) ([]storage.Extent, error) {
		return []storage.Extent{{Start: 0, End: 64 << 10}, {Start: first, End: first + 64<<10, At: 77 << 20}, {Start: last, End: last + 64<<10, At: last}}, nil
	}
	from.DiskData = func(ctx context.Context) ([]storage.Extent, error) {
		list, err := before(ctx)
		return slices.DeleteFunc(slices.Clone(list), func(e storage.Extent) bool { return e.Start == 3<<20 }), err
	}
	parts, err := places(t.Context(), &from, now, copied)
	if err != nil || !slices.Equal(parts, []place{{first, first + 64<<10}}) {
		t.Errorf("places = %v, %v, want what was written", parts, err)
	}
}
