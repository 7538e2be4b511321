package qcow2

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// OnDevice tells whether a disk is a block device and not a file: one that a driver
// keeps so is named by its path below /dev.
func OnDevice(path string) bool { return strings.HasPrefix(filepath.Clean(path), "/dev/") }

// OpenRaw opens the raw disk at path and tells its size. A file is a regular one that
// no link stands for; a path below /dev is what names a block device on this host,
// which may be a link.
func OpenRaw(path string, flags int) (*os.File, int64, error) {
	kind, follow := os.FileMode(0), syscall.O_NOFOLLOW
	if OnDevice(path) {
		kind, follow = os.ModeDevice, 0
	}
	// Without O_NONBLOCK a fifo under that name would hang us.
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK|follow, 0)
	if err != nil {
		return nil, 0, refuseFile(path, err)
	}
	st, err := f.Stat()
	size := int64(0)
	switch {
	case err != nil:
	case st.Mode().Type() != kind:
		err = errors.New("it is not a regular file, and no block device below /dev")
	case kind == 0:
		size = st.Size()
	default:
		size, err = f.Seek(0, io.SeekEnd)
	}
	if err == nil && kind != 0 {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		f.Close()
		return nil, 0, refuseFile(path, err)
	}
	return f, size, nil
}
