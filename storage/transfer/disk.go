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

	"golang.org/x/sys/unix"

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
	source, err := openDisk(from.DiskPath, os.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := dir.OpenFile(storage.DiskRaw, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(treecopy.File(ctx, source, target), target.Close())
}

// openDisk opens the file of a disk.
func openDisk(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, fault.New(fault.Invalid, "the disk %q is not a file", path))
	}
	return f, nil
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

// resize gives a disk the size of another.
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
	case to.DiskFormat == qcow2.Raw:
		return os.Truncate(to.DiskPath, want)
	case b[0].Size < want:
		return qcow2.Grow(ctx, to.DiskPath, want)
	}
	_, err = run.Output(ctx, "qemu-img", "resize", "-q", "--shrink", "-f", to.DiskFormat, to.DiskPath, fmt.Sprint(want))
	return err
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

func (disk) prove(ctx context.Context, from, to storage.Root) error {
	for _, r := range []storage.Root{from, to} {
		if err := check(r); err != nil {
			return err
		}
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
