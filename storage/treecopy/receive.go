package treecopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Receive makes the tree in to what is told: to is empty, or holds what the other end
// took for the base. What is told may be anything. Nothing outside of to is touched,
// and names that are not told are gone in the end. Errors are invalid where what is
// told cannot be.
func Receive(ctx context.Context, to string, from Well) error {
	root, err := openDir(unix.AT_FDCWD, to)
	if err != nil {
		return fmt.Errorf("open %q: %w", to, err)
	}
	defer unix.Close(root)
	r := &receiver{ctx: ctx, root: root, from: from}
	return r.directory(root, ".", 0)
}

type receiver struct {
	ctx  context.Context
	root int
	from Well
	buf  [blockSize]byte
}

func nonsense(where, format string, args ...any) error {
	return fault.New(fault.Invalid, "%q: "+format, append([]any{where}, args...)...)
}

// next reads a record.
func (r *receiver) next(rec *record) error {
	err := r.from.Record(rec)
	if errors.Is(err, io.EOF) {
		err = fault.New(fault.Invalid, "what is told of the files ends too early")
	}
	return err
}

// directory takes what is in an open directory.
func (r *receiver) directory(dir int, where string, depth int) error {
	if depth > maxDepth {
		return nonsense(where, "%v", errDeep)
	}
	told := map[string]bool{}
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		var rec record
		if err := r.next(&rec); err != nil {
			return err
		}
		if rec.Op == opUp {
			return r.leave(dir, where, told, rec)
		}
		name := string(rec.Name)
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\x00") || told[name] {
			return nonsense(where, "it has the name %q, which cannot be or is there already", name)
		}
		told[name] = true
		if err := r.entry(dir, name, path.Join(where, name), rec, depth); err != nil {
			return err
		}
	}
}

// leave drops what was not told of a directory, and gives it its attributes.
func (r *receiver) leave(dir int, where string, told map[string]bool, rec record) error {
	names, err := NamesIn(dir)
	if err != nil {
		return wrapPath("read", where, err)
	}
	for _, name := range names {
		if told[name] {
			continue
		}
		if err := remove(dir, name); err != nil {
			return wrapPath("remove", path.Join(where, name), err)
		}
	}
	return r.attributes(dir, "", where, unix.S_IFDIR, rec)
}

func (r *receiver) entry(dir int, name, where string, rec record, depth int) error {
	switch rec.Op {
	case opDir:
		return r.within(dir, name, where, depth)
	case opKeep:
		var st unix.Stat_t
		if err := statAt(dir, name, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nonsense(where, "it is to be kept and is not there")
		}
		return nil
	case opPatch:
		return r.file(dir, name, where, rec)
	}
	if err := remove(dir, name); err != nil {
		return wrapPath("remove", where, err)
	}
	switch rec.Op {
	case opFile:
		return r.file(dir, name, where, rec)
	case opLink:
		return r.link(dir, name, where, string(rec.Target))
	case opSymlink:
		if len(rec.Target) == 0 || len(rec.Target) >= unix.PathMax || bytes.IndexByte(rec.Target, 0) >= 0 {
			return nonsense(where, "it leads to %q", rec.Target)
		}
		if err := unix.Symlinkat(string(rec.Target), dir, name); err != nil {
			return wrapPath("make", where, err)
		}
		return r.attributes(dir, name, where, unix.S_IFLNK, rec)
	case opNode:
		return r.node(dir, name, where, rec)
	}
	return nonsense(where, "%q makes no sense for it", rec.Op)
}

// within takes a directory, which may be there.
func (r *receiver) within(dir int, name, where string, depth int) error {
	fd, err := openDir(dir, name)
	if err != nil {
		if err := remove(dir, name); err != nil {
			return wrapPath("remove", where, err)
		}
		if err := unix.Mkdirat(dir, name, 0o700); err != nil {
			return wrapPath("mkdir", where, err)
		}
		if fd, err = openDir(dir, name); err != nil {
			return wrapPath("open", where, err)
		}
	}
	defer unix.Close(fd)
	return r.directory(fd, where, depth+1)
}

func (r *receiver) node(dir int, name, where string, rec record) error {
	if rec.Attr == nil {
		return nonsense(where, "it has no type")
	}
	switch kind := rec.Attr.Mode & unix.S_IFMT; kind {
	case unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
		if kind == unix.S_IFCHR && rec.Device == 0 {
			return nonsense(where, "it is what overlayfs takes for a file that is gone")
		}
		if err := unix.Mknodat(dir, name, kind|0o600, int(rec.Device)); err != nil {
			return wrapPath("make", where, err)
		}
		return r.attributes(dir, name, where, kind, rec)
	default:
		return nonsense(where, "it has the type %o", kind)
	}
}

// link gives a file that was told before another name.
func (r *receiver) link(dir int, name, where, target string) error {
	if !path.IsAbs("/"+target) || path.Clean(target) != target || strings.HasPrefix(target, "/") {
		return nonsense(where, "it is a link to %q", target)
	}
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	parent, err := unix.Openat2(r.root, path.Dir(target), how)
	for range 1000 {
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
		parent, err = unix.Openat2(r.root, path.Dir(target), how)
	}
	if err != nil {
		return nonsense(where, "it is a link to %q, which is not there", target)
	}
	defer unix.Close(parent)
	err = unix.Linkat(parent, path.Base(target), dir, name, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPERM) {
		return nonsense(where, "it is a link to %q, which is not there or is no file", target)
	}
	return wrapPath("link", where, err)
}

// file takes the parts of a regular file.
func (r *receiver) file(dir int, name, where string, rec record) error {
	flags := unix.O_RDWR | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	if rec.Op == opFile {
		flags |= unix.O_CREAT | unix.O_EXCL
	}
	fd, err := unix.Openat(dir, name, flags, 0o600)
	if err != nil && rec.Op == opPatch {
		return nonsense(where, "it is to be changed and cannot be: %v", err)
	}
	if err != nil {
		return wrapPath("make", where, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || rec.Size < 0 {
		return nonsense(where, "it is no regular file")
	}
	for {
		var part record
		if err := r.next(&part); err != nil {
			return err
		}
		if part.Op == opDone {
			break
		}
		if err := r.part(f, where, rec.Size, part); err != nil {
			return err
		}
	}
	if err := f.Truncate(rec.Size); err != nil {
		return wrapPath("write", where, err)
	}
	return r.attributes(dir, name, where, unix.S_IFREG, rec)
}

func (r *receiver) part(f *os.File, where string, size int64, part record) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	if part.At < 0 || part.Size <= 0 || part.Size > blockSize {
		return nonsense(where, "it has a part of %d bytes at %d", part.Size, part.At)
	}
	switch {
	case part.Op == opZero: // it may have been longer
		return wrapPath("write", where, clearRange(f, part.At, part.Size))
	case part.Op != opData || part.At > size-part.Size:
		return nonsense(where, "it has a part %q of %d bytes at %d", part.Op, part.Size, part.At)
	}
	block := r.buf[:part.Size]
	if err := r.from.Full(block); err != nil {
		return err
	}
	_, err := f.WriteAt(block, part.At)
	return wrapPath("write", where, err)
}

// attributes gives a file everything but its data. An empty name is the directory.
func (r *receiver) attributes(dir int, name, where string, kind uint32, rec record) error {
	a := rec.Attr
	if a == nil || a.Mode&unix.S_IFMT != kind || a.Modified[1] < 0 || a.Modified[1] >= 1e9 {
		return nonsense(where, "its attributes make no sense")
	}
	fd, err := handle(dir, name)
	if err != nil {
		return wrapPath("open", where, err)
	}
	defer unix.Close(fd)
	if err := unix.Fchownat(fd, "", int(a.UID), int(a.GID), unix.AT_EMPTY_PATH); err != nil {
		return wrapPath("chown", where, err)
	}
	if err := extend(procPath(fd), where, a.Extended); err != nil {
		return err
	}
	if kind != unix.S_IFLNK {
		if err := unix.Chmod(procPath(fd), a.Mode&0o7777); err != nil {
			return wrapPath("chmod", where, err)
		}
	}
	modified := unix.Timespec{Sec: a.Modified[0], Nsec: a.Modified[1]}
	return wrapPath("times of", where, unix.UtimesNanoAt(fd, "", []unix.Timespec{modified, modified}, unix.AT_EMPTY_PATH))
}

// overlayfs begins the names of attributes by which overlayfs puts layers together.
const overlayfs = "trusted.overlay."

// extend gives a file these extended attributes and no others.
func extend(file, where string, want [][2][]byte) error {
	have, err := xattrNames(file)
	if err != nil {
		return wrapPath("attributes of", where, err)
	}
	wanted := map[string]bool{}
	for _, x := range want {
		name := string(x[0])
		if strings.HasPrefix(name, overlayfs) || strings.ContainsRune(name, 0) {
			return nonsense(where, "it has the attribute %q, by which layers are put together", name)
		}
		wanted[name] = true
		if err := unix.Setxattr(file, name, x[1], 0); err != nil {
			return fmt.Errorf("attribute %q of %q: %w", name, where, err)
		}
	}
	for _, name := range have {
		if wanted[name] {
			continue
		}
		if err := unix.Removexattr(file, name); err != nil && !errors.Is(err, unix.ENODATA) {
			return fmt.Errorf("attribute %q of %q: %w", name, where, err)
		}
	}
	return nil
}
