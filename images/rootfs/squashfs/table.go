package squashfs

import (
	"encoding/binary"

	"brig/instance/fault"
)

// metaSize is what a block of metadata holds at most.
const metaSize = 8 << 10

// keptBlocks is how many inflated blocks of metadata are kept.
const keptBlocks = 64

type metablock struct {
	data []byte
	next int64 // where the block behind it is
}

// metablock gives the block of metadata at an offset.
func (img *image) metablock(at int64) (metablock, error) {
	if b, ok := img.blocks[at]; ok {
		return b, nil
	}
	head, err := img.read(at, 2)
	if err != nil {
		return metablock{}, err
	}
	size := binary.LittleEndian.Uint16(head)
	plain := size&0x8000 != 0
	size &= 0x7fff
	if size == 0 || size > metaSize {
		return metablock{}, damaged("a block of metadata has %d bytes", size)
	}
	data, err := img.read(at+2, int64(size))
	if err != nil {
		return metablock{}, err
	}
	if !plain {
		if data, err = img.inflate(data, metaSize); err != nil {
			return metablock{}, err
		}
	}
	if len(data) == 0 {
		return metablock{}, damaged("a block of metadata is empty")
	}
	if len(img.blocks) >= keptBlocks {
		clear(img.blocks)
	}
	b := metablock{data, at + 2 + int64(size)}
	img.blocks[at] = b
	return b, nil
}

// read reads from the image.
func (img *image) read(at, n int64) ([]byte, error) {
	if at < 0 || n < 0 || at > int64(img.super.BytesUsed) || n > int64(img.super.BytesUsed)-at {
		return nil, damaged("it refers to %d bytes at %d, behind its end", n, at)
	}
	b := make([]byte, n)
	if m, err := img.r.ReadAt(b, at); m < len(b) {
		return nil, fault.New(fault.Unavailable, "cannot read %d bytes at %d: %w", n, at, err)
	}
	return b, nil
}

// readTables reads what every entry needs.
func (img *image) readTables() error {
	ids, err := img.lookup(img.super.IDTable, int64(img.super.IDs), 4)
	if err != nil {
		return err
	}
	for i := range int(img.super.IDs) {
		img.ids = append(img.ids, binary.LittleEndian.Uint32(ids[i*4:]))
	}
	img.fragments = &fragments{img: img}
	if img.super.Fragments > 0 {
		// No more fragments than bytes: each holds at least one.
		if int64(img.super.Fragments) > int64(img.super.BytesUsed) {
			return damaged("it says it has %d fragments", img.super.Fragments)
		}
		if img.fragments.table, err = img.lookup(img.super.FragTable, int64(img.super.Fragments), 16); err != nil {
			return err
		}
	}
	return img.xattrs.open(img)
}

// lookup reads a table of count records of size bytes, which is in blocks of
// metadata that a list names.
func (img *image) lookup(at uint64, count, size int64) ([]byte, error) {
	const most = 256 << 20
	if count*size > most || at > img.super.BytesUsed {
		return nil, damaged("a table at %d has %d entries", at, count)
	}
	blocks := (count*size + metaSize - 1) / metaSize
	list, err := img.read(int64(at), blocks*8)
	if err != nil {
		return nil, err
	}
	var all []byte
	for i := range blocks {
		where := binary.LittleEndian.Uint64(list[i*8:])
		if where > img.super.BytesUsed {
			return nil, damaged("a table refers to what is behind its end")
		}
		b, err := img.metablock(int64(where))
		if err != nil {
			return nil, err
		}
		all = append(all, b.data...)
	}
	if int64(len(all)) < count*size {
		return nil, damaged("a table has %d bytes instead of %d", len(all), count*size)
	}
	return all, nil
}

// xattrs are the sets of extended attributes.
type xattrs struct {
	start int64 // of names and values
	table []byte
}

// The longest that Linux has.
const (
	maxXattrs     = 1024 // in one set
	maxXattrName  = 255
	maxXattrValue = 64 << 10
)

var xattrPrefixes = []string{"user.", "trusted.", "security."}

func (x *xattrs) open(img *image) error {
	if img.super.XattrTable == 0xffffffffffffffff {
		return nil
	}
	if img.super.XattrTable > img.super.BytesUsed {
		return damaged("its extended attributes are behind its end")
	}
	head, err := img.read(int64(img.super.XattrTable), 16)
	if err != nil {
		return err
	}
	start := binary.LittleEndian.Uint64(head)
	if start > img.super.BytesUsed {
		return damaged("its extended attributes are behind its end")
	}
	x.start = int64(start)
	x.table, err = img.lookup(img.super.XattrTable+16, int64(binary.LittleEndian.Uint32(head[8:])), 16)
	return err
}

// of gives a set as the records of a tar.
func (x *xattrs) of(img *image, index uint32) (map[string]string, error) {
	if index == none {
		return nil, nil
	}
	if int64(index)*16+16 > int64(len(x.table)) {
		return nil, damaged("it has no set %d of extended attributes", index)
	}
	e := x.table[index*16:]
	count := binary.LittleEndian.Uint32(e[8:])
	if count > maxXattrs {
		return nil, damaged("it has %d extended attributes", count)
	}
	set := map[string]string{}
	c := img.cursor(x.start, binary.LittleEndian.Uint64(e))
	for range count {
		kind, size := c.u16(), int(c.u16())
		if c.err == nil && (size == 0 || size > maxXattrName || int(kind&0xff) >= len(xattrPrefixes)) {
			return nil, damaged("the name of an extended attribute has kind %d and %d bytes", kind, size)
		}
		name := string(c.bytes(size))
		value := c.value()
		if c.err == nil && kind&0x100 != 0 {
			// It is elsewhere, shared with others.
			if len(value) != 8 {
				return nil, damaged("the value of an extended attribute is nowhere")
			}
			c2 := img.cursor(x.start, binary.LittleEndian.Uint64(value))
			value = c2.value()
			c.err = c2.err
		}
		if c.err != nil {
			return nil, c.err
		}
		set["SCHILY.xattr."+xattrPrefixes[kind&0xff]+name] = string(value)
	}
	return set, c.err
}

// value reads the value of an extended attribute.
func (c *cursor) value() []byte {
	size := c.u32()
	if c.err == nil && size > maxXattrValue {
		c.fail(damaged("an extended attribute has %d bytes", size))
	}
	if c.err != nil {
		return nil
	}
	return c.bytes(int(size))
}
