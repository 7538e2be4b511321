package treecopy

import (
	"context"
	"errors"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// Send tells the tree in from to somebody who has what base shows: an earlier state of
// it, as for Update. An empty base is none. Nobody changes either meanwhile.
func Send(ctx context.Context, base, from string, to Sink) error {
	t, err := openTrees(base, from, from+"/.") // nothing is written there
	if err != nil {
		return err
	}
	defer t.close()
	s := &sender{ctx: ctx, to: to, links: map[inode]string{}}
	return s.directory(t, ".", 0)
}

type sender struct {
	ctx   context.Context
	to    Sink
	links map[inode]string
}

// directory tells what is in the open directory t.from, and then its attributes.
func (s *sender) directory(t trees, where string, depth int) error {
	if depth > maxDepth {
		return wrapPath("read", where, errDeep)
	}
	names, err := NamesIn(t.from)
	if err != nil {
		return wrapPath("read", where, err)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := s.ctx.Err(); err != nil {
			return err
		}
		if err := s.entry(t, name, path.Join(where, name), depth); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(t.from, &st); err != nil {
		return wrapPath("stat", where, err)
	}
	a, err := attributesOf(t.from, "", &st)
	if err != nil {
		return wrapPath("attributes of", where, err)
	}
	return s.to.Record(record{Op: opUp, Attr: a})
}

func (s *sender) entry(t trees, name, where string, depth int) error {
	var st unix.Stat_t
	if err := statAt(t.from, name, &st); err != nil {
		return wrapPath("stat", where, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		in, err := t.within(name, where)
		if err != nil {
			return err
		}
		defer in.close()
		if err := s.to.Record(record{Op: opDir, Name: []byte(name)}); err != nil {
			return err
		}
		return s.directory(in, where, depth+1)
	}
	if !t.touched(name, &st) {
		return s.to.Record(record{Op: opKeep, Name: []byte(name)})
	}
	if st.Nlink > 1 {
		id := inode{st.Dev, st.Ino}
		if first, ok := s.links[id]; ok {
			return s.to.Record(record{Op: opLink, Name: []byte(name), Target: []byte(first)})
		}
		s.links[id] = where
	}
	a, err := attributesOf(t.from, name, &st)
	if err != nil {
		return wrapPath("attributes of", where, err)
	}
	r := record{Name: []byte(name), Attr: a}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return wrapPath("read", where, s.file(t, name, &st, r))
	case unix.S_IFLNK:
		to, err := readLink(t.from, name)
		if err != nil {
			return wrapPath("read", where, err)
		}
		r.Op, r.Target = opSymlink, []byte(to)
	default:
		r.Op, r.Device = opNode, st.Rdev
	}
	return s.to.Record(r)
}

// file tells a regular file, or where it differs from what it was.
func (s *sender) file(t trees, name string, st *unix.Stat_t, r record) error {
	from, err := openFile(t.from, name)
	if err != nil {
		return err
	}
	defer from.Close()
	r.Op, r.Size = opFile, st.Size
	x, err := newBlocks(from)
	if err != nil {
		return err
	}
	y := &blocks{}
	var then unix.Stat_t
	if t.base >= 0 && st.Nlink == 1 && statAt(t.base, name, &then) == nil && then.Mode&unix.S_IFMT == unix.S_IFREG && then.Nlink == 1 {
		base, err := openFile(t.base, name)
		if err != nil {
			return err
		}
		defer base.Close()
		if y, err = newBlocks(base); err != nil {
			return err
		}
		skip(x, y)
		r.Op = opPatch
	}
	if err := s.to.Record(r); err != nil {
		return err
	}
	err = differences(s.ctx, x, y, func(at int64, block []byte, size int) error {
		if block == nil {
			return s.to.Record(record{Op: opZero, At: at, Size: int64(size)})
		}
		if err := s.to.Record(record{Op: opData, At: at, Size: int64(len(block))}); err != nil {
			return err
		}
		_, err := s.to.Write(block)
		return err
	})
	return errors.Join(err, s.to.Record(record{Op: opDone}))
}
