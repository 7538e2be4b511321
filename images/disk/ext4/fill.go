package ext4

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

const readSize = 1 << 20

// identity is of a file in the tree.
type identity struct{ dev, ino uint64 }

type filler struct {
	ctx    context.Context
	fs     *system
	now    int64
	linked map[identity]*inode // with more than one name, of which some may lie outside
	buf    []byte
}

func (f *filler) fill(tree string) error {
	fd, err := unix.Open(tree, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	i := &inode{n: rootInode}
	if err := unix.Fstat(fd, &i.st); err != nil {
		unix.Close(fd)
		return err
	}
	if err := f.directory(fd, "/", i, rootInode); err != nil {
		return err
	}
	// Only now is known how many of their names are in the tree.
	for _, i := range slices.SortedFunc(maps.Values(f.linked), func(a, b *inode) int { return cmp.Compare(a.n, b.n) }) {
		if err := f.fs.writeInode(i, f.now); err != nil {
			return err
		}
	}
	return nil
}

// directory writes the directory i, which it reads from fd and closes, and what is
// in it: first the files, then the directories.
func (f *filler) directory(fd int, path string, i *inode, parent int64) error {
	d := os.NewFile(uintptr(fd), path)
	defer d.Close()
	all, err := attributes(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(name string, b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	listed, err := d.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if i.n == rootInode && !slices.Contains(listed, lostFound) {
		listed = append(listed, lostFound)
	}
	slices.Sort(listed)
	var names []name
	var below []*inode
	var in []string
	for _, n := range listed {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		kid, err := f.name(fd, n, i.n == rootInode)
		if err != nil {
			return fmt.Errorf("%q: %w", join(path, n), err)
		}
		names = append(names, name{kid.n, kindOf(kid.st.Mode), n})
		if kid.st.Mode&unix.S_IFMT == unix.S_IFDIR {
			below, in = append(below, kid), append(in, n)
		}
	}
	if err := f.finishDirectory(i, parent, names, len(below), all); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	for k, kid := range below {
		if err := f.below(fd, in[k], join(path, in[k]), kid, i.n); err != nil {
			return err
		}
	}
	return nil
}

func join(path, name string) string {
	if path == "/" {
		return "/" + name
	}
	return path + "/" + name
}

const lostFound = "lost+found"

// finishDirectory writes the inode and names of a directory.
func (f *filler) finishDirectory(i *inode, parent int64, names []name, below int, all []attribute) error {
	var has []int64
	if i.n == rootInode || i.n == lostInode {
		var err error
		if has, err = f.fs.owned(i.n); err != nil {
			return err
		}
	}
	if err := f.fs.writeNames(i, parent, names, has); err != nil {
		return err
	}
	if i.links = 2 + below; i.links > maxLinks {
		i.links = 1 // dir_nlink: not known
	}
	if err := f.fs.setAttributes(i, all); err != nil {
		return err
	}
	return f.fs.writeInode(i, f.now)
}

// below goes into the directory name.
func (f *filler) below(dir int, name, path string, i *inode, parent int64) error {
	if i.n == lostInode && i.st.Ino == 0 {
		return f.finishDirectory(i, parent, nil, 0, nil)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return f.directory(fd, path, i, parent)
}

// name gives the inode of what has this name in dir. All but directories are written
// then.
func (f *filler) name(dir int, name string, inRoot bool) (*inode, error) {
	i := &inode{links: 1}
	err := unix.Fstatat(dir, name, &i.st, unix.AT_SYMLINK_NOFOLLOW)
	isDir := i.st.Mode&unix.S_IFMT == unix.S_IFDIR
	if inRoot && name == lostFound {
		switch {
		case errors.Is(err, unix.ENOENT):
			i.st = unix.Stat_t{Mode: unix.S_IFDIR | 0o700, Mtim: unix.Timespec{Sec: f.now}}
		case err == nil && !isDir:
			return nil, fault.New(fault.Unsupported, "an ext4 disk has a directory of this name")
		}
		if err == nil || errors.Is(err, unix.ENOENT) {
			i.n = lostInode
			return i, nil
		}
	}
	if err != nil {
		return nil, err
	}
	id := identity{uint64(i.st.Dev), i.st.Ino}
	if known := f.linked[id]; known != nil && !isDir {
		if known.links++; known.links > maxLinks {
			return nil, fault.New(fault.Exhausted, "it has more than the %d names that a file can have on a disk", maxLinks)
		}
		return known, nil
	}
	if i.n, err = f.fs.takeInode(isDir); err != nil || isDir {
		return i, err
	}
	if err := f.content(dir, name, i); err != nil {
		return nil, err
	}
	if i.st.Nlink > 1 {
		f.linked[id] = i
		return i, nil
	}
	return i, f.fs.writeInode(i, f.now)
}

// content writes what a file that is no directory holds.
func (f *filler) content(dir int, name string, i *inode) error {
	switch i.st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return f.file(dir, name, i)
	case unix.S_IFLNK:
		if err := f.symlink(dir, name, i); err != nil {
			return err
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		i.short = device(i.st.Rdev)
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	all, err := attributes(func(b []byte) (int, error) { return unix.Llistxattr(path, b) },
		func(attr string, b []byte) (int, error) { return unix.Lgetxattr(path, attr, b) })
	if err != nil {
		return err
	}
	return f.fs.setAttributes(i, all)
}

// device is how an inode tells a device's number: short ones as ever, others in the
// second place.
func device(number uint64) []byte {
	major, minor := unix.Major(number), unix.Minor(number)
	if major < 256 && minor < 256 {
		return le32(major<<8 | minor)
	}
	return append(le32(0), le32(minor&0xff|major<<8|minor&^0xff<<12)...)
}

func (f *filler) symlink(dir int, name string, i *inode) error {
	n, err := unix.Readlinkat(dir, name, f.buf[:unix.PathMax])
	if err != nil {
		return err
	}
	const most = 59 // in the inode
	if i.size = int64(n); n <= most {
		i.short = bytes.Clone(f.buf[:n])
		return nil
	}
	return f.put(i, 0, f.buf[:n])
}

// put writes data as the next blocks of a file, but for those of zeros.
func (f *filler) put(i *inode, logical int64, data []byte) error {
	for ; len(data) > 0; logical++ {
		n := min(len(data), BlockSize)
		if !bytes.Equal(data[:n], zeros[:n]) {
			b, err := f.fs.takeBlock()
			if err != nil {
				return err
			}
			i.add(logical, b)
			if err := f.fs.out.add(b, data[:n]); err != nil {
				return err
			}
		}
		data = data[n:]
	}
	return nil
}

// file writes a regular file. Reading it leaves its time of use alone where it may.
func (f *filler) file(dir int, name string, i *inode) error {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var now unix.Stat_t
	if err := unix.Fstat(fd, &now); err != nil {
		return err
	}
	if now.Ino != i.st.Ino || now.Mode&unix.S_IFMT != unix.S_IFREG {
		return fault.New(fault.Unavailable, "it was replaced while it was read")
	}
	i.size = i.st.Size
	if err := f.copy(fd, i); err != nil {
		return err
	}
	all, err := attributes(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) },
		func(attr string, b []byte) (int, error) { return unix.Fgetxattr(fd, attr, b) })
	if err != nil {
		return err
	}
	return f.fs.setAttributes(i, all)
}

// copy writes the data of the open file fd. A file that may have holes is asked
// where they are, so that they need not be read.
func (f *filler) copy(fd int, i *inode) error {
	sparse := i.st.Blocks*512 < i.size
	for at := int64(0); at < i.size; {
		if err := f.ctx.Err(); err != nil {
			return err
		}
		if sparse {
			data, err := unix.Seek(fd, at, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				return nil
			}
			if err == nil {
				at = max(at, data/BlockSize*BlockSize)
			}
		}
		b := f.buf[:min(readSize, i.size-at)]
		if err := readFull(fd, b, at); err != nil {
			return err
		}
		if err := f.put(i, at/BlockSize, b); err != nil {
			return err
		}
		at += int64(len(b))
	}
	return nil
}

func readFull(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(fault.Unavailable, "it became shorter while it was read: %w", io.ErrUnexpectedEOF)
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}
