package rootfs

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Limits bound what an image may take. A zero field means its default.
type Limits struct {
	Bytes      int64 // of one layer's stream, and of all files together with their holes; 256 GiB
	FileBytes  int64 // of one file with its holes; 128 GiB
	Entries    int   // of all layers; 4 Mi
	PathLength int   // bytes of a name; 4095
	Depth      int   // directories above a file; 255
	Ratio      int64 // of inflated to compressed bytes, once RatioFrom is passed; 250
	RatioFrom  int64 // inflated bytes for which no ratio is asked; 1 GiB
}

func (l Limits) withDefaults() Limits {
	return Limits{
		Bytes:      or(l.Bytes, 256<<30),
		FileBytes:  or(l.FileBytes, 128<<30),
		Entries:    or(l.Entries, 4<<20),
		PathLength: or(l.PathLength, unix.PathMax-1),
		Depth:      or(l.Depth, 255),
		Ratio:      or(l.Ratio, 250),
		RatioFrom:  or(l.RatioFrom, 1<<30),
	}
}

func or[T int | int64](v, byDefault T) T {
	if v == 0 {
		return byDefault
	}
	return v
}

// boundedReader fails, unlike io.LimitedReader, when there is more than allowed.
type boundedReader struct {
	r          io.Reader
	most, left int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, fault.New(fault.Exhausted, "it has more than the allowed %d bytes", b.most)
	}
	return n, err
}

// quoted is a name for an error: of one that has no end, both ends.
func quoted(name string) string {
	const most = 128
	if len(name) <= most {
		return fmt.Sprintf("%q", name)
	}
	return fmt.Sprintf("%q...%q (%d bytes)", name[:most/2], name[len(name)-most/4:], len(name))
}

// readFault classes an error that came out of reading an archive. What the
// stream below said keeps its class; the rest is the archive's fault.
func readFault(err error) error {
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return err
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "it is cut short: %w", err)
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return fault.New(fault.Invalid, "it is no valid tar archive: %w", err)
	}
	return err
}

// classify gives the errors of system calls their class.
func classify(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	errno, ok := errors.AsType[unix.Errno](err)
	if !ok {
		return readFault(err)
	}
	switch errno {
	case unix.ENOSPC, unix.EDQUOT:
		return fault.New(fault.Exhausted, "the file system is full: %w", err)
	case unix.EMLINK, unix.EMFILE, unix.ENFILE, unix.ENOMEM:
		return fault.Wrap(fault.Exhausted, err)
	case unix.EPERM, unix.EACCES:
		return fault.New(fault.Forbidden, "%w: unpacking an image needs root", err)
	case unix.ENAMETOOLONG, unix.EINVAL, unix.ELOOP, unix.EOVERFLOW:
		return fault.Wrap(fault.Invalid, err)
	case unix.EOPNOTSUPP, unix.ENOSYS:
		return fault.Wrap(fault.Unsupported, err)
	case unix.EROFS, unix.EIO:
		return fault.Wrap(fault.Unavailable, err)
	}
	return err
}
