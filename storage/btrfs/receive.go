package btrfs

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
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

// receiver does what a stream says, below the open directory top. No path leads out
// of it, and no link is followed.
type receiver struct {
	top        int
	parent     int // the top of what the stream is based on, if it is on something
	self, base uuid

	file     *os.File // that was written to last
	fileName string
}

// apply does all commands up to the end.
func (r *receiver) apply(s *stream) error {
	defer r.closeFile()
	for {
		cmd, err := s.next()
		if err != nil {
			return err
		}
		switch cmd {
		case cmdEnd:
			return nil
		case cmdWrite:
			err = r.write(s)
		case cmdClone:
			err = r.clone(s)
		case cmdUpdateExtent:
			err = damaged("it has no data")
		default:
			r.closeFile() // it may get another name, or go
			err = r.do(cmd, s)
		}
		if err != nil {
			return wrapCommand(cmd, s, err)
		}
	}
}

// wrapCommand says which command could not be done.
func wrapCommand(cmd int, s *stream, err error) error {
	if fault.Is(err, fault.Invalid) || errors.Is(err, context.Canceled) {
		return err
	}
	class := fault.Of(err)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENOTEMPTY):
		// The tree is not what the sender took it for.
		class = fault.Invalid
	case noSpace(err):
		class = fault.Exhausted
	}
	return fault.New(class, "command %d of the stream for %q: %w", cmd, s.at[attrPath], err)
}

// do does a command that is about a name.
func (r *receiver) do(cmd int, s *stream) error {
	name, err := s.name(attrPath)
	if err != nil {
		return err
	}
	switch cmd {
	case cmdTruncate, cmdChmod, cmdChown, cmdUtimes, cmdSetXattr, cmdRemoveXattr:
		return r.change(cmd, s, name)
	}
	dir, base, err := r.folder(name)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	switch cmd {
	case cmdMkfile:
		fd, err := unix.Openat(dir, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	case cmdMkdir:
		return unix.Mkdirat(dir, base, 0o700)
	case cmdMknod, cmdMkfifo, cmdMksock:
		return r.node(cmd, s, dir, base)
	case cmdSymlink:
		target := s.at[attrPathLink]
		if len(target) == 0 {
			return damaged("a link leads nowhere")
		}
		return unix.Symlinkat(string(target), dir, base)
	case cmdUnlink:
		return unix.Unlinkat(dir, base, 0)
	case cmdRmdir:
		return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
	case cmdRename, cmdLink:
		return r.second(cmd, s, dir, base)
	}
	return damaged("it has the unknown command %d", cmd)
}

// folder opens the directory that a name is in.
func (r *receiver) folder(name string) (dir int, base string, err error) {
	folder, base := ".", name
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		folder, base = name[:i], name[i+1:]
	}
	if base == "" || base == "." || base == ".." {
		return -1, "", damaged("%q is not a name", name)
	}
	dir, err = beneath(r.top, folder, unix.O_PATH|unix.O_DIRECTORY)
	return dir, base, err
}

// beneath opens a path in the subvolume whose top is open.
func beneath(top int, name string, flags uint64) (int, error) {
	if name == "" {
		name = "."
	}
	return unix.Openat2(top, name, &unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	})
}

func (r *receiver) node(cmd int, s *stream, dir int, base string) error {
	n, err := s.numbers(attrMode, attrRdev)
	if err != nil {
		return err
	}
	kind := uint32(n[0]) & unix.S_IFMT
	switch {
	case cmd == cmdMkfifo:
		kind = unix.S_IFIFO
	case cmd == cmdMksock:
		kind = unix.S_IFSOCK
	case kind != unix.S_IFCHR && kind != unix.S_IFBLK:
		return damaged("a device has the mode %o", n[0])
	}
	return unix.Mknodat(dir, base, kind|0o600, int(n[1]))
}

// second does a command with two paths.
func (r *receiver) second(cmd int, s *stream, dir int, base string) error {
	if cmd == cmdLink {
		// The new name comes first.
		old, err := s.name(attrPathLink)
		if err != nil {
			return err
		}
		from, name, err := r.folder(old)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		return unix.Linkat(from, name, dir, base, 0)
	}
	to, err := s.name(attrPathTo)
	if err != nil {
		return err
	}
	target, name, err := r.folder(to)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return unix.Renameat(dir, base, target, name)
}

// change does a command that changes what is known about a file.
func (r *receiver) change(cmd int, s *stream, name string) error {
	if cmd == cmdTruncate {
		size, err := s.number(attrSize)
		if err != nil {
			return err
		}
		f, err := openFile(r.top, name, unix.O_WRONLY)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(int64(size))
	}
	fd, err := beneath(r.top, name, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	switch cmd {
	case cmdChmod:
		mode, err := s.number(attrMode)
		if err != nil {
			return err
		}
		return unix.Chmod(procPath(fd), uint32(mode)&0o7777)
	case cmdChown:
		n, err := s.numbers(attrUID, attrGID)
		if err != nil {
			return err
		}
		return unix.Fchownat(fd, "", int(n[0]), int(n[1]), unix.AT_EMPTY_PATH)
	case cmdUtimes:
		atime, err1 := s.time(attrAtime)
		mtime, err2 := s.time(attrMtime)
		if err := first(err1, err2); err != nil {
			return err
		}
		return unix.UtimesNanoAt(fd, "", []unix.Timespec{atime, mtime}, unix.AT_EMPTY_PATH)
	}
	key := string(s.at[attrXattrName])
	if key == "" {
		return damaged("an attribute of a file has no name")
	}
	if cmd == cmdRemoveXattr {
		return unix.Removexattr(procPath(fd), key)
	}
	return unix.Setxattr(procPath(fd), key, s.at[attrXattrData], 0)
}

// openFile opens a regular file in the subvolume whose top is open.
func openFile(top int, name string, flags uint64) (*os.File, error) {
	fd, err := beneath(top, name, flags|unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, first(err, damaged("%q is not a file", name))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// writing gives the file that a command writes to, which often is that of the
// command before.
func (r *receiver) writing(s *stream) (*os.File, int64, error) {
	name, err := s.name(attrPath)
	if err != nil {
		return nil, 0, err
	}
	offset, err := s.number(attrOffset)
	if err != nil {
		return nil, 0, err
	}
	if r.file == nil || r.fileName != name {
		r.closeFile()
		if r.file, err = openFile(r.top, name, unix.O_WRONLY); err != nil {
			return nil, 0, err
		}
		r.fileName = name
	}
	return r.file, int64(offset), nil
}

func (r *receiver) closeFile() {
	if r.file != nil {
		r.file.Close()
		r.file = nil
	}
}

func (r *receiver) write(s *stream) error {
	f, offset, err := r.writing(s)
	if err != nil {
		return err
	}
	if offset < 0 {
		return damaged("it writes at %d", offset)
	}
	_, err = f.WriteAt(s.at[attrData], offset)
	return err
}

// clone shares blocks with a file of the base, or of the subvolume as it is by now.
func (r *receiver) clone(s *stream) error {
	f, offset, err := r.writing(s)
	if err != nil {
		return err
	}
	n, err := s.numbers(attrCloneOffset, attrCloneLength)
	if err != nil {
		return err
	}
	from, err := s.id(attrCloneUUID)
	if err != nil {
		return err
	}
	top := r.top
	switch {
	case from == r.base && from != (uuid{}):
		top = r.parent
	case from != r.self:
		return damaged("it takes data from the unknown subvolume %v", from)
	}
	name, err := s.name(attrClonePath)
	if err != nil {
		return err
	}
	source, err := openFile(top, name, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer source.Close()
	return unix.IoctlFileCloneRange(int(f.Fd()), &unix.FileCloneRange{
		Src_fd: int64(source.Fd()), Src_offset: n[0], Src_length: n[1], Dest_offset: uint64(offset),
	})
}

// procPath is a path of an open file, which leads to the file itself, even if that
// is a link.
func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
