package transfer

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

// place is a part of a disk.
type place struct{ start, end int64 }

// merged sorts places and joins those that touch.
func merged(all []place) []place {
	slices.SortFunc(all, func(a, b place) int { return cmp.Compare(a.start, b.start) })
	var out []place
	for _, p := range all {
		if n := len(out); n > 0 && p.start <= out[n-1].end {
			out[n-1].end = max(out[n-1].end, p.end)
		} else {
			out = append(out, p)
		}
	}
	return out
}

// places tells where the disk to may differ from the disk from: where from differs
// from base, if to holds what that shows, and else wherever one of them has data.
func places(ctx context.Context, base *storage.Root, from, to storage.Root) ([]place, error) {
	var all []place
	var err error
	switch {
	case base == nil:
		for _, r := range []storage.Root{from, to} {
			var some []place
			if some, err = written(ctx, r); err != nil {
				return nil, err
			}
			all = append(all, some...)
		}
	case base.DiskFormat == qcow2.Raw && from.DiskFormat == qcow2.Raw:
		all, err = changedRaw(ctx, *base, from)
	default:
		all, err = changedLayers(ctx, *base, from)
	}
	return merged(all), err
}

// extent is what qemu-img says of a part of a disk.
type extent struct {
	Start  int64 `json:"start"`
	Length int64 `json:"length"`
	Depth  int   `json:"depth"` // of the file of the chain that it is in
	Zero   bool  `json:"zero"`
}

// extents tells where the parts of a disk are.
func extents(ctx context.Context, r storage.Root) ([]extent, error) {
	if err := check(r); err != nil {
		return nil, err
	}
	out, err := run.Output(ctx, "qemu-img", "map", "--output=json", "-f", r.DiskFormat, r.DiskPath)
	if err != nil {
		return nil, err
	}
	var list []extent
	if err := json.Unmarshal(out, &list); err != nil {
		return nil, fmt.Errorf("cannot understand qemu-img map: %v", err)
	}
	return list, nil
}

// written gives the parts of a disk that hold data.
func written(ctx context.Context, r storage.Root) ([]place, error) {
	if r.DiskData != nil {
		return partsOf(ctx, r)
	}
	list, err := extents(ctx, r)
	var all []place
	for _, e := range list {
		if !e.Zero {
			all = append(all, place{e.Start, e.Start + e.Length})
		}
	}
	return all, err
}

// changedRaw compares two raw disks, block by block where they do not share them. Where
// their pool tells what they share, nothing is read.
func changedRaw(ctx context.Context, base, from storage.Root) ([]place, error) {
	if base.DiskData != nil && from.DiskData != nil {
		before, err := base.DiskData(ctx)
		if err != nil {
			return nil, err
		}
		now, err := from.DiskData(ctx)
		return changedExtents(before, now), err
	}
	a, _, err := qcow2.OpenRaw(base.DiskPath, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer a.Close()
	b, _, err := qcow2.OpenRaw(from.DiskPath, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	var all []place
	err = treecopy.Changed(ctx, a, b, func(start, end int64) error {
		all = append(all, place{start, end})
		return nil
	})
	return all, err
}

// changedLayers gives what is written in those files of either disk that the other
// does not stand on.
func changedLayers(ctx context.Context, base, from storage.Root) ([]place, error) {
	var files [2][]string
	for i, r := range []storage.Root{base, from} {
		links, err := chain(r)
		if err != nil {
			return nil, err
		}
		for _, l := range links {
			files[i] = append(files[i], filepath.Join(cmp.Or(r.DiskDir, filepath.Dir(r.DiskPath)), l.Name))
		}
	}
	common := 0
	for n := min(len(files[0]), len(files[1])); common < n && files[0][len(files[0])-1-common] == files[1][len(files[1])-1-common]; {
		common++
	}
	var all []place
	for i, r := range []storage.Root{base, from} {
		own := len(files[i]) - common
		if own == 0 {
			continue
		}
		list, err := extents(ctx, r)
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			// What is in no file of a chain is told with the depth of the lowest.
			if e.Depth < own || common == 0 {
				all = append(all, place{e.Start, e.Start + e.Length})
			}
		}
	}
	return all, nil
}
