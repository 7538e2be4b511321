package rootfs

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// xattrRecord is the prefix of the PAX records that hold extended attributes.
const xattrRecord = "SCHILY.xattr."

// Access control lists. The default one is handed down to what is made in a
// directory, so that it has to wait until all is made.
const (
	accessACL  = "system.posix_acl_access"
	defaultACL = "system.posix_acl_default"
)

// lastly is what a directory gets when nothing more is made in it.
type lastly struct {
	time       unix.Timespec
	defaultACL string
}

func lastlyOf(hdr *tar.Header) lastly {
	return lastly{time: timeOf(hdr), defaultACL: hdr.PAXRecords[xattrRecord+defaultACL]}
}

func (l lastly) set(fd int) error {
	if l.defaultACL != "" {
		err := unix.Fsetxattr(fd, defaultACL, []byte(l.defaultACL), 0)
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
			return attributeFault(defaultACL, err)
		}
	}
	return setTimes(fd, "", l.time)
}

// owner gives the numeric owner; names in the header count for nothing. The
// last id is the kernel's "leave it as it is", which would give the file to root.
func owner(hdr *tar.Header) (uid, gid int, err error) {
	if hdr.Uid < 0 || hdr.Uid >= math.MaxUint32 || hdr.Gid < 0 || hdr.Gid >= math.MaxUint32 {
		return 0, 0, fault.New(fault.Invalid, "its owner %d:%d is no valid id", hdr.Uid, hdr.Gid)
	}
	return hdr.Uid, hdr.Gid, nil
}

func mode(hdr *tar.Header) uint32 { return uint32(hdr.Mode) & 0o7777 }

func timeOf(hdr *tar.Header) unix.Timespec {
	return unix.Timespec{Sec: hdr.ModTime.Unix(), Nsec: int64(hdr.ModTime.Nanosecond())}
}

// keepXattr tells whether an attribute belongs to the image. Overlayfs's own
// would change what the tree shows once it is a lower layer, labels and
// signatures are the business of the host.
func keepXattr(name string) bool {
	switch {
	case strings.HasPrefix(name, "trusted.overlay."), strings.HasPrefix(name, "user.overlay."),
		name == "security.selinux", name == "security.ima", name == "security.evm":
		return false
	case name == accessACL:
		return true
	}
	return strings.HasPrefix(name, "user.") || strings.HasPrefix(name, "trusted.") ||
		strings.HasPrefix(name, "security.")
}

// xattrs calls set for each attribute the header has and an image may have, in
// order: file systems keep it, and so does a disk that is made of the tree. A
// file system without user attributes is fine; losing a capability is not.
func xattrs(hdr *tar.Header, set func(name string, value []byte) error) error {
	if len(hdr.PAXRecords) == 0 {
		return nil
	}
	for _, record := range slices.Sorted(maps.Keys(hdr.PAXRecords)) {
		value := hdr.PAXRecords[record]
		name, ok := strings.CutPrefix(record, xattrRecord)
		if !ok || !keepXattr(name) {
			continue
		}
		err := set(name, []byte(value))
		if errors.Is(err, unix.EOPNOTSUPP) && !strings.HasPrefix(name, "security.") {
			continue
		}
		if err != nil {
			return attributeFault(name, err)
		}
	}
	return nil
}

func attributeFault(name string, err error) error {
	if errors.Is(err, unix.EINVAL) {
		return fault.New(fault.Invalid, "attribute %s: its value is not valid: %w", quoted(name), err)
	}
	return fmt.Errorf("attribute %s: %w", quoted(name), err)
}

// dropXattrs removes the attributes an older layer gave the open directory fd.
func dropXattrs(fd int) error {
	n, err := unix.Flistxattr(fd, nil)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err != nil {
		return err
	}
	list := make([]byte, n)
	if n, err = unix.Flistxattr(fd, list); err != nil {
		return err
	}
	for name := range bytes.SplitSeq(list[:n], []byte{0}) {
		if !keepXattr(string(name)) {
			continue
		}
		if err := unix.Fremovexattr(fd, string(name)); err != nil {
			return err
		}
	}
	return nil
}

// setOpen gives the open file or directory fd all attributes but its times.
// Changing the owner clears set-id bits and capabilities: it comes first.
func setOpen(fd int, hdr *tar.Header) error {
	uid, gid, err := owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchown(fd, uid, gid); err != nil {
		return fmt.Errorf("owner %d:%d: %w", uid, gid, err)
	}
	err = xattrs(hdr, func(name string, value []byte) error {
		return unix.Fsetxattr(fd, name, value, 0)
	})
	if err != nil {
		return err
	}
	return unix.Fchmod(fd, mode(hdr))
}

// setMade gives a link, device or pipe that was just made all its attributes. It
// cannot be opened for that, so that what needs a path gets one through /proc
// that ends in a name which is not followed.
func setMade(d *dir, name string, hdr *tar.Header) error {
	uid, gid, err := owner(hdr)
	if err != nil {
		return err
	}
	if err := unix.Fchownat(d.fd, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("owner %d:%d: %w", uid, gid, err)
	}
	err = xattrs(hdr, func(attr string, value []byte) error {
		err := unix.Lsetxattr(fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name), attr, value, 0)
		if errors.Is(err, unix.EPERM) && strings.HasPrefix(attr, "user.") {
			return nil // only files and directories can have these
		}
		return err
	})
	if err != nil {
		return err
	}
	if hdr.Typeflag != tar.TypeSymlink {
		if err := chmodMade(d, name, mode(hdr)); err != nil {
			return err
		}
	}
	return setTimes(d.fd, name, timeOf(hdr))
}

// chmodMade changes the mode of name in d, which is no link, through a
// descriptor: fchmodat could follow.
func chmodMade(d *dir, name string, mode uint32) error {
	fd, err := unix.Openat(d.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return os.NewSyscallError("chmod", unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode))
}

// setTimes sets both times of name in fd, or of fd itself when name is empty. A
// time the file system cannot hold becomes the nearest it can.
func setTimes(fd int, name string, ts unix.Timespec) error {
	times := [2]unix.Timespec{ts, ts}
	if name != "" {
		return unix.UtimesNanoAt(fd, name, times[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
