package runner

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// vhostVsockSetGuestCID is _IOW(VHOST_VIRTIO, 0x60, __u64).
const vhostVsockSetGuestCID = 0x4008af60

// openVsock takes an address on AF_VSOCK for the machine, the same each time
// unless another has it. A host without vhost-vsock gives no file and no error:
// the serial port is always there.
func openVsock(id string) (*os.File, uint32, error) {
	f, err := os.OpenFile("/dev/vhost-vsock", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("cannot give the machine a vsock: %w", err)
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	// Far from the small numbers that people give by hand, and below 2^31.
	cid := h.Sum32()&0x3fffffff | 0x10000
	for range 100 {
		n := uint64(cid)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), vhostVsockSetGuestCID, uintptr(unsafe.Pointer(&n)))
		if errno == 0 {
			return f, cid, nil
		}
		err = errno
		if errno != unix.EADDRINUSE {
			break
		}
		cid++
	}
	f.Close()
	return nil, 0, fmt.Errorf("cannot give the machine a vsock address: %w", err)
}
