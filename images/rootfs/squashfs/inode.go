package squashfs

import (
	"encoding/binary"
	"io"
	"strings"
)

// The kinds of inodes; with 7 added, the extended form of each.
const (
	kindDir = 1 + iota
	kindFile
	kindSymlink
	kindBlock
	kindChar
	kindFifo
	kindSocket

	extended = 7
)

// Limits of single things.
const (
	maxTarget  = 4095
	maxName    = 256
	maxListing = 64 << 20 // bytes of one directory
	maxFile    = 1 << 46  // bytes; so that the number of blocks stays one of memory
)

// inode is one file of any kind.
type inode struct {
	kind     uint16
	mode     uint16
	uid, gid uint16 // indexes
	mtime    uint32
	number   uint32
	links    uint32
	xattr    uint32 // index

	size   int64 // of a file's content, or of a directory's listing
	target string
	device uint32

	start      uint64 // of the first block of a file; of a directory's listing
	offset     uint32 // in the fragment of a file; in the block of a listing
	fragment   uint32
	blocks     *cursor // the sizes of a file's blocks come from here
	blockCount int64
}

// readInode reads the inode that a reference names.
func (img *image) readInode(ref uint64) (*inode, error) {
	c := img.cursor(int64(img.super.InodeTable), ref)
	n := &inode{xattr: none, links: 1, fragment: none}
	kind := c.u16()
	n.mode, n.uid, n.gid, n.mtime, n.number = c.u16(), c.u16(), c.u16(), c.u32(), c.u32()
	n.kind = kind
	long := kind > extended
	if long {
		n.kind -= extended
	}
	switch n.kind {
	case kindDir:
		n.readDir(c, long)
	case kindFile:
		n.readFile(c, long, img.super.BlockSize)
	case kindSymlink:
		n.links = c.u32()
		size := c.u32()
		if c.err == nil && (size == 0 || size > maxTarget) {
			return nil, damaged("the target of a link has %d bytes", size)
		}
		n.target = string(c.bytes(int(size)))
	case kindBlock, kindChar:
		n.links, n.device = c.u32(), c.u32()
	case kindFifo, kindSocket:
		n.links = c.u32()
	default:
		if c.err == nil {
			return nil, damaged("an inode is of kind %d", kind)
		}
	}
	if long && n.kind != kindDir && n.kind != kindFile {
		n.xattr = c.u32()
	}
	return n, c.err
}

func (n *inode) readDir(c *cursor, long bool) {
	if !long {
		n.start = uint64(c.u32())
		n.links = c.u32()
		n.size = int64(c.u16())
		n.offset = uint32(c.u16())
		c.u32() // the directory above
		return
	}
	n.links = c.u32()
	n.size = int64(c.u32())
	n.start = uint64(c.u32())
	c.u32() // the directory above
	c.u16() // of the index, which is for finding names
	n.offset = uint32(c.u16())
	n.xattr = c.u32()
}

func (n *inode) readFile(c *cursor, long bool, blockSize uint32) {
	if long {
		n.start, n.size = c.u64(), int64(c.u64())
		c.u64() // bytes of holes
		n.links, n.fragment, n.offset, n.xattr = c.u32(), c.u32(), c.u32(), c.u32()
	} else {
		n.start = uint64(c.u32())
		n.fragment, n.offset = c.u32(), c.u32()
		n.size = int64(c.u32())
	}
	if n.size < 0 || n.size > maxFile {
		c.fail(damaged("a file has %d bytes", uint64(n.size)))
		return
	}
	n.blockCount = n.size / int64(blockSize)
	if n.fragment == none && n.size%int64(blockSize) != 0 {
		n.blockCount++
	}
	n.blocks = c
}

// listing is a directory that is being read.
type listing struct {
	path   string // with a slash at the end
	c      *cursor
	left   int64 // bytes
	count  uint32
	block  uint32 // of the inodes
	number uint32
}

type entry struct {
	name string
	ref  uint64
}

func (img *image) list(n *inode, path string) (*listing, error) {
	if n.size > maxListing {
		return nil, damaged("its list of names has %d bytes", n.size)
	}
	// The size counts "." and "..", which are not there.
	l := &listing{path: strings.TrimSuffix(path, "/") + "/", left: n.size - 3}
	if l.left <= 0 {
		return l, nil // it may name no block at all
	}
	l.c = img.cursor(int64(img.super.DirTable), n.start<<16|uint64(n.offset))
	return l, nil
}

// next gives the next name, or io.EOF.
func (l *listing) next() (entry, error) {
	if l.count == 0 {
		if l.left <= 0 {
			return entry{}, io.EOF
		}
		l.count = l.c.u32() + 1
		l.block, l.number = l.c.u32(), l.c.u32()
		l.left -= 12
		if l.c.err == nil && (l.count == 0 || l.count > 256) {
			return entry{}, damaged("a directory has %d names in a row", l.count)
		}
	}
	offset := l.c.u16()
	l.c.u16() // of the inode's number
	l.c.u16() // its kind, as the inode says too
	size := int(l.c.u16()) + 1
	if l.c.err == nil && size > maxName {
		return entry{}, damaged("a name has %d bytes", size)
	}
	name := string(l.c.bytes(size))
	l.left -= 8 + int64(size)
	l.count--
	if l.c.err != nil {
		return entry{}, l.c.err
	}
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return entry{}, damaged("a directory has the name %q", name)
	}
	return entry{name, uint64(l.block)<<16 | uint64(offset)}, nil
}

// cursor reads metadata: blocks that are inflated one after the other.
type cursor struct {
	img  *image
	at   int64 // of the next block
	data []byte
	err  error
}

// cursor starts at a reference relative to a table.
func (img *image) cursor(table int64, ref uint64) *cursor {
	c := &cursor{img: img, at: table + int64(ref>>16)}
	offset := int(ref & 0xffff)
	if ref>>16 > uint64(img.size) {
		c.fail(damaged("it refers to what is behind its end"))
		return c
	}
	if c.fill(); c.err == nil {
		if offset > len(c.data) {
			c.fail(damaged("it refers to byte %d of a block of %d", offset, len(c.data)))
			return c
		}
		c.data = c.data[offset:]
	}
	return c
}

func (c *cursor) fail(err error) {
	if c.err == nil {
		c.err = err
	}
	c.data = nil
}

// fill goes to the next block.
func (c *cursor) fill() {
	b, err := c.img.metablock(c.at)
	if err != nil {
		c.fail(err)
		return
	}
	c.data, c.at = b.data, b.next
}

// bytes gives the next n bytes, zeros after an error.
func (c *cursor) bytes(n int) []byte {
	if n <= len(c.data) && c.err == nil {
		b := c.data[:n]
		c.data = c.data[n:]
		return b
	}
	b := make([]byte, n)
	for got := 0; got < n && c.err == nil; {
		if len(c.data) == 0 {
			c.fill()
			continue
		}
		m := copy(b[got:], c.data)
		got, c.data = got+m, c.data[m:]
	}
	return b
}

func (c *cursor) u16() uint16 { return binary.LittleEndian.Uint16(c.bytes(2)) }
func (c *cursor) u32() uint32 { return binary.LittleEndian.Uint32(c.bytes(4)) }
func (c *cursor) u64() uint64 { return binary.LittleEndian.Uint64(c.bytes(8)) }
