package qcow2

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// writeByte is the byte of a disk that QEMU locks while it may write to it
// (RAW_LOCK_PERM_BASE + BLK_PERM_WRITE in its file-posix.c).
const writeByte = 100 + 1

// Written tells whether a QEMU has the open disk file, or device, open for writing.
func Written(f *os.File) bool {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: 0, Start: writeByte, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return errors.Is(err, unix.EAGAIN)
	}
	return lock.Type != unix.F_UNLCK
}
