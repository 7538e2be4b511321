package disk

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
)

// Copy makes the raw disk dst, which must not exist, of a disk of a pool: the file
// or device src of format raw or qcow2. Holes stay holes. Errors: exhausted when
// the host's file system is full; unsupported without qemu-img.
func Copy(ctx context.Context, src, format, dst string) error {
	if format != "raw" && format != "qcow2" {
		return fault.New(fault.Invalid, "cannot copy the disk %q: its format is %q", src, format)
	}
	_, err := run.Output(ctx, "qemu-img", "convert", "-q", "-f", format, "-O", "raw", "-S", "64k", src, dst)
	said, ok := errors.AsType[*run.Error](err)
	switch {
	case err == nil:
		return nil
	case fault.Is(err, fault.Unsupported):
		err = fault.New(fault.Unsupported, "%w; install the package qemu-utils", err)
	case ok && strings.Contains(said.Stderr, "No space left on device"):
		err = fault.New(fault.Exhausted, "the host's file system is full: %w", err)
	}
	return fmt.Errorf("cannot copy the disk %q: %w", src, err)
}
