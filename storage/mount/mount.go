// Package mount puts the tree of a volume together in the mount namespace of the
// calling thread: an overlay of layers, or one directory, with its file ids
// shifted to an instance's id range when it has one. Files keep unshifted ids on
// disk, so instances with different ranges share layers. The caller is on a
// locked thread in a private mount namespace of its own (MS_PRIVATE on /), so that
// what is mounted dies with the namespace; nothing is mounted after an error.
package mount

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Mounted tells whether something is mounted at dir, which is no link.
func Mounted(dir string) bool {
	var here, above unix.Stat_t
	return unix.Lstat(dir, &here) == nil && unix.Lstat(filepath.Dir(dir), &above) == nil && here.Dev != above.Dev
}

// Spec is what to mount. With Lower set it is an overlay of Lower (top layer
// first) under Upper, with Work on Upper's file system; without Upper it is
// read-only. Without Lower, Upper alone is the tree.
type Spec struct {
	Lower []string
	Upper string
	Work  string
}

// IDMap gives the ids 0 to Count-1 in the tree the host's ids from Base on. A
// zero Count leaves ids as they are.
type IDMap struct {
	Base  uint32
	Count uint32
}

// maxLower is the kernel's bound on the layers of one overlay.
const maxLower = 500

// overlayOptions are set always, so that a host's defaults do not matter. A
// directory of a lower layer can be renamed (redirect_dir), which databases in a
// cloned or restored machine need. The index and file handles of layers would
// break when volumes are cloned, and metacopy trusts layers more than it should.
var overlayOptions = [][2]string{
	{"redirect_dir", "on"},
	{"index", "off"},
	{"metacopy", "off"},
	{"nfs_export", "off"},
	{"xino", "auto"},
}

// Tree mounts s at the directory target. Device files in a tree with an id map
// do not work: its instance gets its devices otherwise.
func Tree(target string, s Spec, m IDMap) error {
	var err error
	switch {
	case len(s.Lower) == 0 && s.Upper == "":
		return fault.New(fault.Invalid, "cannot mount %q: there is nothing to mount", target)
	case len(s.Lower) > maxLower:
		return fault.New(fault.Exhausted, "cannot mount %q: it has %d layers and the kernel can stack %d", target, len(s.Lower), maxLower)
	case len(s.Lower) == 0:
		err = single(target, s.Upper, m, 0)
	case len(s.Lower) == 1 && s.Upper == "":
		err = single(target, s.Lower[0], m, unix.MOUNT_ATTR_RDONLY)
	default:
		err = stack(target, s, m)
	}
	if err != nil {
		return fmt.Errorf("cannot mount %q: %w", target, err)
	}
	return nil
}

// attributes are those of the final mount.
func (m IDMap) attributes() uint64 {
	if m.Count > 0 {
		return unix.MOUNT_ATTR_NODEV
	}
	return 0
}

// single mounts one directory.
func single(target, dir string, m IDMap, attributes uint64) error {
	users, err := m.namespace()
	if err != nil {
		return err
	}
	defer users.Close()
	fd, err := detach(dir, users, attributes|m.attributes())
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return attach(fd, target)
}

// stack mounts an overlay. With an id map its layers are mounted shifted first,
// in a tmpfs over target that is taken away before the overlay gets there; the
// overlay keeps mounts of its own of the layers. Kernels before 6.15 do not stack
// layers that are mounted nowhere.
func stack(target string, s Spec, m IDMap) (err error) {
	users, err := m.namespace()
	if err != nil {
		return err
	}
	defer users.Close()
	if err := unix.Mount("brig", target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,nr_inodes=1k,mode=700"); err != nil {
		return fmt.Errorf("tmpfs: %w", err)
	}
	staged := true
	unstage := func() error {
		if !staged {
			return nil
		}
		staged = false
		return unix.Unmount(target, unix.MNT_DETACH)
	}
	defer func() { err = errors.Join(err, unstage()) }()

	layers, err := open(target, s, users)
	if err != nil {
		return err
	}
	defer layers.close()
	var fd int
	err = m.asRoot(func() (err error) {
		fd, err = overlay(filepath.Join(target, "merged"), layers, m.attributes())
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unstage(); err != nil {
		return fmt.Errorf("taking away the staging area: %w", err)
	}
	return attach(fd, target)
}

// detach gives a mount of dir that is attached nowhere, shifted by users if
// there are any.
func detach(dir string, users *namespace, attributes uint64) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return -1, fmt.Errorf("open_tree %q: %w", dir, err)
	}
	attr := unix.MountAttr{Attr_set: attributes}
	if users != nil {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(users.Fd())
	}
	if attr.Attr_set == 0 {
		return fd, nil
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		unix.Close(fd)
		if users != nil && (errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)) {
			return -1, fault.New(fault.Unsupported, "the file system of %q cannot be mounted with shifted ids (%w); use another pool or security.privileged", dir, err)
		}
		return -1, fmt.Errorf("mount_setattr %q: %w", dir, err)
	}
	return fd, nil
}

// attach puts a detached mount at target.
func attach(fd int, target string) error {
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount to %q: %w", target, err)
	}
	return nil
}

// procPath names an open file for the kernel: short, and free of characters that
// mount options give a meaning to.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
