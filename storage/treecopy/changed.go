package treecopy

import (
	"context"
	"os"
)

// Changed calls each for the parts in which two files differ, in order, in units of
// some blocks. What both share on their file system is not read.
func Changed(ctx context.Context, a, b *os.File, each func(start, end int64) error) error {
	x, err := newBlocks(a)
	if err != nil {
		return err
	}
	y, err := newBlocks(b)
	if err != nil {
		return err
	}
	skip(x, y)
	return differences(ctx, x, y, func(at int64, block []byte, size int) error {
		return each(at, at+int64(max(size, len(block))))
	})
}
