package ext4

import (
	"fmt"

	"brig/instance/fault"
)

// Flags of a group.
const (
	inodeUninit = 1
	blockUninit = 2
)

// noRoom says that the files are more than the file system holds.
func (s *system) noRoom(what string, n int64) error {
	return fault.New(fault.Exhausted, "its files do not fit into a disk of %d bytes: it has no more than %d %s", s.blocks*BlockSize, n, what)
}

// takeBlock gives the next free block. None is ever given back, so that they come in
// ascending order.
func (s *system) takeBlock() (int64, error) {
	for ; s.next < s.blocks; s.next++ {
		if g := s.next / s.blocksPerGroup; g != s.group {
			if err := s.enterGroup(g); err != nil {
				return 0, err
			}
		}
		bit := s.next % s.blocksPerGroup
		if s.bitmap[bit/8]&(1<<(bit%8)) != 0 {
			continue
		}
		s.bitmap[bit/8] |= 1 << (bit % 8)
		d := s.groups[s.group]
		setHalves(d, 0xc, 0x2c, halves(d, 0xc, 0x2c)-1)
		s.next++
		return s.next - 1, nil
	}
	return 0, s.noRoom("blocks", s.blocks)
}

// enterGroup reads the bitmap of the blocks of a group, or makes it if the kernel
// would.
func (s *system) enterGroup(g int64) error {
	if err := s.leaveGroup(); err != nil {
		return err
	}
	s.group, s.bitmap = g, make([]byte, BlockSize)
	d := s.groups[g]
	if le.Uint16(d[0x12:])&blockUninit == 0 {
		_, err := s.dev.ReadAt(s.bitmap, at64(d, 0, 0x20)*BlockSize)
		return err
	}
	first := g * s.blocksPerGroup
	if hasSuper(g) {
		table := (int64(len(s.groups))*descSize + BlockSize - 1) / BlockSize
		s.mark(first, first+1+table+int64(le.Uint16(s.super[0xce:])))
	}
	for _, m := range s.metadata[g] {
		s.mark(m.from, m.to)
	}
	s.mark(s.blocks, first+s.blocksPerGroup)
	return nil
}

// mark takes the blocks of a span that are of the group at hand.
func (s *system) mark(from, to int64) {
	first := s.group * s.blocksPerGroup
	for b := max(from, first); b < min(to, first+s.blocksPerGroup); b++ {
		s.bitmap[(b-first)/8] |= 1 << ((b - first) % 8)
	}
}

// hasSuper tells whether a group begins with a copy of the superblock (sparse_super).
func hasSuper(g int64) bool {
	if g <= 1 {
		return true
	}
	for _, base := range []int64{3, 5, 7} {
		n := base
		for n < g {
			n *= base
		}
		if n == g {
			return true
		}
	}
	return false
}

// leaveGroup writes the bitmap at hand.
func (s *system) leaveGroup() error {
	if s.group < 0 {
		return nil
	}
	d := s.groups[s.group]
	le.PutUint16(d[0x12:], le.Uint16(d[0x12:])&^blockUninit)
	setHalves(d, 0x18, 0x38, int64(checksum(s.seed, s.bitmap)))
	_, err := s.dev.WriteAt(s.bitmap, at64(d, 0, 0x20)*BlockSize)
	s.group = -1
	return err
}

// takeInode gives the next free inode.
func (s *system) takeInode(directory bool) (int64, error) {
	if s.inode > s.inodes {
		return 0, s.noRoom("files", s.inodes-firstInode)
	}
	n := s.inode
	s.inode++
	d := s.groups[(n-1)/s.inodesPerGroup]
	setHalves(d, 0xe, 0x2e, halves(d, 0xe, 0x2e)-1)
	if directory {
		setHalves(d, 0x10, 0x30, halves(d, 0x10, 0x30)+1)
	}
	return n, nil
}

// writeInodeBitmaps tells which inodes are used: all up to the next.
func (s *system) writeInodeBitmaps() error {
	for g, d := range s.groups {
		used := min(s.inode-1-int64(g)*s.inodesPerGroup, s.inodesPerGroup)
		if used <= 0 {
			return nil
		}
		bitmap := make([]byte, BlockSize)
		for i := range int64(8 * BlockSize) {
			if i < used || i >= s.inodesPerGroup {
				bitmap[i/8] |= 1 << (i % 8)
			}
		}
		le.PutUint16(d[0x12:], le.Uint16(d[0x12:])&^inodeUninit)
		setHalves(d, 0x1c, 0x32, s.inodesPerGroup-used) // never used
		setHalves(d, 0x1a, 0x3a, int64(checksum(s.seed, bitmap[:s.inodesPerGroup/8])))
		if _, err := s.dev.WriteAt(bitmap, at64(d, 4, 0x24)*BlockSize); err != nil {
			return err
		}
	}
	return nil
}

// inodeAt is where an inode lies.
func (s *system) inodeAt(n int64) int64 {
	d := s.groups[(n-1)/s.inodesPerGroup]
	return at64(d, 8, 0x28)*BlockSize + (n-1)%s.inodesPerGroup*inodeSize
}

// owned are the blocks that mkfs.ext4 gave the directory n.
func (s *system) owned(n int64) ([]int64, error) {
	raw := make([]byte, inodeSize)
	if _, err := s.dev.ReadAt(raw, s.inodeAt(n)); err != nil {
		return nil, err
	}
	header := raw[0x28:0x64]
	count := int(le.Uint16(header[2:]))
	if le.Uint16(header) != extentMagic || le.Uint16(header[6:]) != 0 || count > 4 {
		return nil, fmt.Errorf("directory %d of the new file system is not as expected", n)
	}
	var blocks []int64
	for i := range count {
		e := header[12+12*i:]
		start := int64(le.Uint16(e[6:]))<<32 | int64(le.Uint32(e[8:]))
		for k := range int64(le.Uint16(e[4:])) {
			blocks = append(blocks, start+k)
		}
	}
	return blocks, nil
}
