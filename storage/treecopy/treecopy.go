// Package treecopy copies trees of files exactly as they are on disk, for snapshots of
// what is in use and for copies from one pool to another.
package treecopy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// copier copies a tree of files exactly as they are on disk: owners, modes, times,
// extended attributes with overlayfs's own, hard links, holes, devices and
// whiteouts. Names come from a guest: every step goes from one open directory to
// a name in it, and follows no link.
type copier struct {
	ctx   context.Context
	to    int // the directory the copy is in
	links map[inode]string
	twins Twins
}

// Twins gives a file that was copied before another name: it links what the file of
// a device and inode number became to name in an open directory. It tells whether
// it did.
type Twins func(dev, ino uint64, dir int, name string) bool

// inode is a file on one file system.
type inode struct{ dev, ino uint64 }

// Copy copies the directory from into the existing directory to. Nobody changes
// from meanwhile. It stops when ctx ends; what it has copied by then stays.
func Copy(ctx context.Context, from, to string) error { return CopyLinked(ctx, from, to, nil) }

// CopyLinked is Copy where twins, if it is not nil, is asked first about each file
// that has several names.
func CopyLinked(ctx context.Context, from, to string, twins Twins) error {
	src, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", from, err)
	}
	defer unix.Close(src)
	dst, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %q: %w", to, err)
	}
	defer unix.Close(dst)
	c := &copier{ctx: ctx, to: dst, links: map[inode]string{}, twins: twins}
	return c.fill(src, dst, ".")
}

// fill copies what is in the open directory src to dst, and then its attributes.
// Where is dst relative to the whole copy.
func (c *copier) fill(src, dst int, where string) error {
	names, err := NamesIn(src)
	if err != nil {
		return fmt.Errorf("read %q: %w", where, err)
	}
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(src, dst, name, path.Join(where, name)); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return fmt.Errorf("stat %q: %w", where, err)
	}
	return c.attributes(src, "", dst, "", &st, where)
}

// entry copies one name of the directory src to dst.
func (c *copier) entry(src, dst int, name, where string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("stat %q: %w", where, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return c.directory(src, dst, name, where)
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := c.links[id]; ok {
			// A path too long to link to is copied instead.
			if err := unix.Linkat(c.to, first, dst, name, 0); !errors.Is(err, unix.ENAMETOOLONG) && !errors.Is(err, unix.EMLINK) {
				return wrapPath("link", where, err)
			}
		}
		c.links[id] = where
		if c.twins != nil && kind == unix.S_IFREG && c.twins(st.Dev, st.Ino, dst, name) {
			return nil
		}
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.file(src, dst, name)
	case unix.S_IFLNK:
		err = copyLink(src, dst, name)
	default:
		err = unix.Mknodat(dst, name, st.Mode, int(st.Rdev))
	}
	if err != nil {
		return wrapPath("copy", where, err)
	}
	return c.attributes(src, name, dst, name, &st, where)
}

func wrapPath(what, where string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", what, where, err)
}

func (c *copier) directory(src, dst int, name, where string) error {
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return wrapPath("mkdir", where, err)
	}
	const how = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	from, err := unix.Openat(src, name, how, 0)
	if err != nil {
		return wrapPath("open", where, err)
	}
	defer unix.Close(from)
	to, err := unix.Openat(dst, name, how, 0)
	if err != nil {
		return wrapPath("open", where, err)
	}
	defer unix.Close(to)
	return c.fill(from, to, where)
}

// file copies the data of a regular file: by sharing its blocks where the file
// system can, else without its holes.
func (c *copier) file(src, dst int, name string) error {
	from, err := openFile(src, name)
	if err != nil {
		return err
	}
	defer from.Close()
	fd, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(fd), name)
	defer to.Close()
	return File(c.ctx, from, to)
}

// File copies data to an empty file: by sharing blocks where the file system can,
// else without the holes. From may be a block device, of which zeros are holes.
func File(ctx context.Context, from, to *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	if st.Mode().Type() == os.ModeDevice {
		return copyDevice(ctx, from, to)
	}
	if st.Size() == 0 || unix.IoctlFileClone(int(to.Fd()), int(from.Fd())) == nil {
		return nil
	}
	if err := copyData(ctx, from, to, st.Size()); err != nil {
		return err
	}
	return to.Truncate(st.Size())
}

// copyDevice copies what is not zero on a block device.
func copyDevice(ctx context.Context, from, to *os.File) error {
	b, err := newBlocks(from)
	if err != nil {
		return err
	}
	for {
		at, block, err := b.read(ctx)
		if errors.Is(err, io.EOF) {
			return to.Truncate(b.size)
		}
		if err != nil {
			return err
		}
		if _, err := to.WriteAt(block, at); err != nil {
			return err
		}
	}
}

// copyData copies the parts of a file that are not holes.
func copyData(ctx context.Context, from, to *os.File, size int64) error {
	for at := int64(0); at < size; {
		start, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // only a hole is left
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(int(from.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if _, err := from.Seek(start, io.SeekStart); err != nil {
			return err
		}
		if _, err := to.Seek(start, io.SeekStart); err != nil {
			return err
		}
		for at = start; at < end; {
			if err := ctx.Err(); err != nil {
				return err
			}
			// Between two files, this is copy_file_range in the kernel.
			n, err := io.Copy(to, io.LimitReader(from, min(end-at, 64<<20)))
			if err != nil {
				return err
			}
			if n == 0 {
				return nil // it became shorter
			}
			at += n
		}
	}
	return nil
}

func copyLink(src, dst int, name string) error {
	to, err := readLink(src, name)
	if err != nil {
		return err
	}
	return unix.Symlinkat(to, dst, name)
}

// attributes copies everything about a file but its data. An empty name means the
// open directory itself. The order matters: chown takes away capabilities and
// set-user-id bits.
func (c *copier) attributes(src int, srcName string, dst int, dstName string, st *unix.Stat_t, where string) error {
	from, err := handle(src, srcName)
	if err != nil {
		return wrapPath("open", where, err)
	}
	defer unix.Close(from)
	to, err := handle(dst, dstName)
	if err != nil {
		return wrapPath("open", where, err)
	}
	defer unix.Close(to)
	if err := unix.Fchownat(to, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
		return wrapPath("chown", where, err)
	}
	if err := copyXattrs(procPath(from), procPath(to)); err != nil {
		return wrapPath("attributes of", where, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(procPath(to), st.Mode&0o7777); err != nil {
			return wrapPath("chmod", where, err)
		}
	}
	if err := unix.UtimesNanoAt(to, "", []unix.Timespec{st.Atim, st.Mtim}, unix.AT_EMPTY_PATH); err != nil {
		return wrapPath("times of", where, err)
	}
	return nil
}

// handle opens a file of any kind without touching it.
func handle(dir int, name string) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// procPath is a path of an open file, which also calls without a variant for open
// files take: it leads to the file itself, even if that is a link.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// copyXattrs copies all extended attributes, security.capability and overlayfs's
// own included.
func copyXattrs(from, to string) error {
	names, err := xattrNames(from)
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for _, name := range names {
		n, err := unix.Getxattr(from, name, value)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := unix.Setxattr(to, name, value[:n], 0); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// NamesIn lists an open directory from its beginning, and leaves it open.
func NamesIn(dir int) ([]string, error) {
	if _, err := unix.Seek(dir, 0, io.SeekStart); err != nil {
		return nil, err
	}
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(dir, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
