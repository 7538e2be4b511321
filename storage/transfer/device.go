package transfer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// A device does not tell where it has holes, but its pool may: what DiskData leaves
// out is zeros, and is not read. Both states of a disk share what is in one place.

// partsOf gives the parts that may hold data of a disk that tells.
func partsOf(ctx context.Context, r storage.Root) ([]place, error) {
	list, err := r.DiskData(ctx)
	var all []place
	for _, e := range list {
		all = append(all, place{e.Start, e.End})
	}
	return all, err
}

// changedExtents gives the parts that two disks of one pool do not share. Both lists
// are in order.
func changedExtents(a, b []storage.Extent) []place {
	var all []place
	a, b = slices.Clone(a), slices.Clone(b)
	for len(a) > 0 || len(b) > 0 {
		var at, end int64 = -1, -1
		for _, list := range [][]storage.Extent{a, b} {
			if len(list) > 0 && (at < 0 || list[0].Start < at) {
				at = list[0].Start
			}
		}
		for _, list := range [][]storage.Extent{a, b} {
			if len(list) == 0 {
				continue
			}
			// Where it begins, or, if it has begun, where it ends.
			next := list[0].Start
			if next == at {
				next = list[0].End
			}
			if end < 0 || next < end {
				end = next
			}
		}
		x, inA := placeOf(a, at)
		y, inB := placeOf(b, at)
		if inA != inB || x != y {
			all = append(all, place{at, end})
		}
		a, b = from(a, end), from(b, end)
	}
	return merged(all)
}

func placeOf(list []storage.Extent, at int64) (where int64, ok bool) {
	if len(list) == 0 || list[0].Start != at {
		return 0, false
	}
	return list[0].At, true
}

// from cuts off what of a list is before a byte, which no more than the first extent
// is.
func from(list []storage.Extent, at int64) []storage.Extent {
	if len(list) == 0 || list[0].Start >= at {
		return list
	}
	if list[0].End <= at {
		return list[1:]
	}
	list[0].At += at - list[0].Start
	list[0].Start = at
	return list
}

// zeroBlock is the unit in which zeros are left out of a copy.
const zeroBlock = 64 << 10

// copyParts copies the parts of a disk that hold data to an empty file.
func copyParts(ctx context.Context, r storage.Root, target *os.File) error {
	parts, err := partsOf(ctx, r)
	if err != nil {
		return err
	}
	source, size, err := qcow2.OpenRaw(r.DiskPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	zeros := make([]byte, zeroBlock)
	err = pieces(ctx, source, parts, 0, size, func(at int64, data []byte) error {
		for len(data) > 0 {
			n := min(zeroBlock, len(data))
			if !bytes.Equal(data[:n], zeros[:n]) {
				if _, err := target.WriteAt(data[:n], at); err != nil {
					return err
				}
			}
			data, at = data[n:], at+int64(n)
		}
		return nil
	})
	if err != nil {
		return err
	}
	return target.Truncate(size)
}

// pieces reads the parts of a disk between two bytes, and calls each with what they
// hold.
func pieces(ctx context.Context, disk io.ReaderAt, parts []place, start, end int64, each func(at int64, data []byte) error) error {
	buf := make([]byte, pieceSize)
	for _, p := range parts {
		for at := max(start, p.start); at < min(p.end, end); at += pieceSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			data := buf[:min(pieceSize, p.end-at, end-at)]
			if _, err := disk.ReadAt(data, at); err != nil {
				return fmt.Errorf("cannot read %d bytes at byte %d of the disk: %w", len(data), at, err)
			}
			if err := each(at, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// same compares two disks wherever one of them may hold data. If one is larger, it
// has to hold zeros where the other ends.
func (d disk) same(ctx context.Context, a, b storage.Root) error {
	if err := d.changed(ctx, nil, a, b); err != nil {
		return err
	}
	var sizes [2]int64
	for i, r := range []storage.Root{a, b} {
		links, err := chain(r)
		if err != nil {
			return err
		}
		sizes[i] = links[0].Size
	}
	larger := a
	if sizes[1] > sizes[0] {
		larger = b
	}
	if sizes[0] == sizes[1] {
		return nil
	}
	return zerosFrom(ctx, larger, min(sizes[0], sizes[1]))
}

// zerosFrom refuses a disk that holds anything but zeros from a byte on.
func zerosFrom(ctx context.Context, r storage.Root, start int64) (err error) {
	parts, err := written(ctx, r)
	if err != nil {
		return err
	}
	i, err := openImage(ctx, r, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	return pieces(ctx, i, merged(parts), start, i.size(), func(at int64, data []byte) error {
		if len(bytes.TrimLeft(data, "\x00")) == 0 {
			return nil
		}
		return fault.New(fault.Internal, "the copy is not the same as its source: one of the disks goes on at byte %d", at)
	})
}
