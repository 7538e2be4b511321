package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

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
	case storage.NoSpace(err):
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
		if err := cmp.Or(err1, err2); err != nil {
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
		return nil, cmp.Or(err, damaged("%q is not a file", name))
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
