package ext4

import "golang.org/x/sys/unix"

const (
	extentMagic  = 0xf30a
	extentsFlag  = 0x80000
	extraSize    = 32                    // of an inode beyond the first 128 bytes
	attributesAt = 128 + extraSize       // in an inode
	maxExtent    = 32768                 // blocks
	inInode      = 4                     // extents, or indexes, an inode holds
	inBlock      = (BlockSize - 16) / 12 // that a block holds before its checksum
	maxLinks     = 65000
)

// inode is what is written of a file.
type inode struct {
	n       int64
	st      unix.Stat_t // type, mode, owner and time of change
	links   int
	size    int64
	extents []extent
	blocks  int64  // taken, attributes and indexes included
	short   []byte // instead of extents: target of a link or number of a device
	inline  []byte // attributes that follow in the inode
	acl     int64  // block with the others
}

// extent are blocks of a file that follow each other, in it and on disk.
type extent struct {
	logical, physical int64
	count             int64
}

// add gives the file one more block.
func (i *inode) add(logical, physical int64) {
	i.blocks++
	if n := len(i.extents); n > 0 {
		e := &i.extents[n-1]
		if e.logical+e.count == logical && e.physical+e.count == physical && e.count < maxExtent {
			e.count++
			return
		}
	}
	i.extents = append(i.extents, extent{logical, physical, 1})
}

// seedOf is where the checksums of an inode and of its blocks begin; all files are of
// generation 0.
func (s *system) seedOf(n int64) uint32 { return checksum(s.seed, le32(uint32(n)), le32(0)) }

// writeInode writes an inode, and the blocks of its index of extents.
func (s *system) writeInode(i *inode, now int64) error {
	raw := make([]byte, inodeSize)
	if i.short != nil {
		copy(raw[0x28:0x64], i.short)
	} else if i.st.Mode&unix.S_IFMT != unix.S_IFIFO && i.st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		le.PutUint32(raw[0x20:], extentsFlag)
		if err := s.writeExtents(i, raw[0x28:0x64]); err != nil {
			return err
		}
	}
	le.PutUint16(raw[0:], uint16(i.st.Mode))
	le.PutUint16(raw[0x2:], uint16(i.st.Uid))
	le.PutUint16(raw[0x78:], uint16(i.st.Uid>>16))
	le.PutUint16(raw[0x18:], uint16(i.st.Gid))
	le.PutUint16(raw[0x7a:], uint16(i.st.Gid>>16))
	le.PutUint32(raw[0x4:], uint32(i.size))
	le.PutUint32(raw[0x6c:], uint32(i.size>>32))
	le.PutUint16(raw[0x1a:], uint16(i.links))
	sectors := i.blocks * (BlockSize / 512)
	le.PutUint32(raw[0x1c:], uint32(sectors))
	le.PutUint16(raw[0x74:], uint16(sectors>>32))
	le.PutUint32(raw[0x68:], uint32(i.acl))
	le.PutUint16(raw[0x76:], uint16(i.acl>>32))
	le.PutUint16(raw[0x80:], extraSize)
	putTime(raw, 0x8, 0x8c, now, 0)  // of use
	putTime(raw, 0xc, 0x84, now, 0)  // of change of state
	putTime(raw, 0x90, 0x94, now, 0) // of birth
	putTime(raw, 0x10, 0x88, i.st.Mtim.Sec, i.st.Mtim.Nsec)
	copy(raw[attributesAt:], i.inline)
	sum := checksum(s.seedOf(i.n), raw)
	le.PutUint16(raw[0x7c:], uint16(sum))
	le.PutUint16(raw[0x82:], uint16(sum>>16))
	_, err := s.dev.WriteAt(raw, s.inodeAt(i.n))
	return err
}

// putTime writes a time: 32 bits of seconds, two more above them, and nanoseconds.
// One that is too far away becomes the last there is, as in the kernel.
func putTime(raw []byte, at, extra int, sec, nsec int64) {
	const first, last = -1 << 31, 1<<34 - 1<<31 - 1
	if sec < first || sec > last {
		sec, nsec = min(max(sec, first), last), 0
	}
	le.PutUint32(raw[at:], uint32(sec))
	epoch := (sec - int64(int32(sec))) >> 32 & 3
	le.PutUint32(raw[extra:], uint32(nsec<<2|epoch))
}

// writeExtents writes the extents of a file into the 60 bytes at root, and into as
// many levels of blocks as they need.
func (s *system) writeExtents(i *inode, root []byte) error {
	entries := make([][12]byte, len(i.extents))
	for k, e := range i.extents {
		le.PutUint32(entries[k][0:], uint32(e.logical))
		le.PutUint16(entries[k][4:], uint16(e.count))
		le.PutUint16(entries[k][6:], uint16(e.physical>>32))
		le.PutUint32(entries[k][8:], uint32(e.physical))
	}
	depth := 0
	for ; len(entries) > inInode; depth++ {
		var above [][12]byte
		for at := 0; at < len(entries); at += inBlock {
			b, err := s.takeBlock()
			if err != nil {
				return err
			}
			i.blocks++
			block := make([]byte, BlockSize)
			putExtents(block[:BlockSize-4], entries[at:min(len(entries), at+inBlock)], inBlock, depth)
			le.PutUint32(block[BlockSize-4:], checksum(s.seedOf(i.n), block[:BlockSize-4]))
			if err := s.out.add(b, block); err != nil {
				return err
			}
			var index [12]byte
			copy(index[0:4], entries[at][0:4])
			le.PutUint32(index[4:], uint32(b))
			le.PutUint16(index[8:], uint16(b>>32))
			above = append(above, index)
		}
		entries = above
	}
	putExtents(root, entries, inInode, depth)
	return nil
}

func putExtents(to []byte, entries [][12]byte, most, depth int) {
	le.PutUint16(to[0:], extentMagic)
	le.PutUint16(to[2:], uint16(len(entries)))
	le.PutUint16(to[4:], uint16(most))
	le.PutUint16(to[6:], uint16(depth))
	for k, e := range entries {
		copy(to[12+12*k:], e[:])
	}
}
