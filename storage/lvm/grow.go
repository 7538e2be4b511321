package lvm

import (
	"context"
	"strconv"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Grow makes the logical volume of a disk larger, at once and without writing to it:
// what was never written reads as zeros. LVM knows its old or its new size, whoever
// dies when.
func (v *volume) Grow(ctx context.Context, size int64) (err error) {
	defer storage.Fail(&err, "cannot make the disk of volume %q larger", v.key)
	return v.change(ctx, func(h *locked) error {
		p := v.pool
		switch {
		case h.rec.Content != storage.Disk:
			return fault.New(fault.Unsupported, "it holds files, and grows by itself up to its limit")
		case h.rec.readOnly():
			return fault.New(fault.WrongState, "images are read-only")
		}
		if err := p.idle(&h.rec); err != nil {
			return err
		}
		if err := p.activateDisk(ctx, h.rec.Data); err != nil {
			return err
		}
		now, err := deviceSize(p.devicePath(h.rec.Data))
		if err != nil {
			return err
		}
		// A size is rounded up to whole extents when the volume is made, too.
		rounded, err := p.rounded(ctx, size)
		switch {
		case err != nil:
			return err
		case rounded < now:
			return fault.New(fault.Invalid, "it has %d bytes already, and what is behind byte %d would be lost: make a new volume of that size, and copy what you need", now, size)
		case rounded == now:
			return nil
		}
		return p.extend(ctx, h.rec.Data, size)
	})
}

// rounded gives the size that a logical volume of at least size bytes has.
func (p *Pool) rounded(ctx context.Context, size int64) (int64, error) {
	out, err := lvm(ctx, "vgs", "--noheadings", "--units", "b", "--nosuffix", "-o", "vg_extent_size", "--", p.vg)
	if err != nil {
		return 0, pooldir.Damaged(err)
	}
	extent, err := parseBytes("vgs", out)
	if err != nil {
		return 0, err
	}
	extent = max(extent, 1)
	return (size + extent - 1) / extent * extent, nil
}

// extend makes a logical volume larger.
func (p *Pool) extend(ctx context.Context, id string, size int64) error {
	if _, err := lvm(ctx, "lvextend", "-An", "-L", strconv.FormatInt(size, 10)+"b", "--", p.full(id)); err != nil {
		return err
	}
	p.step("volume extended")
	return nil
}
