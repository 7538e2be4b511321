package treecopy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Sync makes the tree in to the same as the tree in from, and touches only what
// differs, so that a tree that shares data with an older state of itself goes on
// sharing what is the same. Files are compared by what they hold: a program may
// set any time. Files with several names are copied anew. Nobody changes either
// tree meanwhile; after an error to is something between the two.
func Sync(ctx context.Context, from, to string) error {
	src, err := openDir(unix.AT_FDCWD, from)
	if err != nil {
		return fmt.Errorf("open %q: %w", from, err)
	}
	defer unix.Close(src)
	dst, err := openDir(unix.AT_FDCWD, to)
	if err != nil {
		return fmt.Errorf("open %q: %w", to, err)
	}
	defer unix.Close(dst)
	s := &syncer{copier{ctx: ctx, to: dst, links: map[inode]string{}}}
	return s.directory(src, dst, ".")
}

// syncer is a copier that copies what is not there yet.
type syncer struct{ copier }

// directory makes what is in the open directory dst the same as in src, and then
// its attributes.
func (s *syncer) directory(src, dst int, where string) error {
	want, err := NamesIn(src)
	if err != nil {
		return wrapPath("read", where, err)
	}
	have, err := NamesIn(dst)
	if err != nil {
		return wrapPath("read", where, err)
	}
	slices.Sort(want)
	slices.Sort(have)
	for _, name := range have {
		if _, ok := slices.BinarySearch(want, name); !ok {
			if err := remove(dst, name); err != nil {
				return wrapPath("remove", path.Join(where, name), err)
			}
		}
	}
	for _, name := range want {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		_, there := slices.BinarySearch(have, name)
		if err := s.entry(src, dst, name, path.Join(where, name), there); err != nil {
			return err
		}
	}
	return s.adjust(src, dst, where)
}

// entry makes one name the same.
func (s *syncer) entry(src, dst int, name, where string, there bool) error {
	if !there {
		return s.copier.entry(src, dst, name, where)
	}
	var a, b unix.Stat_t
	if err := errors.Join(statAt(src, name, &a), statAt(dst, name, &b)); err != nil {
		return wrapPath("stat", where, err)
	}
	if a.Mode&unix.S_IFMT == unix.S_IFDIR && b.Mode&unix.S_IFMT == unix.S_IFDIR {
		from, err := openDir(src, name)
		if err != nil {
			return wrapPath("open", where, err)
		}
		defer unix.Close(from)
		to, err := openDir(dst, name)
		if err != nil {
			return wrapPath("open", where, err)
		}
		defer unix.Close(to)
		return s.directory(from, to, where)
	}
	same, err := s.same(src, dst, name, &a, &b)
	if err != nil {
		return wrapPath("compare", where, err)
	}
	if same {
		return nil
	}
	if err := remove(dst, name); err != nil {
		return wrapPath("remove", where, err)
	}
	return s.copier.entry(src, dst, name, where)
}

// same tells whether two files that are no directories are alike in everything.
func (s *syncer) same(src, dst int, name string, a, b *unix.Stat_t) (bool, error) {
	if a.Nlink > 1 || b.Nlink > 1 || !alike(a, b) || a.Size != b.Size || a.Rdev != b.Rdev {
		return false, nil
	}
	if same, err := sameXattrs(src, dst, name); err != nil || !same {
		return false, err
	}
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return s.sameContent(src, dst, name, a.Size)
	case unix.S_IFLNK:
		x, err := readLink(src, name)
		if err != nil {
			return false, err
		}
		y, err := readLink(dst, name)
		return x == y, err
	}
	return true, nil
}

// alike compares what stat tells of files of any kind.
func alike(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtim == b.Mtim
}

func sameXattrs(src, dst int, name string) (bool, error) {
	var lists [2][]string
	for i, dir := range []int{src, dst} {
		fd, err := handle(dir, name)
		if err != nil {
			return false, err
		}
		lists[i], err = xattrs(procPath(fd))
		unix.Close(fd)
		if err != nil {
			return false, err
		}
	}
	return slices.Equal(lists[0], lists[1]), nil
}

// sameContent compares two files of one size.
func (s *syncer) sameContent(src, dst int, name string, size int64) (bool, error) {
	a, err := openFile(src, name)
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := openFile(dst, name)
	if err != nil {
		return false, err
	}
	defer b.Close()
	x, y := &blocks{file: a, size: size}, &blocks{file: b, size: size}
	for {
		atX, blockX, errX := x.read(s.ctx)
		atY, blockY, errY := y.read(s.ctx)
		endX, endY := errors.Is(errX, io.EOF), errors.Is(errY, io.EOF)
		switch {
		case errX != nil && !endX:
			return false, errX
		case errY != nil && !endY:
			return false, errY
		case endX || endY:
			return endX && endY, nil
		case atX != atY || !bytes.Equal(blockX, blockY):
			return false, nil
		}
	}
}

// adjust gives the open directory dst the attributes of src, if they differ.
func (s *syncer) adjust(src, dst int, where string) error {
	var a, b unix.Stat_t
	if err := errors.Join(unix.Fstat(src, &a), unix.Fstat(dst, &b)); err != nil {
		return wrapPath("stat", where, err)
	}
	same, err := sameXattrs(src, dst, "")
	if err != nil {
		return wrapPath("attributes of", where, err)
	}
	if same && alike(&a, &b) {
		return nil
	}
	if !same {
		if err := dropXattrs(src, dst); err != nil {
			return wrapPath("attributes of", where, err)
		}
	}
	return s.attributes(src, "", dst, "", &a, where)
}

// dropXattrs removes the extended attributes of the open directory dst that src
// does not have.
func dropXattrs(src, dst int) error {
	keep, err := xattrNames(procPath(src))
	if err != nil {
		return err
	}
	have, err := xattrNames(procPath(dst))
	if err != nil {
		return err
	}
	for _, name := range have {
		if slices.Contains(keep, name) {
			continue
		}
		if err := unix.Removexattr(procPath(dst), name); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// remove removes a name with all that is below it, without following links.
func remove(dir int, name string) error {
	root, err := os.OpenRoot(procPath(dir) + "/.")
	if err != nil {
		return err
	}
	defer root.Close()
	return root.RemoveAll(name)
}
