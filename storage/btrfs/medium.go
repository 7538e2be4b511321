package btrfs

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/holders"
)

// Medium is a btrfs of a pool's own: on a block device, or in a file, which is
// used through a loop device that goes away with the mount. Any number of programs
// may mount, use and resize one at the same time.
type Medium struct {
	Source string // the block device or the file
	At     string // where it is mounted, in a directory that only brig uses
	Adopt  bool   // take it over from another host
	UUID   string // that Format gives the file system; empty: any
}

// minSize is the least that mkfs.btrfs and some volumes need.
const minSize = 128 << 20

// Format makes the file system. A file is made with this size, and takes up only
// what is written to it; there must be none yet. A device is used as a whole, size
// does not matter; if it holds something, force is needed. After an error there is
// no file.
func (m Medium) Format(ctx context.Context, size int64, force bool) (err error) {
	defer storage.Fail(&err, "cannot make a btrfs on %q", m.Source)
	args := []string{"-q", "-L", hostLabel()}
	if force {
		args = append(args, "-f")
	}
	if m.UUID != "" {
		args = append(args, "-U", m.UUID)
	}
	st, err := os.Stat(m.Source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := makeFile(m.Source, size); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, os.Remove(m.Source))
			}
		}()
	case err != nil:
		return err
	case st.Mode().IsRegular():
		return fault.New(fault.AlreadyExists, "there is such a file already; adopt the pool in it with source=%s --adopt, or delete it", m.Source)
	case st.Mode()&(fs.ModeDevice|fs.ModeCharDevice) != fs.ModeDevice:
		return fault.New(fault.Invalid, "it is not a block device")
	}
	if _, err = run.Output(ctx, "mkfs.btrfs", append(args, m.Source)...); err != nil && isOccupied(err) {
		return fault.New(fault.WrongState, "%w; what is on it would be lost: force it if you do not need that", err)
	}
	return err
}

// isOccupied tells whether mkfs.btrfs refused because of what is on a device.
func isOccupied(err error) bool {
	e, ok := errors.AsType[*run.Error](err)
	return ok && (strings.Contains(e.Stderr, "appears to contain an existing filesystem") ||
		strings.Contains(e.Stderr, "appears to contain a partition table"))
}

func makeFile(path string, size int64) error {
	if size < minSize {
		return fault.New(fault.Invalid, "%d bytes are too few: it needs at least %d", size, minSize)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// hostLabel is the label of file systems that this host uses. A host without an id
// cannot be told from others.
func hostLabel() string {
	id, err := os.ReadFile("/etc/machine-id")
	if err != nil || len(bytes.TrimSpace(id)) == 0 {
		return labelPrefix
	}
	// The id itself is not to be shown to anybody.
	sum := sha256.Sum256(append([]byte("brig pool "), bytes.TrimSpace(id)...))
	return labelPrefix + hex.EncodeToString(sum[:6])
}

const labelPrefix = "brig-"

// Open makes sure that the file system is mounted and opens the pool in it, which
// it makes in an empty one.
func (m Medium) Open(ctx context.Context, o Options) (*Pool, error) {
	if err := m.Mount(ctx); err != nil {
		return nil, err
	}
	o.medium, o.at = m.Source, m.At
	return Open(m.At, o)
}

// brigs tells whether there is a file system on the source that Format made.
func (m Medium) brigs() bool {
	f, err := os.Open(m.Source)
	if err != nil {
		return false
	}
	defer f.Close()
	super, err := readSuperblock(f)
	return err == nil && strings.HasPrefix(super.label, labelPrefix)
}

// Mount makes sure that the file system is mounted, in the mount namespace of the
// calling thread.
func (m Medium) Mount(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot mount the pool on %q", m.Source)
	source, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	device, err := m.device(source)
	if err != nil {
		return err
	}
	mounted, err := m.mounted(device)
	if device != nil {
		device.Close()
	}
	if err != nil || mounted && !m.failed() {
		return err
	}
	if mounted && unix.Unmount(m.At, unix.UMOUNT_NOFOLLOW) != nil {
		return nil // it can be read, and somebody does
	}
	if err := m.check(source); err != nil {
		return err
	}
	if device, err = m.attach(source); err != nil {
		return err
	}
	defer device.Close() // the mount keeps it
	if err := os.MkdirAll(m.At, 0o700); err != nil {
		return err
	}
	err = unix.Mount(device.Name(), m.At, "btrfs", unix.MS_NOATIME, "")
	if err != nil && mounted {
		err = unix.Mount(device.Name(), m.At, "btrfs", unix.MS_NOATIME|unix.MS_RDONLY, "")
	}
	if err != nil {
		return fault.New(fault.Unavailable, "mount: %w; the kernel's log may say more", err)
	}
	if !m.Adopt {
		return nil
	}
	return m.label()
}

// failed tells whether what is mounted became read-only because of an error: the
// kernel does so when, for one, a file cannot grow. Mounted anew, it is as it was at
// the last commit.
func (m Medium) failed() bool {
	var st unix.Statfs_t
	return unix.Statfs(m.At, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// lock opens the source and keeps other programs from mounting, unmounting and
// resizing it until the file is closed.
func (m Medium) lock(ctx context.Context) (*os.File, error) {
	f, err := os.OpenFile(m.Source, os.O_RDWR, 0)
	if errors.Is(err, unix.EROFS) {
		f, err = os.Open(m.Source) // what is mounted already can be read
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "%w: connect it, or put it back; if it is elsewhere now, forget this pool with brig storage delete --force, and adopt it there", err)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	if err := flock.Hold(ctx, f, unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// superblock is what is read of the first superblock of a btrfs.
type superblock struct {
	size  uint64
	label string
}

// Where the superblock is, and what in it.
const (
	superAt      = 64 << 10
	superSize    = 4096
	superMagicAt = 0x40
	superMagic   = "_BHRfS_M"
	superTotalAt = 0x70
	superLabelAt = 0x12b
	superLabel   = 256
)

func readSuperblock(f *os.File) (s superblock, err error) {
	b := make([]byte, superSize)
	if _, err := f.ReadAt(b, superAt); err != nil || !bytes.HasPrefix(b[superMagicAt:], []byte(superMagic)) {
		return s, fault.New(fault.Unavailable, "there is no btrfs on it")
	}
	s.size = binary.LittleEndian.Uint64(b[superTotalAt:])
	label, _, _ := bytes.Cut(b[superLabelAt:superLabelAt+superLabel], []byte{0})
	s.label = string(label)
	return s, nil
}

// check judges the file system before it is mounted. Two hosts that mount one
// destroy it.
func (m Medium) check(source *os.File) error {
	super, err := readSuperblock(source)
	if err != nil {
		return err
	}
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if st.Mode().IsRegular() && uint64(st.Size()) < super.size {
		return fault.New(fault.Unavailable, "the file has %d bytes, and its file system %d: somebody cut it off", st.Size(), super.size)
	}
	own := hostLabel()
	if !m.Adopt && strings.HasPrefix(super.label, labelPrefix) && super.label != own && super.label != labelPrefix && own != labelPrefix {
		return fault.New(fault.WrongState, "another host used it last; make sure that it does not any more, and adopt it with brig storage create NAME btrfs source=%s --adopt", m.Source)
	}
	return nil
}

// label notes that this host uses the file system.
func (m Medium) label() error {
	f, err := os.Open(m.At)
	if err != nil {
		return err
	}
	defer f.Close()
	var label [superLabel]byte
	copy(label[:], hostLabel())
	return ioctl(f, "labelling", iocSetLabel, unsafe.Pointer(&label))
}

// mounted tells whether the file system on device is mounted where it should be.
// Without a device it is not, and nothing else may be.
func (m Medium) mounted(device *os.File) (bool, error) {
	var stx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, m.At, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS, &stx)
	if errors.Is(err, fs.ErrNotExist) || err == nil && stx.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if device != nil && m.isOn(device) {
		return true, nil
	}
	return false, fault.New(fault.WrongState, "something else is mounted at %q", m.At)
}

// isOn tells whether what is mounted is the btrfs on device.
func (m Medium) isOn(device *os.File) bool {
	at, err := os.Open(m.At)
	if err != nil {
		return false
	}
	defer at.Close()
	info := devInfo{id: 1}
	if err := ioctl(at, "asking for the device", iocDevInfo, unsafe.Pointer(&info)); err != nil {
		return false
	}
	name, _, _ := bytes.Cut(info.path[:], []byte{0})
	var is, want unix.Stat_t
	return unix.Stat(string(name), &is) == nil && unix.Fstat(int(device.Fd()), &want) == nil && is.Rdev == want.Rdev
}

// Unmount unmounts the file system. It is busy while anybody uses a volume.
func (m Medium) Unmount(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot unmount the pool on %q", m.Source)
	source, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	device, err := m.device(source)
	if err != nil || device == nil {
		return err
	}
	defer device.Close()
	if mounted, err := m.mounted(device); !mounted || err != nil {
		return err
	}
	err = unix.Unmount(m.At, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		return fault.New(fault.Busy, "it is in use%s", holders.By(holders.Using(m.At)))
	}
	if err != nil {
		return err
	}
	return os.Remove(m.At)
}

// Resize changes the size of the mounted file system, and of its file. For a
// device, zero stands for all of it. Data in the way of a smaller size are moved;
// if there is no room for them, it is exhausted, and all is as before.
func (m Medium) Resize(ctx context.Context, size int64) (err error) {
	defer storage.Fail(&err, "cannot resize the pool on %q", m.Source)
	if size < minSize && size != 0 {
		return fault.New(fault.Invalid, "%d bytes are too few: it needs at least %d", size, minSize)
	}
	source, err := m.lock(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	device, err := m.device(source)
	if err != nil {
		return err
	}
	if device == nil {
		return fault.New(fault.WrongState, "it is not mounted")
	}
	defer device.Close()
	if mounted, err := m.mounted(device); !mounted || err != nil {
		return errors.Join(err, fault.New(fault.WrongState, "it is not mounted"))
	}
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return m.resizeTo(size)
	}
	if size == 0 {
		return fault.New(fault.Invalid, "a file needs a size")
	}
	if size < st.Size() {
		// The file is cut off behind what is not used any more.
		if err := m.resizeTo(size); err != nil {
			return err
		}
	}
	if err := cmp.Or(source.Truncate(size), setCapacity(device)); err != nil {
		return err
	}
	return m.resizeTo(size)
}

// resizeTo resizes the file system itself.
func (m Medium) resizeTo(size int64) error {
	f, err := os.Open(m.At)
	if err != nil {
		return err
	}
	defer f.Close()
	args := &volArgs{}
	if size == 0 {
		copy(args.name[:], "1:max")
	} else {
		copy(args.name[:], "1:"+strconv.FormatInt(size&^4095, 10))
	}
	err = ioctl(f, "resizing", iocResize, unsafe.Pointer(args))
	if errors.Is(err, unix.EFBIG) || errors.Is(err, unix.EINVAL) {
		return fault.New(fault.Invalid, "the device cannot hold that: %w", err)
	}
	return err
}
