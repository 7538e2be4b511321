package verify

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Scan reads the tree below the open directory dir, which nobody should change
// meanwhile, into a model. It follows no link and opens nothing but directories
// and regular files. Files are hashed on all processors.
func Scan(ctx context.Context, dir *os.File, limits Limits) (*Model, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s := &scanner{
		ctx:    ctx,
		fail:   cancel,
		limits: limits.withDefaults(),
		inodes: map[identity]*inode{},
		files:  make(chan file, runtime.GOMAXPROCS(0)),
	}
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(s.hash)
	}
	m, err := s.root(int(dir.Fd()))
	close(s.files)
	workers.Wait()
	if failed := context.Cause(ctx); failed != nil {
		err = failed
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the tree: %w", err)
	}
	m.settle()
	return m, nil
}

type identity struct{ dev, ino uint64 }

// file is one to be hashed. The worker closes it.
type file struct {
	fd    int
	path  string
	inode *inode
	unit  int64 // what holes are made of on this file system
}

type scanner struct {
	ctx    context.Context
	fail   context.CancelCauseFunc
	limits Limits
	names  int
	inodes map[identity]*inode // of files with more than one name
	files  chan file
}

func (s *scanner) root(dir int) (*Model, error) {
	fd, err := openDirectory(dir, ".")
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	root := &node{inode: inodeOf(&st)}
	return &Model{root: root}, s.directory(fd, root, "/")
}

// directory reads what is in the open directory fd, and closes it.
func (s *scanner) directory(fd int, n *node, path string) error {
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	var err error
	if n.xattrs, err = attributes(n.mode, func(list []byte) (int, error) { return unix.Flistxattr(fd, list) },
		func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) }); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	// A directory of a tree that is too deep is at the limit already.
	if int(n.depth) > s.limits.Depth+1 {
		return fault.New(fault.Exhausted, "%q lies more than %d directories deep", path, s.limits.Depth)
	}
	names, err := f.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	if s.names += len(names); s.names > s.limits.Entries {
		return fault.New(fault.Exhausted, "it has more than the allowed %d files", s.limits.Entries)
	}
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.name(fd, n, name, under(path, name)); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) name(dir int, above *node, name, path string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	id := identity{uint64(st.Dev), st.Ino}
	if known := s.inodes[id]; known != nil {
		above.put(name, known)
		return nil
	}
	i := inodeOf(&st)
	kid := above.put(name, i)
	if st.Nlink > 1 && i.kind != Directory {
		s.inodes[id] = i
	}
	var err error
	switch i.kind {
	case Directory:
		var fd int
		if fd, err = openDirectory(dir, name); err == nil {
			return s.directory(fd, kid, path)
		}
	case File:
		err = s.file(dir, name, path, i, &st)
	default:
		err = other(dir, name, i)
	}
	if err != nil {
		return fmt.Errorf("%q: %w", path, err)
	}
	return nil
}

func inodeOf(st *unix.Stat_t) *inode {
	i := &inode{
		kind: typeOf(st.Mode), mode: st.Mode & 0o7777, uid: st.Uid, gid: st.Gid,
		sec: st.Mtim.Sec, nsec: int32(st.Mtim.Nsec),
	}
	switch i.kind {
	case File:
		i.size = st.Size
	case CharDevice, BlockDevice:
		i.major, i.minor = unix.Major(st.Rdev), unix.Minor(st.Rdev)
	}
	return i
}

func typeOf(mode uint32) Type {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return File
	case unix.S_IFDIR:
		return Directory
	case unix.S_IFLNK:
		return Symlink
	case unix.S_IFCHR:
		return CharDevice
	case unix.S_IFBLK:
		return BlockDevice
	case unix.S_IFIFO:
		return Pipe
	}
	return Socket
}

// file opens a regular file and hands it to be hashed.
func (s *scanner) file(dir int, name, path string, i *inode, st *unix.Stat_t) error {
	fd, err := openFile(dir, name)
	if err != nil {
		return err
	}
	var now unix.Stat_t
	err = unix.Fstat(fd, &now)
	if err == nil && (now.Ino != st.Ino || now.Dev != st.Dev) {
		err = fault.New(fault.Unavailable, "it was replaced while it was looked at")
	}
	if err == nil {
		i.xattrs, err = attributes(i.mode, func(list []byte) (int, error) { return unix.Flistxattr(fd, list) },
			func(name string, value []byte) (int, error) { return unix.Fgetxattr(fd, name, value) })
	}
	if err != nil || i.size == 0 {
		if err == nil {
			i.hash = newContent().sum()
		}
		unix.Close(fd)
		return err
	}
	select {
	case s.files <- file{fd: fd, path: path, inode: i, unit: max(block, int64(st.Blksize))}:
		return nil
	case <-s.ctx.Done():
		unix.Close(fd)
		return context.Cause(s.ctx)
	}
}

// other completes a link, device, pipe or socket, which is not opened.
func other(dir int, name string, i *inode) (err error) {
	if i.kind == Symlink {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return err
		}
		i.target, i.mode = string(buf[:n]), 0o777
	}
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	i.xattrs, err = attributes(i.mode, func(list []byte) (int, error) { return unix.Llistxattr(path, list) },
		func(name string, value []byte) (int, error) { return unix.Lgetxattr(path, name, value) })
	return err
}

// maxAttributes is the kernel's bound on names and on one value.
const maxAttributes = 64 << 10

func attributes(mode uint32, list func([]byte) (int, error), get func(string, []byte) (int, error)) (map[string]string, error) {
	n, err := list(nil)
	if n == 0 || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil
	}
	buf := make([]byte, maxAttributes)
	if err == nil {
		n, err = list(buf)
	}
	if err != nil {
		return nil, fmt.Errorf("attributes: %w", err)
	}
	all, value := map[string]string{}, make([]byte, maxAttributes)
	for name := range strings.SplitSeq(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		if ofTheHost(name) {
			continue
		}
		n, err := get(name, value)
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", name, err)
		}
		all[name] = string(value[:n])
	}
	return normal(all, mode), nil
}

// hash is a worker.
func (s *scanner) hash() {
	buf := make([]byte, chunk)
	for f := range s.files {
		err := s.ctx.Err()
		if err == nil {
			err = s.content(f, buf)
		}
		unix.Close(f.fd)
		if err != nil {
			s.fail(fmt.Errorf("%q: %w", f.path, err))
		}
	}
}

// content hashes a file and counts what of it should be holes: whole units of
// zeros that take space.
func (s *scanner) content(f file, buf []byte) error {
	c, h, size := newContent(), holes{unit: f.unit, size: f.inode.size}, f.inode.size
	for at := int64(0); at < size; {
		start, err := seek(f.fd, at, unix.SEEK_DATA, size)
		if err != nil || start >= size {
			f.inode.hash, f.inode.filled = c.sum(), h.end()
			return err
		}
		end, err := seek(f.fd, start, unix.SEEK_HOLE, size)
		if err != nil {
			return err
		}
		end = min(size, (end+block-1)/block*block)
		for at = max(at, start/block*block); at < end; {
			if err := s.ctx.Err(); err != nil {
				return err
			}
			b := buf[:min(int64(len(buf)), end-at)]
			if err := readAt(f.fd, b, at); err != nil {
				return err
			}
			c.add(at, b)
			h.add(at, b)
			at += int64(len(b))
		}
	}
	f.inode.hash, f.inode.filled = c.sum(), h.end()
	return nil
}

// seek is lseek that gives size when there is no more data. File systems that
// cannot tell have data everywhere.
func seek(fd int, at int64, whence int, size int64) (int64, error) {
	got, err := unix.Seek(fd, at, whence)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, nil
	case errors.Is(err, unix.EINVAL) && whence == unix.SEEK_DATA:
		return at, nil
	case errors.Is(err, unix.EINVAL):
		return size, nil
	}
	return got, err
}

func readAt(fd int, b []byte, at int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, at)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return fault.New(fault.Unavailable, "it became shorter while it was read")
		}
		b, at = b[n:], at+int64(n)
	}
	return nil
}

// holes finds units of zeros among data. It is told of data in order.
type holes struct {
	unit, size int64
	at         int64 // the unit under way
	taken      int64 // bytes of it that are data
	full       bool  // not all of it is zero
	filled     int64
}

func (h *holes) add(at int64, data []byte) {
	for len(data) > 0 {
		b := data[:min(len(data), block)]
		if unit := at / h.unit; unit != h.at {
			h.end()
			h.at, h.taken, h.full = unit, 0, false
		}
		h.taken += int64(len(b))
		h.full = h.full || string(b) != string(zeros[:len(b)])
		at += int64(len(b))
		data = data[len(b):]
	}
}

func (h *holes) end() int64 {
	if !h.full && (h.at+1)*h.unit <= h.size {
		h.filled += h.taken
	}
	h.taken = 0
	return h.filled
}

func openDirectory(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// openFile leaves the time of access alone where it may.
func openFile(dir int, name string) (int, error) {
	const flags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if errors.Is(err, unix.EPERM) {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	return fd, err
}
