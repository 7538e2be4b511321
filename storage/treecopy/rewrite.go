package treecopy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// rewrite makes the data of a file the same, and writes only the blocks that
// differ.
func (s *syncer) rewrite(t trees, name string) error {
	from, err := openFile(t.from, name)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(t.to, name, unix.O_RDWR|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	defer to.Close()
	if t.base < 0 {
		return Rewrite(s.ctx, nil, from, to)
	}
	base, err := openFile(t.base, name)
	if err != nil {
		return Rewrite(s.ctx, nil, from, to) // it is new, or was something else
	}
	defer base.Close()
	if st, err := base.Stat(); err != nil || !st.Mode().IsRegular() {
		return Rewrite(s.ctx, nil, from, to)
	}
	return Rewrite(s.ctx, base, from, to)
}

// Rewrite makes the file to hold what from does, and writes only the blocks that
// differ. If base, which may be nil, is given, to holds what base does: then to is
// not read, and neither are blocks that base and from share on their file system.
func Rewrite(ctx context.Context, base, from, to *os.File) error {
	old := base
	if base == nil {
		old = to
	}
	x, err := newBlocks(from)
	if err != nil {
		return err
	}
	y, err := newBlocks(old)
	if err != nil {
		return err
	}
	if base != nil {
		skip(x, y)
	}
	if err := differences(ctx, x, y, func(at int64, block []byte, size int) error {
		if block == nil {
			return clearRange(to, at, int64(size))
		}
		_, err := to.WriteAt(block, at)
		return err
	}); err != nil {
		return err
	}
	return to.Truncate(x.size)
}

// differences calls each for every block in which two files differ, with what x has
// there. Nil stands for zeros, in the place of size bytes that y has.
func differences(ctx context.Context, x, y *blocks, each func(at int64, block []byte, size int) error) error {
	atX, blockX, err := x.read(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	endX := err != nil
	atY, blockY, err := y.read(ctx)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	endY := err != nil
	for !endX || !endY {
		nextX := !endX && (endY || atX <= atY)
		nextY := !endY && (endX || atY <= atX)
		switch {
		case nextX && nextY && bytes.Equal(blockX, blockY):
		case nextX:
			err = each(atX, blockX, len(blockX))
		default:
			err = each(atY, nil, len(blockY))
		}
		if err == nil && nextX {
			atX, blockX, err = x.read(ctx)
			endX = errors.Is(err, io.EOF)
		}
		if nextX && endX {
			err = nil
		}
		if err == nil && nextY {
			atY, blockY, err = y.read(ctx)
			endY = errors.Is(err, io.EOF)
		}
		if nextY && endY {
			err = nil
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// clearRange makes zeros of a part of a file, without taking space where the file
// system can.
func clearRange(f *os.File, at, size int64) error {
	err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, at, size)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		_, err = f.WriteAt(make([]byte, size), at)
	}
	return err
}

// errDiffers stops a comparison.
var errDiffers = errors.New("they differ")

// SameFile tells whether two files hold the same, wherever they have holes.
func SameFile(ctx context.Context, a, b *os.File) (bool, error) {
	x, err := newBlocks(a)
	if err != nil {
		return false, err
	}
	y, err := newBlocks(b)
	if err != nil || x.size != y.size {
		return false, err
	}
	err = differences(ctx, x, y, func(int64, []byte, int) error { return errDiffers })
	if errors.Is(err, errDiffers) {
		return false, nil
	}
	return err == nil, err
}
