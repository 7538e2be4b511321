// Package pack writes trees as tar streams: the layers of OCI images, and tarballs of
// root file systems. The same tree gives the same bytes. It is what package rootfs
// unpacks, and like that it holds on to modes, numeric owners, times, links, devices
// and extended attributes; holes become zeros, and sockets, which mean nothing without
// their process, are left out.
//
// A tree is somebody else's: every file is opened by a single name relative to its
// directory, and no link is followed.
package pack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// maxDepth bounds how deep trees are walked: each level takes an open file.
const maxDepth = 400

// Writer writes files of one tree to one tar stream.
type Writer struct {
	ctx    context.Context
	tar    *tar.Writer
	root   *os.File
	prefix string // before each name; empty, or ending in a slash
	links  map[inode]string
}

// inode is a file on one file system.
type inode struct{ dev, ino uint64 }

// NewWriter prepares to write files of the tree in root to w, with a prefix before
// their names. Nobody changes the tree meanwhile.
func NewWriter(ctx context.Context, w io.Writer, root *os.File, prefix string) *Writer {
	return &Writer{ctx: ctx, tar: tar.NewWriter(w), root: root, prefix: prefix, links: map[inode]string{}}
}

// Close ends the stream.
func (w *Writer) Close() error { return w.tar.Close() }

// File writes a file that is in no tree.
func (w *Writer) File(name string, data []byte, at time.Time) error {
	hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(data)), ModTime: at, Format: tar.FormatPAX}
	if err := w.tar.WriteHeader(hdr); err != nil {
		return err
	}
	_, err := w.tar.Write(data)
	return err
}

// Stream writes a file that is in no tree, from its beginning, as one that only its
// owner can read.
func (w *Writer) Stream(name string, f *os.File, at time.Time) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: info.Size(), ModTime: at, Format: tar.FormatPAX}
	if err := w.tar.WriteHeader(hdr); err != nil {
		return err
	}
	return w.content(io.NewSectionReader(f, 0, hdr.Size), hdr.Size)
}

// Tree writes the whole tree, its root first, in the order of names.
func (w *Writer) Tree() error {
	if err := w.add(int(w.root.Fd()), ".", "."); err != nil {
		return err
	}
	return w.below(int(w.root.Fd()), ".", 0)
}

// Path writes one file, directory or link of the tree, and nothing below it.
func (w *Writer) Path(name string) error {
	dir, err := unix.Openat2(int(w.root.Fd()), path.Dir(name), &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
	if err != nil {
		return fmt.Errorf("open %q: %w", path.Dir(name), err)
	}
	defer unix.Close(dir)
	return w.add(dir, path.Base(name), name)
}

// Whiteout says that a file of the layers below is gone, as the OCI image
// specification has it (layer.md, "Whiteouts").
func (w *Writer) Whiteout(name string) error {
	return w.File(w.prefix+path.Join(path.Dir(name), ".wh."+path.Base(name)), nil, time.Unix(0, 0))
}

// below writes what is in an open directory.
func (w *Writer) below(dir int, where string, depth int) error {
	if depth > maxDepth {
		return fault.New(fault.Invalid, "%q is more than %d directories deep", where, maxDepth)
	}
	names, err := namesIn(dir)
	if err != nil {
		return fmt.Errorf("read %q: %w", where, err)
	}
	for _, name := range names {
		at := path.Join(where, name)
		if err := w.add(dir, name, at); err != nil {
			return err
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return fmt.Errorf("open %q: %w", at, err)
		}
		err = w.below(fd, at, depth+1)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func namesIn(dir int) ([]string, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), ".")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// add writes one name of an open directory.
func (w *Writer) add(dir int, name, at string) error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	if err := w.entry(dir, name, at); err != nil {
		return fmt.Errorf("%q: %w", at, err)
	}
	return nil
}

func (w *Writer) entry(dir int, name, at string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	hdr := &tar.Header{
		Name: w.prefix + at, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		id := inode{uint64(st.Dev), st.Ino}
		if first, ok := w.links[id]; ok {
			hdr.Typeflag, hdr.Linkname = tar.TypeLink, first
			return w.tar.WriteHeader(hdr)
		}
		w.links[id] = hdr.Name
	}
	switch kind {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		hdr.Name = strings.TrimSuffix(hdr.Name, ".") // the root itself
		if hdr.Name == "" {
			hdr.Name = "./"
		} else if !strings.HasSuffix(hdr.Name, "/") {
			hdr.Name += "/"
		}
	case unix.S_IFLNK:
		target, err := readlink(dir, name)
		if err != nil {
			return err
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if kind == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	default:
		return nil // a socket
	}
	var err error
	if hdr.PAXRecords, err = attributes(dir, name); err != nil {
		return err
	}
	if kind != unix.S_IFREG {
		return w.tar.WriteHeader(hdr)
	}
	return w.regular(dir, name, hdr)
}

func (w *Writer) regular(dir int, name string, hdr *tar.Header) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if err := w.tar.WriteHeader(hdr); err != nil {
		return err
	}
	return w.content(f, hdr.Size)
}

// content writes so much of a file, as long as the context allows.
func (w *Writer) content(f io.Reader, size int64) error {
	n, err := io.Copy(w.tar, io.LimitReader(obedient{w.ctx, f}, size))
	if err == nil && n < size {
		err = fmt.Errorf("it got shorter while it was read")
	}
	return err
}

// obedient is a reader that ends with a context.
type obedient struct {
	ctx context.Context
	r   io.Reader
}

func (o obedient) Read(p []byte) (int, error) {
	if err := o.ctx.Err(); err != nil {
		return 0, err
	}
	return o.r.Read(p)
}

func readlink(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	return string(buf[:max(n, 0)]), err
}

// attributes gives the extended attributes of a file, as tar writes them. Those in
// the trusted name space are the host's: overlayfs marks its layers with them.
func attributes(dir int, name string) (map[string]string, error) {
	// The last part of the path is not followed, and the directory is open.
	file := fmt.Sprintf("/proc/self/fd/%d/%s", dir, name)
	list, err := attribute(func(buf []byte) (int, error) { return unix.Llistxattr(file, buf) })
	if errors.Is(err, unix.ENOTSUP) || len(list) == 0 && err == nil {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	records := map[string]string{}
	for _, key := range strings.Split(strings.TrimRight(list, "\x00"), "\x00") {
		if strings.HasPrefix(key, "trusted.") {
			continue
		}
		value, err := attribute(func(buf []byte) (int, error) { return unix.Lgetxattr(file, key, buf) })
		if err != nil {
			return nil, fmt.Errorf("attribute %q: %w", key, err)
		}
		records["SCHILY.xattr."+key] = value
	}
	return records, nil
}

// attribute reads something of which the size is not known before.
func attribute(read func([]byte) (int, error)) (string, error) {
	for {
		size, err := read(nil)
		if err != nil || size == 0 {
			return "", err
		}
		buf := make([]byte, size)
		n, err := read(buf)
		if errors.Is(err, unix.ERANGE) {
			continue // it grew
		}
		return string(buf[:max(n, 0)]), err
	}
}
