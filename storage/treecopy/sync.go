package treecopy

import (
	"context"
	"errors"
	"fmt"
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
func Sync(ctx context.Context, from, to string) error { return Update(ctx, "", from, to) }

// Update is Sync where to holds what from held at an earlier time, which base still
// shows. Of from, only what was touched since is read: what has another inode or
// time of change, which no program can set. An empty base is none.
func Update(ctx context.Context, base, from, to string) error {
	t, err := openTrees(base, from, to)
	if err != nil {
		return err
	}
	defer t.close()
	s := &syncer{copier{ctx: ctx, to: t.to, links: map[inode]string{}}}
	return s.directory(t, ".")
}

// trees are the same directory of three trees, open. Base may be -1.
type trees struct {
	base, from, to int
	known          func(dev, ino uint64) bool // files of from that need no look; nil: none
}

func openTrees(base, from, to string) (t trees, err error) {
	t = trees{base: -1, from: -1, to: -1}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for path, fd := range map[string]*int{base: &t.base, from: &t.from, to: &t.to} {
		if path == "" && fd == &t.base {
			continue
		}
		if *fd, err = openDir(unix.AT_FDCWD, path); err != nil {
			return t, fmt.Errorf("open %q: %w", path, err)
		}
	}
	return t, nil
}

func (t trees) close() {
	for _, fd := range []int{t.base, t.from, t.to} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// within opens a directory of all three; where base has none, it is -1.
func (t trees) within(name, where string) (in trees, err error) {
	in = trees{base: -1, from: -1, to: -1, known: t.known}
	if in.from, err = openDir(t.from, name); err == nil {
		in.to, err = openDir(t.to, name)
	}
	if err != nil {
		in.close()
		return in, wrapPath("open", where, err)
	}
	if t.base >= 0 {
		if fd, err := openDir(t.base, name); err == nil {
			in.base = fd
		}
	}
	return in, nil
}

// touched tells whether a file of from is another than in base, or may be.
func (t trees) touched(name string, now *unix.Stat_t) bool {
	if t.known != nil && t.known(now.Dev, now.Ino) {
		return false
	}
	var then unix.Stat_t
	if t.base < 0 || statAt(t.base, name, &then) != nil {
		return true
	}
	return then.Ino != now.Ino || then.Ctim != now.Ctim || then.Size != now.Size || then.Rdev != now.Rdev || !alike(&then, now)
}

// syncer is a copier that copies what is not there yet.
type syncer struct{ copier }

// directory makes what is in the open directory t.to the same as in t.from, and
// then its attributes.
func (s *syncer) directory(t trees, where string) error {
	want, err := NamesIn(t.from)
	if err != nil {
		return wrapPath("read", where, err)
	}
	have, err := NamesIn(t.to)
	if err != nil {
		return wrapPath("read", where, err)
	}
	slices.Sort(want)
	slices.Sort(have)
	for _, name := range have {
		if _, ok := slices.BinarySearch(want, name); !ok {
			if err := remove(t.to, name); err != nil {
				return wrapPath("remove", path.Join(where, name), err)
			}
		}
	}
	for _, name := range want {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		_, there := slices.BinarySearch(have, name)
		if err := s.entry(t, name, path.Join(where, name), there); err != nil {
			return err
		}
	}
	return s.adjust(t.from, "", t.to, "", where)
}

// entry makes one name the same.
func (s *syncer) entry(t trees, name, where string, there bool) error {
	if !there {
		return s.copier.entry(t.from, t.to, name, where)
	}
	var a, b unix.Stat_t
	if err := errors.Join(statAt(t.from, name, &a), statAt(t.to, name, &b)); err != nil {
		return wrapPath("stat", where, err)
	}
	kind := a.Mode & unix.S_IFMT
	switch {
	case kind == unix.S_IFDIR && b.Mode&unix.S_IFMT == kind:
		in, err := t.within(name, where)
		if err != nil {
			return err
		}
		defer in.close()
		return s.directory(in, where)
	case !t.touched(name, &a):
		return nil
	case kind == unix.S_IFREG && b.Mode&unix.S_IFMT == kind && a.Nlink == 1 && b.Nlink == 1:
		if err := s.rewrite(t, name); err != nil {
			return wrapPath("copy", where, err)
		}
		return s.adjust(t.from, name, t.to, name, where)
	}
	same, err := s.same(t.from, t.to, name, &a, &b)
	if err != nil {
		return wrapPath("compare", where, err)
	}
	if same {
		return nil
	}
	if err := remove(t.to, name); err != nil {
		return wrapPath("remove", where, err)
	}
	return s.copier.entry(t.from, t.to, name, where)
}

// same tells whether two files that are no directories and hold no data are alike
// in everything.
func (s *syncer) same(src, dst int, name string, a, b *unix.Stat_t) (bool, error) {
	if a.Mode&unix.S_IFMT == unix.S_IFREG || a.Nlink > 1 || b.Nlink > 1 || !alike(a, b) || a.Size != b.Size || a.Rdev != b.Rdev {
		return false, nil
	}
	if same, err := sameXattrs(src, name, dst, name); err != nil || !same {
		return false, err
	}
	if a.Mode&unix.S_IFMT != unix.S_IFLNK {
		return true, nil
	}
	return sameLink(src, dst, name)
}

func sameLink(src, dst int, name string) (bool, error) {
	x, err := readLink(src, name)
	if err != nil {
		return false, err
	}
	y, err := readLink(dst, name)
	return x == y, err
}

// alike compares what stat tells of files of any kind.
func alike(a, b *unix.Stat_t) bool {
	return a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid && a.Mtim == b.Mtim
}

func sameXattrs(src int, srcName string, dst int, dstName string) (bool, error) {
	var lists [2][]string
	for i, at := range []struct {
		dir  int
		name string
	}{{src, srcName}, {dst, dstName}} {
		fd, err := handle(at.dir, at.name)
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

// adjust gives a file the attributes of another, if they differ. Empty names mean
// the open directories themselves.
func (s *syncer) adjust(src int, srcName string, dst int, dstName, where string) error {
	var a, b unix.Stat_t
	if err := errors.Join(statAt(src, srcName, &a), statAt(dst, dstName, &b)); err != nil {
		return wrapPath("stat", where, err)
	}
	same, err := sameXattrs(src, srcName, dst, dstName)
	if err != nil {
		return wrapPath("attributes of", where, err)
	}
	if same && alike(&a, &b) {
		return nil
	}
	if !same {
		if err := dropXattrs(src, srcName, dst, dstName); err != nil {
			return wrapPath("attributes of", where, err)
		}
	}
	return s.attributes(src, srcName, dst, dstName, &a, where)
}

// dropXattrs removes the extended attributes of a file that another does not have.
func dropXattrs(src int, srcName string, dst int, dstName string) error {
	from, err := handle(src, srcName)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := handle(dst, dstName)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	keep, err := xattrNames(procPath(from))
	if err != nil {
		return err
	}
	have, err := xattrNames(procPath(to))
	if err != nil {
		return err
	}
	for _, name := range have {
		if slices.Contains(keep, name) {
			continue
		}
		if err := unix.Removexattr(procPath(to), name); err != nil {
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
