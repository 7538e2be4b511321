// Package ext4 puts the files of a tree into a new, empty ext4 file system, as
// mkfs.ext4 makes one, without mounting it. It writes what the kernel would: each
// file's type, mode, owner, time of change to the nanosecond and beyond 2038, names,
// extended attributes and access lists. Blocks of zeros take no space. Where things
// lie depends only on the files and not on how the tree's own file system keeps them:
// names come in order, and so do attributes.
//
// The format is that of https://docs.kernel.org/filesystems/ext4/.
package ext4

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"

	"brig/instance/fault"
)

// Features are what a file system must have, in the words of mkfs.ext4's -O.
const Features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

const (
	// BlockSize is the only size of blocks this package knows.
	BlockSize = 4096
	inodeSize = 256
	descSize  = 64

	journal  = 0x4   // small file systems have none
	compat   = 0x3c  // has_journal, ext_attr, resize_inode, dir_index
	incompat = 0x2c2 // filetype, extent, 64bit, flex_bg
	roCompat = 0x46b // sparse_super, large_file, huge_file, dir_nlink, extra_isize, metadata_csum

	superAt    = 1024
	superSize  = 1024
	magic      = 0xef53
	rootInode  = 2
	lostInode  = 11 // lost+found
	firstInode = 12 // that is free
)

// Device is the file or device of a file system.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Fill puts the files below the directory at path tree into the file system on dev,
// which was just made with Features, an inode size of 256 bytes and nothing in it.
// Times of use and of changes of state are now, in seconds since 1970. Nobody may
// change the tree meanwhile. Fill flushes nothing; after an error dev holds no file
// system of use. Errors: exhausted when the files do not fit; unsupported when dev
// is not as it should be or extended attributes of a file take more than a block.
func Fill(ctx context.Context, dev Device, tree string, now int64) error {
	fs, err := open(dev)
	if err != nil {
		return err
	}
	defer fs.out.stop()
	f := &filler{ctx: ctx, fs: fs, now: now, linked: map[identity]*inode{}, buf: make([]byte, readSize)}
	if err := f.fill(tree); err != nil {
		return err
	}
	return fs.close()
}

// system is an open file system.
type system struct {
	dev   Device
	super []byte
	seed  uint32 // of all checksums

	blocks         int64
	blocksPerGroup int64
	inodes         int64
	inodesPerGroup int64
	groups         [][]byte // descriptors
	metadata       map[int64][]span

	out    *writer
	group  int64  // that bitmap is of; -1: none
	bitmap []byte // of blocks
	next   int64  // block to look at first
	inode  int64  // that is free next
}

// span are blocks of a group that hold bitmaps or inodes.
type span struct{ from, to int64 }

var le = binary.LittleEndian

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the file system's crc32c, which does not invert at the end.
func checksum(seed uint32, data ...[]byte) uint32 {
	for _, d := range data {
		seed = ^crc32.Update(^seed, castagnoli, d)
	}
	return seed
}

func le32(v uint32) []byte { return le.AppendUint32(nil, v) }

func open(dev Device) (*system, error) {
	s := &system{dev: dev, super: make([]byte, superSize), group: -1, inode: firstInode, metadata: map[int64][]span{}}
	if _, err := dev.ReadAt(s.super, superAt); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	is := []uint32{
		uint32(le.Uint16(s.super[0x38:])), le.Uint32(s.super[0x18:]), uint32(le.Uint16(s.super[0x58:])), uint32(le.Uint16(s.super[0xfe:])),
		le.Uint32(s.super[0x5c:]) | journal, le.Uint32(s.super[0x60:]), le.Uint32(s.super[0x64:]), le.Uint32(s.super[0x54:]),
	}
	for i, want := range []uint32{magic, 2, inodeSize, descSize, compat, incompat, roCompat, lostInode} {
		if is[i] != want {
			return nil, fault.New(fault.Unsupported, "the new file system is not as it was asked for: %x", is)
		}
	}
	s.seed = checksum(^uint32(0), s.super[0x68:0x78])
	s.blocks = int64(le.Uint32(s.super[4:])) | int64(le.Uint32(s.super[0x150:]))<<32
	s.inodes = int64(le.Uint32(s.super))
	s.blocksPerGroup = int64(le.Uint32(s.super[0x20:]))
	s.inodesPerGroup = int64(le.Uint32(s.super[0x28:]))
	if s.blocksPerGroup != 8*BlockSize || s.inodesPerGroup == 0 || s.inodesPerGroup > 8*BlockSize || s.inodesPerGroup%8 != 0 ||
		s.free(0x10) != s.inodes-lostInode {
		return nil, fault.New(fault.Unsupported, "the new file system has groups of %d blocks and %d inodes, or is not empty", s.blocksPerGroup, s.inodesPerGroup)
	}
	if err := s.readGroups(); err != nil {
		return nil, err
	}
	s.out = startWriter(dev)
	return s, nil
}

// free reads a counter of the superblock.
func (s *system) free(at int) int64 { return int64(le.Uint32(s.super[at:])) }

func (s *system) readGroups() error {
	n := (s.blocks + s.blocksPerGroup - 1) / s.blocksPerGroup
	raw := make([]byte, n*descSize)
	if _, err := s.dev.ReadAt(raw, BlockSize); err != nil {
		return fmt.Errorf("descriptors of groups: %w", err)
	}
	for g := range n {
		d := raw[g*descSize : (g+1)*descSize : (g+1)*descSize]
		s.groups = append(s.groups, d)
		table := (s.inodesPerGroup*inodeSize + BlockSize - 1) / BlockSize
		for _, m := range []span{
			{at64(d, 0, 0x20), at64(d, 0, 0x20) + 1}, {at64(d, 4, 0x24), at64(d, 4, 0x24) + 1}, {at64(d, 8, 0x28), at64(d, 8, 0x28) + table},
		} {
			if m.from <= 0 || m.to > s.blocks {
				return fault.New(fault.Unsupported, "the new file system has group %d outside of it", g)
			}
			for in := m.from / s.blocksPerGroup; in <= (m.to-1)/s.blocksPerGroup; in++ {
				s.metadata[in] = append(s.metadata[in], m)
			}
		}
	}
	return nil
}

// at64 reads a number that is kept in two halves.
func at64(d []byte, low, high int) int64 {
	return int64(le.Uint32(d[low:])) | int64(le.Uint32(d[high:]))<<32
}

// close writes what tells of the whole file system.
func (s *system) close() error {
	if err := s.leaveGroup(); err != nil {
		return err
	}
	if err := s.out.flush(); err != nil {
		return err
	}
	if err := s.out.stop(); err != nil {
		return err
	}
	if err := s.writeInodeBitmaps(); err != nil {
		return err
	}
	var freeBlocks, freeInodes int64
	raw := make([]byte, 0, len(s.groups)*descSize)
	for g, d := range s.groups {
		freeBlocks += halves(d, 0xc, 0x2c)
		freeInodes += halves(d, 0xe, 0x2e)
		le.PutUint16(d[0x1e:], 0)
		le.PutUint16(d[0x1e:], uint16(checksum(s.seed, le32(uint32(g)), d)))
		raw = append(raw, d...)
	}
	if _, err := s.dev.WriteAt(raw, BlockSize); err != nil {
		return err
	}
	le.PutUint32(s.super[0xc:], uint32(freeBlocks))
	le.PutUint32(s.super[0x158:], uint32(freeBlocks>>32))
	le.PutUint32(s.super[0x10:], uint32(freeInodes))
	le.PutUint32(s.super[0x3fc:], checksum(^uint32(0), s.super[:0x3fc]))
	_, err := s.dev.WriteAt(s.super, superAt)
	return err
}

// halves reads, and setHalves writes, a number of a descriptor that is kept in two
// times 16 bits.
func halves(d []byte, low, high int) int64 {
	return int64(le.Uint16(d[low:])) | int64(le.Uint16(d[high:]))<<16
}

func setHalves(d []byte, low, high int, v int64) {
	le.PutUint16(d[low:], uint16(v))
	le.PutUint16(d[high:], uint16(v>>16))
}
