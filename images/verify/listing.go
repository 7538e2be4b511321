package verify

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"brig/instance/fault"
)

// listingHead is the first line of a listing, with its version.
const listingHead = "brig tree 1\n"

// WriteTo writes the model as a text with a line for each name, in order. One
// tree gives one text, wherever and whenever it is read.
func (m *Model) WriteTo(w io.Writer) (int64, error) {
	out := &counted{w: bufio.NewWriterSize(w, 64<<10)}
	io.WriteString(out, listingHead)
	groups := map[*inode]int{}
	var line []byte
	m.each(func(path string, n *node) {
		line = appendLine(line[:0], path, n, groups)
		out.Write(line)
	})
	if out.err == nil {
		out.err = out.w.Flush()
	}
	return out.n, out.err
}

// counted counts, and keeps the first error.
type counted struct {
	w   *bufio.Writer
	n   int64
	err error
}

func (c *counted) Write(b []byte) (int, error) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(b)
		c.n += int64(n)
	}
	return len(b), c.err
}

// Digest is "sha256:" and the hash of the listing.
func (m *Model) Digest() string {
	h := sha256.New()
	m.WriteTo(h) // a hash takes all
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// appendLine writes path, type, mode, owner, time, group of names that are one
// file, and what only one type has. A name of a group that was there says no more
// than that.
func appendLine(b []byte, path string, n *node, groups map[*inode]int) []byte {
	group, again := 0, false
	if n.names > 1 {
		if group, again = groups[n.inode]; !again {
			group = len(groups) + 1
			groups[n.inode] = group
		}
	}
	b = strconv.AppendQuote(b, path)
	if again {
		return fmt.Appendf(b, " = %d\n", group)
	}
	b = fmt.Appendf(b, " %c %04o %d %d %d.%09d %d", n.kind, n.mode, n.uid, n.gid, n.sec, n.nsec, group)
	switch n.kind {
	case File:
		b = fmt.Appendf(b, " %d %x", n.size, n.hash)
	case Symlink:
		b = strconv.AppendQuote(append(b, ' '), n.target)
	case CharDevice, BlockDevice:
		b = fmt.Appendf(b, " %d %d", n.major, n.minor)
	}
	for _, name := range slices.Sorted(maps.Keys(n.xattrs)) {
		b = strconv.AppendQuote(append(b, ' '), name)
		b = strconv.AppendQuote(append(b, ' '), n.xattrs[name])
	}
	return append(b, '\n')
}

// maxLine bounds a line: a path, and attributes of which the kernel bounds both
// names and values, four bytes for each byte of them.
const maxLine = 4 << 20

// ReadListing reads what WriteTo wrote. Errors: invalid.
func ReadListing(r io.Reader, limits Limits) (*Model, error) {
	m, err := readListing(r, limits.withDefaults())
	if err != nil {
		return nil, fmt.Errorf("cannot read the listing of a tree: %w", err)
	}
	return m, nil
}

func readListing(r io.Reader, limits Limits) (*Model, error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(make([]byte, 64<<10), maxLine)
	if !lines.Scan() || lines.Text()+"\n" != listingHead {
		return nil, fault.New(fault.Invalid, "it is none, or one of another version")
	}
	m, groups := &Model{}, map[int]*inode{}
	for count := 1; lines.Scan(); count++ {
		if count > limits.Entries {
			return nil, fault.New(fault.Exhausted, "it has more than %d lines", limits.Entries)
		}
		if err := m.line(lines.Text(), groups, limits); err != nil {
			return nil, fault.New(fault.Invalid, "line %d: %w", count+1, err)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	if m.root == nil {
		return nil, fault.New(fault.Invalid, "it is empty")
	}
	m.settle()
	return m, nil
}

func (m *Model) line(text string, groups map[int]*inode, limits Limits) error {
	f := &fields{rest: text}
	path := f.quoted()
	kind := f.word()
	i := &inode{}
	if kind == "=" {
		i = groups[int(f.number(31))]
		if i == nil {
			return fault.New(fault.Invalid, "it is another name of nothing")
		}
	} else {
		f.inode(i, kind, groups)
	}
	if f.bad || f.rest != "" {
		return fault.New(fault.Invalid, "it is damaged")
	}
	return m.add(path, i, limits)
}

func (m *Model) add(path string, i *inode, limits Limits) error {
	if path == "/" && m.root == nil && i.kind == Directory {
		m.root = &node{inode: i}
		return nil
	}
	if m.root == nil || !strings.HasPrefix(path, "/") {
		return fault.New(fault.Invalid, "it does not begin at the root")
	}
	names := strings.Split(path[1:], "/")
	if len(names) > limits.Depth+2 {
		return fault.New(fault.Invalid, "it lies too deep")
	}
	n := m.root
	for _, name := range names[:len(names)-1] {
		if n = n.kids[name]; n == nil || n.kind != Directory {
			return fault.New(fault.Invalid, "it lies in no directory")
		}
	}
	last := names[len(names)-1]
	if last == "" || last == "." || last == ".." || n.kids[last] != nil {
		return fault.New(fault.Invalid, "its name %q cannot be", last)
	}
	n.put(last, i)
	return nil
}

// fields takes a line apart.
type fields struct {
	rest string
	bad  bool
}

func (f *fields) word() string {
	word, rest, _ := strings.Cut(f.rest, " ")
	f.rest = rest
	f.bad = f.bad || word == ""
	return word
}

func (f *fields) quoted() string {
	q, err := strconv.QuotedPrefix(f.rest)
	if err != nil || len(q) < len(f.rest) && f.rest[len(q)] != ' ' {
		f.bad, f.rest = true, ""
		return ""
	}
	f.rest = strings.TrimPrefix(f.rest[len(q):], " ")
	s, err := strconv.Unquote(q)
	f.bad = f.bad || err != nil
	return s
}

func (f *fields) number(bits int) uint64 {
	n, err := strconv.ParseUint(f.word(), 10, bits)
	f.bad = f.bad || err != nil
	return n
}

func (f *fields) inode(i *inode, kind string, groups map[int]*inode) {
	if len(kind) != 1 || Type(kind[0]).String() == "unknown" {
		f.bad = true
		return
	}
	i.kind = Type(kind[0])
	mode, err := strconv.ParseUint(f.word(), 8, 12)
	f.bad = f.bad || err != nil
	i.mode, i.uid, i.gid = uint32(mode), uint32(f.number(32)), uint32(f.number(32))
	sec, nsec, _ := strings.Cut(f.word(), ".")
	var errSec, errNsec error
	i.sec, errSec = strconv.ParseInt(sec, 10, 64)
	n, errNsec := strconv.ParseUint(nsec, 10, 30)
	f.bad = f.bad || errSec != nil || errNsec != nil
	i.nsec = int32(n)
	if group := int(f.number(31)); group != 0 {
		f.bad = f.bad || groups[group] != nil || i.kind == Directory
		groups[group] = i
	}
	switch i.kind {
	case File:
		i.size = int64(f.number(63))
		raw, err := hex.DecodeString(f.word())
		f.bad = f.bad || err != nil || len(raw) != len(i.hash)
		copy(i.hash[:], raw)
	case Symlink:
		i.target = f.quoted()
	case CharDevice, BlockDevice:
		i.major, i.minor = uint32(f.number(32)), uint32(f.number(32))
	}
	for f.rest != "" && !f.bad {
		if i.xattrs == nil {
			i.xattrs = map[string]string{}
		}
		name := f.quoted()
		i.xattrs[name] = f.quoted()
	}
}

// Listing is the text of WriteTo.
func (m *Model) Listing() []byte {
	var b bytes.Buffer
	m.WriteTo(&b) // a buffer takes all
	return b.Bytes()
}
