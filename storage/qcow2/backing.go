package qcow2

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"brig/instance/fault"
)

// CheckDisk checks the disk file at path and every file below it, before QEMU or
// one of its tools opens them. Backing files stay inside the directory that holds
// the directory of the disk: a pool keeps each of its disks in a directory of its
// own, beside the others. A raw disk may be a block device (see OpenRaw).
func CheckDisk(path, format string) error {
	if format != Qcow2 && format != Raw {
		return fault.New(fault.Invalid, "cannot use the disk file %q: its format is %q, and qcow2 and raw are known", path, format)
	}
	if format == Raw && OnDevice(path) {
		f, _, err := OpenRaw(path, os.O_RDONLY)
		if err != nil {
			return err
		}
		return f.Close()
	}
	above := filepath.Dir(filepath.Dir(path))
	dir, err := os.OpenRoot(above)
	if err != nil {
		return fault.New(fault.Unavailable, "cannot use the disk file %q: %w", path, err)
	}
	defer dir.Close()
	name, err := filepath.Rel(above, path)
	if err != nil {
		return err
	}
	_, err = Chain(dir, name, format)
	return err
}

// SetBacking makes the disk in f, which nobody has open, stand on another backing
// file of the format qcow2, which shows the same as the one it stands on. The new
// name is as long as the old one, so that one write within one sector does it.
func SetBacking(f *os.File, backing string) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := Read(f, st.Size())
	if err != nil {
		return err
	}
	if h.BackingFormat != Qcow2 || len(h.Backing) != len(backing) || h.backingOffset/sector != (h.backingOffset+int64(len(backing))-1)/sector {
		return fault.New(fault.Unsupported, "cannot put the disk on %q: it stands on %q of format %q", backing, h.Backing, h.BackingFormat)
	}
	if _, err := f.WriteAt([]byte(backing), h.backingOffset); err != nil {
		return fmt.Errorf("cannot put the disk on %q: %w", backing, err)
	}
	return f.Sync()
}

// openLink opens one file of a chain.
func openLink(dir *os.Root, name string) (*os.File, os.FileInfo, error) {
	// Without O_NONBLOCK a fifo under that name would hang us.
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, nil, refuseFile(name, err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errors.New("it is not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, nil, refuseFile(name, err)
	}
	return f, st, nil
}

func refuseFile(name string, err error) error {
	return fault.New(fault.Invalid, "cannot use the disk file %q: %w", name, err)
}
