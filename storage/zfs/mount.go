package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/holders"
	"brig/storage/mount"
)

// mountAt mounts a dataset or a snapshot at a directory, unless it is mounted there, and opens
// it. The mount stays until the volume goes, or the host is started anew.
func (p *Pool) mountAt(ctx context.Context, dataset, target string, flags uintptr) (*os.Root, error) {
	// Guests' set-user-id programs must be out of reach for the host's users.
	if err := os.MkdirAll(target, 0o700); err != nil {
		return nil, err
	}
	err := holders.Outlast(ctx, func() error {
		if mount.Mounted(target) {
			return nil
		}
		err := unix.Mount(dataset, target, "zfs", flags, "")
		if errors.Is(err, unix.EROFS) { // all of the zpool is read-only
			err = unix.Mount(dataset, target, "zfs", flags|unix.MS_RDONLY, "")
		}
		return err
	})
	if err != nil {
		return nil, mountError(ctx, dataset, err)
	}
	return os.OpenRoot(target)
}

// mountPoint is where a dataset or a snapshot of a volume is mounted.
func (p *Pool) mountPoint(object string) string {
	return filepath.Join(p.dir, volumeMount, path.Base(object))
}

// mountError says why a dataset or a snapshot cannot be mounted, and what to do.
func mountError(ctx context.Context, dataset string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fault.New(fault.NotFound, "there is no dataset %q", dataset)
	case errors.Is(err, unix.EACCES):
		root := dataset
		if out, err := zfs(ctx, "get", "-H", "-o", "value", "encryptionroot", dataset); err == nil {
			root = strings.TrimSpace(out)
		}
		return fault.New(fault.Unavailable, "dataset %q is encrypted and its key is not loaded: zfs load-key %s", dataset, root)
	case errors.Is(err, unix.ENODEV):
		return fault.New(fault.Unsupported, "%s", noModule)
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.Busy, "dataset %q is busy", dataset)
	}
	return fmt.Errorf("mounting dataset %q: %w", dataset, err)
}

// noModule is what to do without the kernel's part of ZFS.
const noModule = "the kernel has no ZFS: install zfs-dkms (of Debian's contrib) with the headers of this kernel, or what has its module elsewhere, then modprobe zfs"

// detached opens a dataset or a snapshot through a mount that nobody sees and that
// goes when it is closed. So a look at a thousand volumes leaves no mount behind,
// and no other program's mount namespace can hold one of them.
func (p *Pool) detached(ctx context.Context, object string) (*os.Root, error) {
	dataset := p.full(object)
	var root *os.Root
	err := holders.Outlast(ctx, func() (err error) {
		root, err = openDetached(dataset)
		return err
	})
	if err != nil {
		return nil, mountError(ctx, dataset, err)
	}
	return root, nil
}

func openDetached(dataset string) (*os.Root, error) {
	fsfd, err := unix.Fsopen("zfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fsfd)
	if err := unix.FsconfigSetString(fsfd, "source", dataset); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return nil, fmt.Errorf("fsconfig: %w", err)
	}
	mount, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	// What is opened through the mount keeps it.
	defer unix.Close(mount)
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", mount))
}

// open opens the dataset of a volume where it is mounted, or else detached. It
// tells whether it was mounted.
func (p *Pool) open(ctx context.Context, dataset string) (root *os.Root, used bool, err error) {
	if point := p.mountPoint(dataset); mount.Mounted(point) {
		root, err = os.OpenRoot(point)
		return root, true, err
	}
	root, err = p.detached(ctx, dataset)
	return root, false, err
}

// unmount takes an object out of this mount namespace. That it could not is found
// out when it is destroyed.
func (p *Pool) unmount(object string) {
	point := p.mountPoint(object)
	if mount.Mounted(point) {
		unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}
	os.Remove(point)
}
