package btrfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The commands of a stream and their attributes (fs/btrfs/send.h), version 1.
const (
	cmdSubvol = iota + 1
	cmdSnapshot
	cmdMkfile
	cmdMkdir
	cmdMknod
	cmdMkfifo
	cmdMksock
	cmdSymlink
	cmdRename
	cmdLink
	cmdUnlink
	cmdRmdir
	cmdSetXattr
	cmdRemoveXattr
	cmdWrite
	cmdClone
	cmdTruncate
	cmdChmod
	cmdChown
	cmdUtimes
	cmdEnd
	cmdUpdateExtent
)

const (
	attrUUID        = 1
	attrTransid     = 2
	attrSize        = 4
	attrMode        = 5
	attrUID         = 6
	attrGID         = 7
	attrRdev        = 8
	attrMtime       = 10
	attrAtime       = 11
	attrXattrName   = 13
	attrXattrData   = 14
	attrPath        = 15
	attrPathTo      = 16
	attrPathLink    = 17
	attrOffset      = 18
	attrData        = 19
	attrCloneUUID   = 20
	attrCloneTrans  = 21
	attrClonePath   = 22
	attrCloneOffset = 23
	attrCloneLength = 24

	attrCount = 25
)

const streamMagic = "btrfs-stream\x00"

// maxCommand is what the kernel puts into one command at most, and some room.
const maxCommand = 256 << 10

// damaged is the error about a stream that is not what the kernel writes.
func damaged(format string, args ...any) error {
	return fault.New(fault.Invalid, "the stream is damaged: "+format, args...)
}

// stream reads the commands of a stream. Each carries a checksum.
type stream struct {
	ctx  context.Context
	in   *bufio.Reader
	body []byte
	at   [attrCount][]byte // the attributes of the command that was read last; nil: it has none
}

func newStream(ctx context.Context, r io.Reader) (*stream, error) {
	s := &stream{ctx: ctx, in: bufio.NewReaderSize(r, 1<<20)}
	var head [len(streamMagic) + 4]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return nil, damaged("it has no header: %w", err)
	}
	if string(head[:len(streamMagic)]) != streamMagic {
		return nil, damaged("it is not one of btrfs")
	}
	if v := binary.LittleEndian.Uint32(head[len(streamMagic):]); v != 1 {
		return nil, fault.New(fault.Unsupported, "the stream has version %d, and 1 is known", v)
	}
	return s, nil
}

// next reads a command.
func (s *stream) next() (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	const headSize = 10
	var head [headSize]byte
	if _, err := io.ReadFull(s.in, head[:]); err != nil {
		return 0, damaged("it ends too early: %w", err)
	}
	size := int(binary.LittleEndian.Uint32(head[:]))
	if size > maxCommand {
		return 0, damaged("a command has %d bytes", size)
	}
	if cap(s.body) < size {
		s.body = make([]byte, maxCommand)
	}
	s.body = s.body[:size]
	if _, err := io.ReadFull(s.in, s.body); err != nil {
		return 0, damaged("it ends too early: %w", err)
	}
	sum := binary.LittleEndian.Uint32(head[6:])
	clear(head[6:])
	// The kernel's sum starts with zero and is not inverted.
	table := crc32.MakeTable(crc32.Castagnoli)
	if ^crc32.Update(crc32.Update(^uint32(0), table, head[:]), table, s.body) != sum {
		return 0, damaged("the checksum of a command is wrong")
	}
	return int(binary.LittleEndian.Uint16(head[4:])), s.parse()
}

// parse finds the attributes of a command.
func (s *stream) parse() error {
	clear(s.at[:])
	for rest := s.body; len(rest) > 0; {
		if len(rest) < 4 {
			return damaged("an attribute is cut off")
		}
		kind, size := binary.LittleEndian.Uint16(rest), int(binary.LittleEndian.Uint16(rest[2:]))
		if rest = rest[4:]; size > len(rest) {
			return damaged("an attribute is cut off")
		}
		if kind < attrCount {
			s.at[kind] = rest[:size:size]
		}
		rest = rest[size:]
	}
	return nil
}

// number gives an attribute of eight bytes.
func (s *stream) number(attr int) (uint64, error) {
	if len(s.at[attr]) != 8 {
		return 0, damaged("a command lacks attribute %d", attr)
	}
	return binary.LittleEndian.Uint64(s.at[attr]), nil
}

// numbers gives several.
func (s *stream) numbers(attrs ...int) ([]uint64, error) {
	list := make([]uint64, len(attrs))
	for i, attr := range attrs {
		var err error
		if list[i], err = s.number(attr); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// name gives a path in the subvolume. An empty one is its top.
func (s *stream) name(attr int) (string, error) {
	b := s.at[attr]
	if b == nil || len(b) >= unix.PathMax || strings.IndexByte(string(b), 0) >= 0 {
		return "", damaged("a command lacks the path %d", attr)
	}
	return string(b), nil
}

func (s *stream) id(attr int) (id uuid, err error) {
	if len(s.at[attr]) != len(id) {
		return id, damaged("a command lacks the uuid %d", attr)
	}
	return uuid(s.at[attr]), nil
}

func (s *stream) time(attr int) (unix.Timespec, error) {
	b := s.at[attr]
	if len(b) != 12 {
		return unix.Timespec{}, damaged("a command lacks the time %d", attr)
	}
	return unix.Timespec{Sec: int64(binary.LittleEndian.Uint64(b)), Nsec: int64(binary.LittleEndian.Uint32(b[8:]))}, nil
}

// subvolumeHead says what a stream is about.
type subvolumeHead struct {
	uuid    uuid
	transid uint64
	parent  uuid // zero: it stands on its own
}

// subvolume reads the first command.
func (s *stream) subvolume() (head subvolumeHead, err error) {
	cmd, err := s.next()
	if err != nil {
		return head, err
	}
	if cmd != cmdSubvol && cmd != cmdSnapshot {
		return head, damaged("it begins with command %d", cmd)
	}
	if head.uuid, err = s.id(attrUUID); err != nil {
		return head, err
	}
	if head.transid, err = s.number(attrTransid); err != nil {
		return head, err
	}
	if cmd == cmdSnapshot {
		if head.parent, err = s.id(attrCloneUUID); err == nil && head.parent == (uuid{}) {
			err = damaged("it is for no parent")
		}
	}
	return head, err
}
