package transfer

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

// disk copies disks. A new one is written by qemu-img, which is always told the
// format; in one that is there, only the blocks that differ are.
type disk struct{ raw bool }

// check refuses a disk whose files are not what they should be before QEMU sees
// them.
func check(r storage.Root) error { return qcow2.CheckDisk(r.DiskPath, r.DiskFormat) }

// chain gives the files of a disk, top first.
func chain(r storage.Root) ([]qcow2.Link, error) {
	if r.DiskFormat == qcow2.Raw {
		f, size, err := qcow2.OpenRaw(r.DiskPath, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		return []qcow2.Link{{Name: filepath.Base(r.DiskPath), Format: qcow2.Raw, Size: size}}, f.Close()
	}
	top := cmp.Or(r.DiskDir, filepath.Dir(r.DiskPath))
	root, err := os.OpenRoot(top)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name, err := filepath.Rel(top, r.DiskPath)
	if err != nil {
		return nil, err
	}
	return qcow2.Chain(root, name, r.DiskFormat)
}

func (d disk) write(ctx context.Context, from storage.Root, dir *os.Root) error {
	if err := check(from); err != nil {
		return err
	}
	name := storage.DiskQcow2
	if d.raw || from.DiskFormat == qcow2.Raw {
		name = storage.DiskRaw
	}
	if name == storage.DiskRaw && from.DiskFormat == qcow2.Raw {
		return copyDisk(ctx, from, dir)
	}
	_, err := run.Output(ctx, "qemu-img", "convert", "-f", from.DiskFormat, "-O", qcow2.FormatOf(name), from.DiskPath, filepath.Join(dir.Name(), name))
	return err
}

// copyDisk copies a raw disk, by sharing its blocks where the file system can.
func copyDisk(ctx context.Context, from storage.Root, dir *os.Root) error {
	source, _, err := qcow2.OpenRaw(from.DiskPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := dir.OpenFile(storage.DiskRaw, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if from.DiskData != nil {
		return errors.Join(copyParts(ctx, from, target), target.Close())
	}
	return errors.Join(treecopy.File(ctx, source, target), target.Close())
}

func (disk) apply(ctx context.Context, base *storage.Root, from, to storage.Root) error {
	if err := resize(ctx, from, to); err != nil {
		return err
	}
	return pairs(ctx, base, from, to, true, func(to image, at int64, want, have []byte) error {
		switch {
		case bytes.Equal(want, have):
			return nil
		case len(bytes.TrimLeft(want, "\x00")) == 0:
			return to.zero(at, int64(len(want)))
		}
		_, err := to.WriteAt(want, at)
		return err
	})
}

func (disk) changed(ctx context.Context, base *storage.Root, from, to storage.Root) error {
	return pairs(ctx, base, from, to, false, func(_ image, at int64, want, have []byte) error {
		if bytes.Equal(want, have) {
			return nil
		}
		return fault.New(fault.Internal, "the copy is not the same as its source: the disks differ near byte %d", at)
	})
}

// fit makes the disk of a volume as large as another, if that is its driver's affair.
func fit(ctx context.Context, v storage.Volume, like storage.Root) error {
	g, ok := v.(storage.Grower)
	if !ok || v.Content() != storage.Disk {
		return nil
	}
	want, err := chain(like)
	if err != nil {
		return err
	}
	have, err := chain(v.Root())
	if err != nil || have[0].Size >= want[0].Size {
		return err
	}
	return g.Grow(ctx, want[0].Size)
}

// resize gives a disk the size of another. A device was made large enough by its
// driver: what it has beyond that is cleared.
func resize(ctx context.Context, from, to storage.Root) error {
	a, err := chain(from)
	if err != nil {
		return err
	}
	b, err := chain(to)
	if err != nil {
		return err
	}
	want := (a[0].Size + 511) &^ 511
	switch {
	case b[0].Size == want:
		return nil
	case qcow2.OnDevice(to.DiskPath):
		return clearFrom(ctx, to, want)
	case to.DiskFormat == qcow2.Raw:
		return os.Truncate(to.DiskPath, want)
	case b[0].Size < want:
		return qcow2.Grow(ctx, to.DiskPath, want)
	}
	return shrink(ctx, to, want)
}

// shrink makes a disk file smaller.
func shrink(ctx context.Context, r storage.Root, size int64) error {
	_, err := run.Output(ctx, "qemu-img", "resize", "-q", "--shrink", "-f", r.DiskFormat, r.DiskPath, fmt.Sprint(size))
	return err
}

// clearFrom makes a disk read as zeros from some byte on.
func clearFrom(ctx context.Context, r storage.Root, at int64) (err error) {
	i, err := openImage(ctx, r, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, i.Close()) }()
	if i.size() < at {
		return fault.New(fault.Unsupported, "the disk has %d bytes, and the other one %d", i.size(), at)
	}
	have := make([]byte, pieceSize)
	for ; at < i.size(); at += pieceSize {
		n := min(pieceSize, i.size()-at)
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := i.ReadAt(have[:n], at); err != nil {
			return err
		}
		if len(bytes.TrimLeft(have[:n], "\x00")) == 0 {
			continue
		}
		if err := i.zero(at, n); err != nil {
			return err
		}
	}
	return nil
}

// pieceSize is how much of a disk is looked at a time.
const pieceSize = 1 << 20

// pairs calls each with what two disks hold in every place where they may differ.
func pairs(ctx context.Context, base *storage.Root, from, to storage.Root, write bool, each func(to image, at int64, want, have []byte) error) (err error) {
	parts, err := places(ctx, base, from, to)
	if err != nil || len(parts) == 0 {
		return err
	}
	a, err := openImage(ctx, from, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.Close()) }()
	b, err := openImage(ctx, to, write)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	want, have := make([]byte, pieceSize), make([]byte, pieceSize)
	end := min(a.size(), b.size())
	for _, p := range parts {
		for at := p.start; at < min(p.end, end); at += pieceSize {
			if err := ctx.Err(); err != nil {
				return err
			}
			n := min(pieceSize, p.end-at, end-at)
			if _, err := a.ReadAt(want[:n], at); err != nil {
				return err
			}
			if _, err := b.ReadAt(have[:n], at); err != nil {
				return err
			}
			if err := each(b, at, want[:n], have[:n]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d disk) prove(ctx context.Context, from, to storage.Root) error {
	for _, r := range []storage.Root{from, to} {
		if err := check(r); err != nil {
			return err
		}
	}
	if from.DiskData != nil || to.DiskData != nil {
		return d.same(ctx, from, to)
	}
	_, err := run.Output(ctx, "qemu-img", "compare", "-f", from.DiskFormat, "-F", to.DiskFormat, from.DiskPath, to.DiskPath)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.ExitCode() == 1 {
		return fault.New(fault.Internal, "the copy is not the same as its source: the disks differ")
	}
	return err
}

func (disk) size(ctx context.Context, from storage.Root) (int64, error) {
	if err := check(from); err != nil {
		return 0, err
	}
	out, err := run.Output(ctx, "qemu-img", "measure", "--output=json", "-f", from.DiskFormat, "-O", "qcow2", from.DiskPath)
	if err != nil {
		return 0, err
	}
	var m struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return 0, fmt.Errorf("cannot understand qemu-img measure: %v", err)
	}
	return m.Required, nil
}
