package boot

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// findDisk waits for the disk with a serial number and gives its device.
func findDisk(serial string, wait time.Duration) (string, error) {
	for end := time.Now().Add(wait); ; time.Sleep(5 * time.Millisecond) {
		files, _ := filepath.Glob("/sys/block/*/serial")
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err == nil && strings.TrimRight(string(b), " \n\x00") == serial {
				return "/dev/" + filepath.Base(filepath.Dir(f)), nil
			}
		}
		if time.Now().After(end) {
			return "", fmt.Errorf("no disk with the serial number %q appeared within %v (is virtio_blk among the modules?)", serial, wait)
		}
	}
}

// mountRoot mounts the root disk and lets its file system fill it, for the disk
// may have grown since the last boot.
func mountRoot(disk string) error {
	if err := os.MkdirAll(newRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(disk, newRoot, "ext4", 0, ""); err != nil {
		return fmt.Errorf("cannot mount the root disk %s: %w", disk, err)
	}
	warn(grow(disk))
	return nil
}

// grow lets a mounted ext4 fill its disk.
func grow(disk string) error {
	d, err := os.Open(disk)
	if err != nil {
		return err
	}
	defer d.Close()
	size, err := d.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	super := make([]byte, 1024)
	if _, err := d.ReadAt(super, 1024); err != nil {
		return err
	}
	have, blockSize, err := extent(super)
	if err != nil {
		return fmt.Errorf("cannot grow the root file system: %w", err)
	}
	want := uint64(size) / blockSize
	if want <= have {
		return nil
	}
	root, err := os.Open(newRoot)
	if err != nil {
		return err
	}
	defer root.Close()
	const resizeFS = 0x40086610 // EXT4_IOC_RESIZE_FS: _IOW('f', 16, __u64)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, root.Fd(), resizeFS, uintptr(unsafe.Pointer(&want))); errno != 0 {
		return fmt.Errorf("cannot grow the root file system from %d to %d blocks: %w", have, want, errno)
	}
	return nil
}

// extent reads from an ext4 superblock how many blocks there are and how large.
func extent(super []byte) (blocks, size uint64, err error) {
	const magic, incompat64 = 0xef53, 0x80
	le := binary.LittleEndian
	shift := le.Uint32(super[0x18:])
	if le.Uint16(super[0x38:]) != magic || shift > 6 {
		return 0, 0, errors.New("it is no ext4")
	}
	blocks = uint64(le.Uint32(super[0x4:]))
	if le.Uint32(super[0x60:])&incompat64 != 0 {
		blocks |= uint64(le.Uint32(super[0x150:])) << 32
	}
	return blocks, 1024 << shift, nil
}
