package treecopy

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Ahead copies a tree in two goes: first while programs change it, and then, when
// they stand still, what they have changed since. So they stand for as long as
// their last changes take to copy, and not for all there is.
//
// A file is left as the first go copied it if it is the same file, in the same
// place, and the kernel has not noted a change of it since: a program can set any
// time of a file but that one.
type Ahead struct {
	from, to string
	since    time.Time // what was changed later is copied again
	copied   map[inode]copied
	kept     map[inode]bool // files with several names whose copies stay
}

// copied is a copy that the first go made.
type copied struct {
	inode
	changed unix.Timespec // when the original was changed last
}

// slack is more than the kernel's clock for files lags behind the real one.
const slack = 100 * time.Millisecond

// NewAhead copies the directory from to the existing, empty directory to.
func NewAhead(from, to string) *Ahead {
	return &Ahead{from: from, to: to, copied: map[inode]copied{}, kept: map[inode]bool{}}
}

// Copy is the first go, which is of use but not needed. What changes under its
// hands is left to the second.
func (a *Ahead) Copy(ctx context.Context) error {
	return a.walk(ctx, func(c *copier, src, dst int) error {
		a.since = time.Now().Add(-slack)
		// What a program writes to a file that it has mapped is noted once, until the
		// kernel has written it: from here on, it is noted again.
		if err := unix.Syncfs(src); err != nil {
			return fmt.Errorf("sync %q: %w", a.from, err)
		}
		return a.fill(c, src, dst, ".")
	})
}

// Finish is the second go. Nobody changes the tree meanwhile.
func (a *Ahead) Finish(ctx context.Context) error {
	return a.walk(ctx, func(c *copier, src, dst int) error {
		return a.finish(&syncer{*c}, src, dst, ".")
	})
}

func (a *Ahead) walk(ctx context.Context, f func(c *copier, src, dst int) error) error {
	src, err := openDir(unix.AT_FDCWD, a.from)
	if err != nil {
		return fmt.Errorf("open %q: %w", a.from, err)
	}
	defer unix.Close(src)
	dst, err := openDir(unix.AT_FDCWD, a.to)
	if err != nil {
		return fmt.Errorf("open %q: %w", a.to, err)
	}
	defer unix.Close(dst)
	return f(&copier{ctx: ctx, to: dst, links: map[inode]string{}}, src, dst)
}

// fill copies what is in a directory, as far as it stays where it is.
func (a *Ahead) fill(c *copier, src, dst int, where string) error {
	names, err := NamesIn(src)
	if err != nil {
		return serious(c.ctx, err)
	}
	for _, name := range names {
		err := a.entry(c, src, dst, name, path.Join(where, name))
		if err := serious(c.ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// serious gives err unless it may come from a change made meanwhile.
func serious(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EIO) {
		return err
	}
	return nil
}

func (a *Ahead) entry(c *copier, src, dst int, name, where string) error {
	var st unix.Stat_t
	if err := statAt(src, name, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if err := c.entry(src, dst, name, where); err != nil {
			return err
		}
		var copy unix.Stat_t
		if err := statAt(dst, name, &copy); err != nil {
			return err
		}
		a.copied[inode{st.Dev, st.Ino}] = copied{inode{copy.Dev, copy.Ino}, st.Ctim}
		return nil
	}
	from, err := openDir(src, name)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	if err := unix.Mkdirat(dst, name, 0o700); err != nil {
		return err
	}
	to, err := openDir(dst, name)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	return a.fill(c, from, to, where)
}

// finish makes what is in the open directory dst the same as in src.
func (a *Ahead) finish(s *syncer, src, dst int, where string) error {
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
		if err := a.finishEntry(s, src, dst, name, path.Join(where, name), there); err != nil {
			return err
		}
	}
	return s.adjust(src, "", dst, "", where)
}

func (a *Ahead) finishEntry(s *syncer, src, dst int, name, where string, there bool) error {
	if !there {
		return s.copier.entry(src, dst, name, where)
	}
	var from, to unix.Stat_t
	if err := errors.Join(statAt(src, name, &from), statAt(dst, name, &to)); err != nil {
		return wrapPath("stat", where, err)
	}
	if from.Mode&unix.S_IFMT == unix.S_IFDIR && to.Mode&unix.S_IFMT == unix.S_IFDIR {
		return a.finishDirectory(s, src, dst, name, where)
	}
	if a.same(&from, &to) && a.sole(s, &from, where) {
		return nil
	}
	if err := remove(dst, name); err != nil {
		return wrapPath("remove", where, err)
	}
	return s.copier.entry(src, dst, name, where)
}

func (a *Ahead) finishDirectory(s *syncer, src, dst int, name, where string) error {
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
	return a.finish(s, from, to, where)
}

// same tells whether to is what the first go made of from, and from the same since.
func (a *Ahead) same(from, to *unix.Stat_t) bool {
	c, ok := a.copied[inode{from.Dev, from.Ino}]
	return ok && c.inode == inode{to.Dev, to.Ino} && c.changed == from.Ctim && time.Unix(from.Ctim.Unix()).Before(a.since)
}

// sole tells whether a file may stay with the copy that the first go made of it:
// not if it has another name already, with another copy.
func (a *Ahead) sole(s *syncer, from *unix.Stat_t, where string) bool {
	id := inode{from.Dev, from.Ino}
	if from.Nlink == 1 || a.kept[id] {
		return true
	}
	if s.links[id] != "" {
		return false
	}
	s.links[id], a.kept[id] = where, true
	return true
}
