package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/holders"
	"brig/storage/mount"
	"brig/storage/pooldir"
)

// fsType is the file system of trees. It takes a bound on what is written while it is
// mounted, which XFS does not, can be mounted with shifted ids, grows while it is in
// use, and two with one identity do not get in each other's way.
const fsType = "ext4"

// fsOptions make the space of deleted files free in the thin pool, keep a file system
// that met an error from being written to, and the kernel from writing zeros to each
// clone's tables of inodes, which read as zeros already.
const fsOptions = "discard,errors=remount-ro,noinit_itable"

// ownOptions are those of the pool's own volume, which keeps the space it has.
const ownOptions = "errors=remount-ro"

// activate makes sure that a logical volume is active and gives its device, whose
// path is proved to be that device's.
func (p *Pool) activate(ctx context.Context, id string) (device string, err error) {
	name, device := dmName(p.vg, p.lvName(id)), p.devicePath(id)
	for try := 0; ; try++ {
		number, _, err := dmNumber(name)
		if err == nil {
			var st unix.Stat_t
			if err := unix.Stat(device, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFBLK && st.Rdev == number {
				return device, nil
			}
			err = fault.New(fault.Unavailable, "%q is not the device of volume %q; see vgscan --mknodes", device, p.full(id))
		}
		if try > 0 || err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
			return "", err
		}
		if _, err := lvm(ctx, "lvchange", "-An", "-ay", "-K", "--", p.full(id)); err != nil {
			return "", err
		}
	}
}

// isActive tells whether a logical volume has a device.
func (p *Pool) isActive(id string) bool {
	_, _, err := dmNumber(dmName(p.vg, p.lvName(id)))
	return err == nil
}

// mountAt mounts a logical volume at a directory, unless it is mounted there, and
// opens it. The mount stays until the volume goes, nobody used it for long, or the
// host is started anew.
func (p *Pool) mountAt(ctx context.Context, id, target string, flags uintptr) (*os.Root, error) {
	// Guests' set-user-id programs must be out of reach for the host's users.
	if err := os.MkdirAll(target, 0o700); err != nil {
		return nil, err
	}
	err := holders.Outlast(ctx, func() error {
		if mount.Mounted(target) {
			return nil
		}
		device, err := p.activate(ctx, id)
		if err != nil {
			return err
		}
		options := fsOptions
		if id == ownVolume {
			options = ownOptions
		}
		return unix.Mount(device, target, fsType, flags, options)
	})
	if err != nil {
		os.Remove(target)
		return nil, p.mountError(id, err)
	}
	return os.OpenRoot(target)
}

// mountPoint is where a logical volume is mounted.
func (p *Pool) mountPoint(id string) string { return filepath.Join(p.dir, volumeMount, id) }

func (p *Pool) mountError(id string, err error) error {
	name := p.full(id)
	switch {
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.Busy, "the volume %q %s", name, p.inUse(id))
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EUCLEAN):
		return fault.New(fault.Unavailable, "the file system on %q is damaged; see dmesg, and e2fsck", name)
	case errors.Is(err, unix.EIO), errors.Is(err, unix.ENOSPC):
		return fault.New(fault.Unavailable, "the volume %q cannot be read or written, as when its thin pool is full; see dmesg: %w", name, err)
	case errors.Is(err, unix.ENODEV):
		return fault.New(fault.Unsupported, "the kernel has no %s", fsType)
	}
	if _, ok := errors.AsType[unix.Errno](err); ok {
		return fmt.Errorf("mounting %q: %w", name, err)
	}
	return err
}

// mountVolume mounts the logical volume of a tree, or of a snapshot of one, where it
// is looked at, and bounds what may be written to it.
func (p *Pool) mountVolume(ctx context.Context, id string, rec *record, readOnly bool) error {
	release, err := p.use(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	flags := uintptr(0)
	if readOnly {
		flags = unix.MS_RDONLY | unix.MS_NOATIME
	}
	data, err := p.mountAt(ctx, id, p.mountPoint(id), flags)
	if err != nil {
		return pooldir.Damaged(err)
	}
	defer data.Close()
	if readOnly {
		return nil
	}
	return p.bound(ctx, id, rec.Limit)
}

// unmount takes a logical volume out of this mount namespace. Every namespace that was
// made while it was mounted has a copy of the mount, and may keep it as long as it
// lives; with the directory that it is on, the kernel takes it away from all of them.
// That somebody uses it is found out when it is removed.
func (p *Pool) unmount(id string) {
	point := p.mountPoint(id)
	if mount.Mounted(point) {
		unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	os.Remove(point)
	os.Remove(filepath.Join(p.dir, usedDir, id))
}
