package treecopy

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Sum is what Digest gives: equal for equal trees.
type Sum [sha256.Size]byte

// Digest sums up the tree in dir, which nobody changes meanwhile: the paths,
// types, modes, owners, modification times, extended attributes, contents, hard
// links and device numbers of all files in it, and of dir itself.
func Digest(ctx context.Context, dir string) (Sum, error) {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return Sum{}, fmt.Errorf("open %q: %w", dir, err)
	}
	defer unix.Close(fd)
	d := &digester{ctx: ctx, all: sha256.New(), links: map[inode]string{}}
	if err := d.entry(fd, "", "."); err != nil {
		return Sum{}, err
	}
	return Sum(d.all.Sum(nil)), nil
}

// digester walks a tree in the order of names.
type digester struct {
	ctx   context.Context
	all   hash.Hash
	links map[inode]string // where a file of many names was seen first
}

// put adds fields, each with its length before it, so that no two lists of fields
// look the same.
func (d *digester) put(fields ...string) {
	for _, f := range fields {
		var size [8]byte
		binary.BigEndian.PutUint64(size[:], uint64(len(f)))
		d.all.Write(size[:])
		io.WriteString(d.all, f)
	}
}

// entry adds one name of the open directory dir; an empty one is dir itself.
func (d *digester) entry(dir int, name, where string) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := statAt(dir, name, &st); err != nil {
		return wrapPath("stat", where, err)
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := d.links[id]; ok {
			d.put("link", where, first)
			return nil
		}
		d.links[id] = where
	}
	var device uint64
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		device = st.Rdev
	}
	d.put("file", where, fmt.Sprintf("%o %d %d %d %d %x", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec, device))
	if err := d.xattrs(dir, name); err != nil {
		return wrapPath("attributes of", where, err)
	}
	var err error
	switch kind {
	case unix.S_IFDIR:
		return d.directory(dir, name, where)
	case unix.S_IFREG:
		err = d.content(dir, name, st.Size)
	case unix.S_IFLNK:
		var to string
		if to, err = readLink(dir, name); err == nil {
			d.put(to)
		}
	}
	return wrapPath("read", where, err)
}

func (d *digester) directory(dir int, name, where string) error {
	fd := dir
	if name != "" {
		var err error
		if fd, err = openDir(dir, name); err != nil {
			return wrapPath("open", where, err)
		}
		defer unix.Close(fd)
	}
	names, err := NamesIn(fd)
	if err != nil {
		return wrapPath("read", where, err)
	}
	slices.Sort(names)
	for _, n := range names {
		if err := d.entry(fd, n, path.Join(where, n)); err != nil {
			return err
		}
	}
	return nil
}

// content adds the data of a file, however it is stored.
func (d *digester) content(dir int, name string, size int64) error {
	f, err := openFile(dir, name)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := newBlocks(f)
	if err != nil {
		return err
	}
	sum := sha256.New()
	for {
		at, block, err := b.read(d.ctx)
		if errors.Is(err, io.EOF) {
			d.put(fmt.Sprint(size), string(sum.Sum(nil)))
			return nil
		}
		if err != nil {
			return err
		}
		var where [8]byte
		binary.BigEndian.PutUint64(where[:], uint64(at))
		sum.Write(where[:])
		sum.Write(block)
	}
}

func (d *digester) xattrs(dir int, name string) error {
	fd, err := handle(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	all, err := xattrs(procPath(fd))
	if err != nil {
		return err
	}
	d.put(all...)
	return nil
}

// xattrs gives the names and values of extended attributes in turn, sorted by
// name.
func xattrs(file string) ([]string, error) {
	names, err := xattrNames(file)
	if err != nil {
		return nil, err
	}
	slices.Sort(names)
	var all []string
	value := make([]byte, 64<<10)
	for _, name := range names {
		n, err := unix.Getxattr(file, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		all = append(all, name, string(value[:n]))
	}
	return all, nil
}

func xattrNames(file string) ([]string, error) {
	size, err := unix.Listxattr(file, nil)
	if errors.Is(err, unix.ENOTSUP) || size == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	buf := make([]byte, size)
	if size, err = unix.Listxattr(file, buf); err != nil {
		return nil, err
	}
	// Overlayfs counts its own at first and leaves them out then.
	return strings.FieldsFunc(string(buf[:size]), func(r rune) bool { return r == 0 }), nil
}

// Size gives the bytes that the files of the tree in dir hold, each file once
// and holes not counted.
func Size(ctx context.Context, dir string) (int64, error) {
	fd, err := openDir(unix.AT_FDCWD, dir)
	if err != nil {
		return 0, fmt.Errorf("open %q: %w", dir, err)
	}
	defer unix.Close(fd)
	return sizeBelow(ctx, fd, map[inode]bool{})
}

// Clones tells whether copies of files in dir share their data. It works on a full
// file system.
func Clones(dir string) bool {
	var fds []int
	for range 2 {
		fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false
		}
		defer unix.Close(fd)
		fds = append(fds, fd)
	}
	// Whether it can be done is looked at before how much there is to do.
	return unix.IoctlFileClone(fds[0], fds[1]) == nil
}

func sizeBelow(ctx context.Context, dir int, seen map[inode]bool) (int64, error) {
	names, err := NamesIn(dir)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, name := range names {
		var st unix.Stat_t
		if err := errors.Join(ctx.Err(), statAt(dir, name, &st)); err != nil {
			return 0, err
		}
		if id := (inode{st.Dev, st.Ino}); st.Nlink == 1 || st.Mode&unix.S_IFMT == unix.S_IFDIR || !seen[id] {
			seen[id] = seen[id] || st.Nlink > 1
			total += st.Blocks * 512
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		fd, err := openDir(dir, name)
		if err != nil {
			return 0, err
		}
		n, err := sizeBelow(ctx, fd, seen)
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// statAt tells about a name in an open directory; an empty one is the directory.
func statAt(dir int, name string, st *unix.Stat_t) error {
	if name == "" {
		return unix.Fstat(dir, st)
	}
	return unix.Fstatat(dir, name, st, unix.AT_SYMLINK_NOFOLLOW)
}

func openDir(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// openFile opens a regular file for reading without marking it as read.
func openFile(dir int, name string) (*os.File, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func readLink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
