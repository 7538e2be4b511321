// Package look shows the files in the data of a volume or snapshot, as a guest
// has them, without running anything of the guest: read-only, with owners
// unshifted, without device files or set-user-id programs that work. A tree is
// mounted; a disk is given to the kernel as a block device through
// qemu-storage-daemon, which reads chains of qcow2 files. Views are mounts that
// are attached nowhere, so that they and all that belongs to them end with the
// process; only Mount makes something that stays.
package look

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/mount"
)

// View is what is shown of one volume or snapshot.
type View struct {
	// Dir is the root directory of the files. It belongs to the view.
	Dir *os.File

	mount  *os.File // the handle that keeps the mount
	server *server  // of a disk that is no plain file
}

// Open opens a view of root. The caller closes it.
func Open(ctx context.Context, root storage.Root) (*View, error) {
	return open(ctx, root, &server{})
}

func open(ctx context.Context, root storage.Root, s *server) (*View, error) {
	v := &View{}
	err := v.open(ctx, root, s)
	if err != nil {
		v.Close()
		return nil, fmt.Errorf("cannot look into its files: %w", err)
	}
	return v, nil
}

func (v *View) open(ctx context.Context, root storage.Root, s *server) (err error) {
	if root.DiskPath != "" {
		v.server = s
		v.mount, err = openDisk(ctx, root, s)
	} else {
		v.mount, err = mount.View(mount.Spec{Lower: root.Lower, Upper: root.Upper})
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(v.mount.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	v.Dir = os.NewFile(uintptr(fd), "/")
	return nil
}

// Change gives the root directory of a tree that nothing uses, for changing its files
// with owners as they are on disk. Devices in it do not work. What was mounted for it
// ends when it is closed. The file system on a disk is the work of a guest, and the
// kernel would have to believe more of it to write to it: that is unsupported.
func Change(root storage.Root) (*os.File, error) {
	if root.DiskPath != "" {
		return nil, fault.New(fault.Unsupported, "cannot change the files on a disk: only what runs in the machine can")
	}
	dir, err := mount.Stage(mount.Spec{Lower: root.Lower, Upper: root.Upper, Work: root.Work})
	if err != nil {
		return nil, fmt.Errorf("cannot reach its files: %w", err)
	}
	return dir, nil
}

// Close ends the view.
func (v *View) Close() error {
	var errs []error
	for _, f := range []*os.File{v.Dir, v.mount} {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	if v.server != nil {
		v.server.stop()
	}
	return errors.Join(errs...)
}

// ext4Options keep the kernel from replaying a journal, which would write, and
// from obeying a file system that tells it to panic at the first error.
var ext4Options = [][2]string{{"noload", ""}, {"errors", "continue"}}

// openDisk mounts the file system on a disk.
func openDisk(ctx context.Context, root storage.Root, s *server) (*os.File, error) {
	device, done, err := deviceOf(ctx, root, s)
	if err != nil {
		return nil, err
	}
	// From here on the mount keeps the device, which ends with it.
	defer done()
	view, err := mount.FileSystem("ext4", device, ext4Options)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EUCLEAN) {
		return nil, fault.New(fault.Unsupported, "the disk has no good ext4 file system over its whole size: %w", err)
	}
	return view, err
}

// attachLoop makes a read-only block device of a file. It goes away when nobody
// has it open or mounted.
func attachLoop(file *os.File) (*os.File, error) {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fault.New(fault.Unsupported, "this host has no loop devices: %w", err)
	}
	defer control.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("free loop device: %w", err)
		}
		loop, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, fault.New(fault.Unavailable, "there is no free loop device: %w", err)
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd())}
		config.Info.Flags = unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR
		err = unix.IoctlLoopConfigure(int(loop.Fd()), &config)
		if err == nil {
			return loop, nil
		}
		loop.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("loop device: %w", err)
		}
		// Somebody else was quicker.
	}
	return nil, fault.New(fault.Unavailable, "there is no free loop device")
}
