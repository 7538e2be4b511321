// Package treediff tells how two trees of files differ. Names, links and sizes
// come from guests: every step goes from one open directory to a name in it and
// follows no link, and files are read only where what is said about them differs.
package treediff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/treecopy"
)

// Kind is how a path differs.
type Kind string

// The kinds of changes.
const (
	Added   Kind = "added"
	Removed Kind = "removed"
	Changed Kind = "changed"
)

// Change is one path that differs.
type Change struct {
	Path string   `json:"path"` // from the root, beginning with a slash
	Kind Kind     `json:"change"`
	What []string `json:"what,omitempty"` // of a changed path: content, target, device, type, mode, owner, attributes
}

// maxDepth bounds how deep trees are walked: each level takes two open files.
const maxDepth = 400

// Walk calls each for every path that differs between the open directories a and
// b, in the order of their names. Below a directory that is on one side only, all
// paths are told. Times alone make no difference. It ends with the first error of
// each, and when ctx ends.
func Walk(ctx context.Context, a, b int, each func(Change) error) error {
	w := &walker{ctx: ctx, each: each}
	return w.both(a, b, "/", 0)
}

type walker struct {
	ctx    context.Context
	each   func(Change) error
	buffer [2][]byte
}

// both compares two directories.
func (w *walker) both(a, b int, where string, depth int) error {
	inA, err := w.names(a, where, depth)
	if err != nil {
		return err
	}
	inB, err := w.names(b, where, depth)
	if err != nil {
		return err
	}
	for len(inA)+len(inB) > 0 {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		switch {
		case len(inB) == 0 || len(inA) > 0 && inA[0] < inB[0]:
			err = w.one(a, inA[0], path.Join(where, inA[0]), Removed, depth)
			inA = inA[1:]
		case len(inA) == 0 || inB[0] < inA[0]:
			err = w.one(b, inB[0], path.Join(where, inB[0]), Added, depth)
			inB = inB[1:]
		default:
			err = w.pair(a, b, inA[0], path.Join(where, inA[0]), depth)
			inA, inB = inA[1:], inB[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *walker) names(dir int, where string, depth int) ([]string, error) {
	if depth > maxDepth {
		return nil, fault.New(fault.Exhausted, "cannot compare %q: it is nested more than %d levels deep", where, maxDepth)
	}
	names, err := treecopy.NamesIn(dir)
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", where, err)
	}
	slices.Sort(names)
	return names, nil
}

// one tells about what is on one side only.
func (w *walker) one(dir int, name, where string, kind Kind, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(where, err)
	}
	if err := w.each(Change{Path: where, Kind: kind}); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return w.within(dir, name, where, func(fd int) error {
		names, err := w.names(fd, where, depth+1)
		if err != nil {
			return err
		}
		for _, n := range names {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			if err := w.one(fd, n, path.Join(where, n), kind, depth+1); err != nil {
				return err
			}
		}
		return nil
	})
}

// within calls f with the directory name in dir.
func (w *walker) within(dir int, name, where string, f func(fd int) error) error {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ignoreGone(where, err)
	}
	defer unix.Close(fd)
	return f(fd)
}

// ignoreGone forgives what went away meanwhile in a tree that is in use.
func ignoreGone(where string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	return fmt.Errorf("cannot look at %q: %w", where, err)
}

// pair compares what both sides have under a name.
func (w *walker) pair(a, b int, name, where string, depth int) error {
	var sa, sb unix.Stat_t
	if err := unix.Fstatat(a, name, &sa, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(where, err)
	}
	if err := unix.Fstatat(b, name, &sb, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return ignoreGone(where, err)
	}
	if sa.Mode&unix.S_IFMT != sb.Mode&unix.S_IFMT {
		return w.replaced(a, b, name, where, &sa, &sb, depth)
	}
	what, err := w.compare(a, b, name, &sa, &sb)
	if err != nil {
		return ignoreGone(where, err)
	}
	if len(what) > 0 {
		if err := w.each(Change{Path: where, Kind: Changed, What: what}); err != nil {
			return err
		}
	}
	if sa.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	return w.within(a, name, where, func(inA int) error {
		return w.within(b, name, where, func(inB int) error { return w.both(inA, inB, where, depth+1) })
	})
}

// replaced tells that a file became one of another type. What was in a directory
// is told after it.
func (w *walker) replaced(a, b int, name, where string, sa, sb *unix.Stat_t, depth int) error {
	if err := w.each(Change{Path: where, Kind: Changed, What: []string{"type"}}); err != nil {
		return err
	}
	for _, side := range []struct {
		dir  int
		st   *unix.Stat_t
		kind Kind
	}{{a, sa, Removed}, {b, sb, Added}} {
		if side.st.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		err := w.within(side.dir, name, where, func(fd int) error {
			names, err := w.names(fd, where, depth+1)
			for _, n := range names {
				if err == nil {
					err = w.one(fd, n, path.Join(where, n), side.kind, depth+1)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// compare tells in what two files of one type differ.
func (w *walker) compare(a, b int, name string, sa, sb *unix.Stat_t) (what []string, err error) {
	// Nothing changes a file without changing one of these.
	untouched := sa.Size == sb.Size && sa.Mtim == sb.Mtim && sa.Ctim == sb.Ctim && sa.Ino == sb.Ino
	add := func(word string, differs bool) {
		if differs {
			what = append(what, word)
		}
	}
	switch sa.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		differs := sa.Size != sb.Size
		if !differs && !untouched {
			differs, err = w.content(a, b, name, sa.Size)
		}
		add("content", differs)
	case unix.S_IFLNK:
		differs, err := targets(a, b, name)
		if err != nil {
			return nil, err
		}
		add("target", differs)
	case unix.S_IFCHR, unix.S_IFBLK:
		add("device", sa.Rdev != sb.Rdev)
	}
	if err != nil {
		return nil, err
	}
	add("mode", sa.Mode != sb.Mode)
	add("owner", sa.Uid != sb.Uid || sa.Gid != sb.Gid)
	if !untouched {
		differs, err := attributes(a, b, name)
		if err != nil {
			return nil, err
		}
		add("attributes", differs)
	}
	return what, nil
}

func targets(a, b int, name string) (differ bool, err error) {
	var text [2]string
	for i, dir := range []int{a, b} {
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(dir, name, buf)
		if err != nil {
			return false, err
		}
		text[i] = string(buf[:n])
	}
	return text[0] != text[1], nil
}

// content compares two regular files of one size, leaving out holes that both
// have.
func (w *walker) content(a, b int, name string, size int64) (differ bool, err error) {
	var fds [2]int
	for i, dir := range []int{a, b} {
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return false, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return true, nil // it was replaced just now
		}
		fds[i] = fd
		if w.buffer[i] == nil {
			w.buffer[i] = make([]byte, 256<<10)
		}
	}
	for at := int64(0); at < size; {
		if err := w.ctx.Err(); err != nil {
			return false, err
		}
		at = min(data(fds[0], at, size), data(fds[1], at, size))
		if at >= size {
			return false, nil
		}
		n, err := w.read(fds, at)
		if err != nil {
			return false, err
		}
		if n < 0 {
			return true, nil
		}
		if n == 0 {
			return false, nil
		}
		at += int64(n)
	}
	return false, nil
}

// data gives where data is next in a file.
func data(fd int, at, size int64) int64 {
	next, err := unix.Seek(fd, at, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size
	case err != nil:
		return at
	}
	return next
}

// read compares what two files have at an offset, and gives how much that was; a
// negative number means that it differs.
func (w *walker) read(fds [2]int, at int64) (int, error) {
	var n [2]int
	for i, fd := range fds {
		for n[i] < len(w.buffer[i]) {
			got, err := unix.Pread(fd, w.buffer[i][n[i]:], at+int64(n[i]))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil {
				return 0, err
			}
			if got == 0 {
				break
			}
			n[i] += got
		}
	}
	if n[0] != n[1] || !bytes.Equal(w.buffer[0][:n[0]], w.buffer[1][:n[1]]) {
		return -1, nil
	}
	return n[0], nil
}

// attributes compares all extended attributes.
func attributes(a, b int, name string) (differ bool, err error) {
	var all [2]map[string]string
	for i, dir := range []int{a, b} {
		fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, err
		}
		all[i], err = attributesOf(fmt.Sprintf("/proc/self/fd/%d", fd))
		unix.Close(fd)
		if err != nil {
			return false, err
		}
	}
	if len(all[0]) != len(all[1]) {
		return true, nil
	}
	for key, value := range all[0] {
		if other, ok := all[1][key]; !ok || other != value {
			return true, nil
		}
	}
	return false, nil
}

// maxAttributes is the kernel's bound on names and on one value.
const maxAttributes = 64 << 10

func attributesOf(path string) (map[string]string, error) {
	buf := make([]byte, 1<<10)
	n, err := unix.Listxattr(path, buf)
	if errors.Is(err, unix.ERANGE) {
		buf = make([]byte, maxAttributes)
		n, err = unix.Listxattr(path, buf)
	}
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil || n == 0 {
		return nil, err
	}
	all := map[string]string{}
	value := make([]byte, maxAttributes)
	for _, key := range strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00") {
		n, err := unix.Getxattr(path, key, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		all[key] = string(value[:n])
	}
	return all, nil
}
