package treecopy

import (
	"context"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// blockSize is the unit in which files are compared.
const blockSize = 64 << 10

// blocks reads those blocks of a file, or of a block device, that do not hold only
// zeros. Two files of one size are alike if these blocks are, wherever they have
// holes.
type blocks struct {
	file  *os.File
	size  int64
	next  int64
	known spans // not read
	limit int64 // where known ends at the latest
	buf   [blockSize]byte
}

func newBlocks(f *os.File) (*blocks, error) {
	size, err := sizeOf(f)
	if err != nil {
		return nil, err
	}
	return &blocks{file: f, size: size}, nil
}

// sizeOf gives the bytes of a file or a block device.
func sizeOf(f *os.File) (int64, error) {
	st, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case st.Mode().Type() != os.ModeDevice:
		return st.Size(), nil
	}
	return f.Seek(0, io.SeekEnd)
}

// skip leaves out of two files what they share: blocks that are shared as a whole,
// or up to the end of both.
func skip(x, y *blocks) {
	known := shared(x.file, y.file)
	for _, b := range []*blocks{x, y} {
		b.known, b.limit = known, max(x.size, y.size)
	}
}

// read gives the next block and where it begins, or io.EOF. The block is valid
// until the next one is read.
func (b *blocks) read(ctx context.Context) (int64, []byte, error) {
	for b.next < b.size {
		if err := ctx.Err(); err != nil {
			return 0, nil, err
		}
		data, err := unix.Seek(int(b.file.Fd()), b.next, unix.SEEK_DATA)
		switch {
		case errors.Is(err, unix.ENXIO):
			return 0, nil, io.EOF // only a hole is left
		case errors.Is(err, unix.EINVAL):
			data = b.next // a device, which does not tell where it has holes
		case err != nil:
			return 0, nil, err
		}
		at := data / blockSize * blockSize
		b.next = at + blockSize
		if b.known.covers(at, min(b.next, b.limit)) {
			continue
		}
		n, err := b.file.ReadAt(b.buf[:], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, nil, err
		}
		if block := b.buf[:n]; !zero(block) {
			return at, block, nil
		}
	}
	return 0, nil, io.EOF
}

func zero(block []byte) bool {
	for _, c := range block {
		if c != 0 {
			return false
		}
	}
	return true
}
