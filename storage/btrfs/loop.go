package btrfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// loopTries bounds how often somebody else may take a free loop device first.
const loopTries = 100

// device opens the block device of the file system: the source, or the loop device
// that it is used through, which is nil if there is none yet. A file must never be
// used through two: the kernel would take them for two file systems.
func (m Medium) device(source *os.File) (*os.File, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &st); err != nil {
		return nil, err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		return os.OpenFile(m.Source, os.O_RDWR, 0)
	case unix.S_IFREG:
	default:
		return nil, fault.New(fault.Invalid, "it is neither a block device nor a file")
	}
	used, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, dir := range used {
		f, err := os.OpenFile("/dev/"+filepath.Base(filepath.Dir(dir)), os.O_RDWR, 0)
		if err != nil {
			continue
		}
		info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
		if err == nil && info.Device == st.Dev && info.Inode == st.Ino {
			return f, nil
		}
		f.Close()
	}
	return nil, nil
}

// attach is device, but gives a file a loop device.
func (m Medium) attach(source *os.File) (*os.File, error) {
	if f, err := m.device(source); f != nil || err != nil {
		return f, err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "this host has no loop devices: %w", err)
	}
	defer control.Close()
	// The device keeps the file open. With it, it would keep a lock for ever.
	file, err := os.OpenFile(m.Source, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	config := unix.LoopConfig{Fd: uint32(file.Fd())}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], m.Source)
	for range loopTries {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), unix.LOOP_CTL_GET_FREE, 0)
		if errno != 0 {
			return nil, fmt.Errorf("finding a loop device: %w", errno)
		}
		f, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, err
		}
		err = unix.IoctlLoopConfigure(int(f.Fd()), &config)
		if err == nil {
			return f, nil
		}
		f.Close()
		switch {
		case errors.Is(err, unix.EBUSY):
		case errors.Is(err, unix.EINVAL) && config.Info.Flags&unix.LO_FLAGS_DIRECT_IO != 0:
			config.Info.Flags &^= unix.LO_FLAGS_DIRECT_IO // tmpfs, for one, has none
		default:
			return nil, fmt.Errorf("setting up %q: %w", f.Name(), err)
		}
	}
	return nil, fault.New(fault.Busy, "others take each free loop device; try again")
}

// setCapacity tells a loop device that its file has another size.
func setCapacity(device *os.File) error {
	return ioctl(device, "resizing the loop device", unix.LOOP_SET_CAPACITY, unsafe.Pointer(nil))
}
