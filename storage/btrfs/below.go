package btrfs

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// A pool in a file needs space of the file system below even for deleting: nothing is
// written over in btrfs. Where there is none the kernel takes that for a broken disk
// and writes no more. So a reserve lies beside the file, which is given up when
// something is to be deleted there, and made again when there is plenty.

// reserveSuffix is what the name of that file ends with.
const reserveSuffix = ".reserve"

// Bounds of the reserve below, which is a part of the pool's file in between.
const (
	minBelow  = 16 << 20
	maxBelow  = 256 << 20
	belowPart = 64
)

// below is what the file system has that the file of a pool is on.
type below struct {
	reserve string // the path of the reserve
	size    int64  // that it has, or is to have
	there   bool
	free    int64
	blocks  int64 // bytes that the pool's file takes
}

// below tells about the file system below a medium. It is not ok for a device.
func (m Medium) below() (b below, ok bool) {
	var file unix.Stat_t
	var st unix.Statfs_t
	if unix.Stat(m.Source, &file) != nil || file.Mode&unix.S_IFMT != unix.S_IFREG || unix.Statfs(m.Source, &st) != nil {
		return b, false
	}
	b = below{
		reserve: m.Source + reserveSuffix, size: min(max(file.Size/belowPart, minBelow), maxBelow),
		free: int64(st.Bavail) * st.Bsize, blocks: file.Blocks * 512,
	}
	_, err := os.Lstat(b.reserve)
	b.there = err == nil
	return b, true
}

// usable is what the pool's file can still grow by, without what the reserve is to
// have.
func (b below) usable() int64 {
	if b.there {
		return b.free
	}
	return max(b.free-b.size, 0)
}

// reserveBelow makes the reserve where there is plenty of space.
func (m Medium) reserveBelow() error {
	b, ok := m.below()
	if !ok || b.there || b.free < 4*b.size {
		return nil
	}
	f, err := os.OpenFile(b.reserve, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.EROFS) {
		return nil
	}
	if err != nil {
		return err
	}
	err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, b.size), f.Close())
	if err == nil {
		return nil
	}
	err = errors.Join(err, os.Remove(b.reserve))
	if storage.NoSpace(err) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}

// releaseBelow gives the reserve up if there is less than that below.
func (m Medium) releaseBelow() error {
	b, ok := m.below()
	if !ok || !b.there || b.free >= b.size {
		return nil
	}
	if err := pooldir.IgnoreMissing(os.Remove(b.reserve)); err != nil {
		return err
	}
	// Some file systems have the space only then.
	f, err := os.Open(m.Source)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// dropBelow removes the reserve of a pool that is let go of.
func (m Medium) dropBelow() error { return pooldir.IgnoreMissing(os.Remove(m.Source + reserveSuffix)) }

var _ storage.Reliever = (*Pool)(nil)

// Relieve makes room below the pool's file for what deleting writes.
func (p *Pool) Relieve(context.Context) error {
	if p.medium == "" {
		return nil
	}
	if err := (Medium{Source: p.medium, At: p.at}).releaseBelow(); err != nil {
		return fault.New(fault.Of(err), "cannot use the reserve of pool %q: %w", p.name, err)
	}
	return nil
}

// trim gives what is free in the pool's file back to the file system below, and lets
// that make its reserve again. For a device that is its owner's affair.
func (p *Pool) trim() error {
	m := Medium{Source: p.medium, At: p.at}
	b, ok := m.below()
	if p.medium == "" || !ok {
		return nil
	}
	if !b.there || b.free < 4*b.size {
		d, err := p.root.Open(".")
		if err != nil {
			return err
		}
		defer d.Close()
		span := struct{ start, len, minlen uint64 }{len: ^uint64(0)}
		err = ioctl(d, "trimming", iocTrim, unsafe.Pointer(&span))
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EROFS) {
			return err
		}
	}
	return m.reserveBelow()
}
