package files

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// root is the root directory of what is served.
type root struct{ dir *os.File }

// renameWait bounds how long an open is tried again: the kernel gives up on ".."
// while anybody on the host renames anything.
const renameWait = 10 * time.Second

// open opens a file with all links resolved below the root directory.
func (r root) open(name string, flags int) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	for end := time.Now().Add(renameWait); ; {
		fd, err := unix.Openat2(int(r.dir.Fd()), "/"+name, how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), path.Base(name)), nil
		case (err == unix.EAGAIN || err == unix.EINTR) && time.Now().Before(end):
		default:
			return nil, err
		}
	}
}

// place is a name in an open directory: what can be made, replaced and removed.
type place struct {
	dir  *os.File
	name string
}

func (p place) close() { p.dir.Close() }

// maxLinks bounds the links that are followed from the last name of a path.
const maxLinks = 40

// find finds the directory that a path's last name is in. With follow a link of that
// name is followed, to where it leads from inside.
func (r root) find(name string, follow bool) (place, error) {
	link := ""
	for range maxLinks {
		dirName, base := split(name)
		if base == "" {
			// It ends at a directory: the root, or one that ".." leads to.
			dir, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY)
			if err != nil {
				return place{}, r.explain(name, err)
			}
			return place{dir, "."}, nil
		}
		dir, err := r.open(dirName, unix.O_PATH|unix.O_DIRECTORY)
		if link != "" && (err == unix.ENOENT || err == unix.ENOTDIR) {
			return place{}, leadsOut(link, name)
		}
		if err != nil {
			return place{}, r.explain(dirName, err)
		}
		p := place{dir, base}
		if !follow {
			return p, nil
		}
		target, err := readlink(dir, base)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return p, nil
		}
		p.close()
		if err != nil {
			return place{}, err
		}
		if link == "" {
			link = name
		}
		if name = target; !strings.HasPrefix(target, "/") {
			name = dirName + "/" + target
		}
		if len(name) > maxPath {
			return place{}, unix.ENAMETOOLONG
		}
	}
	return place{}, unix.ELOOP
}

// split cuts the last name off a path. It is empty where that is no name of its own.
func split(name string) (dir, base string) {
	name = strings.TrimRight(name, "/")
	i := strings.LastIndexByte(name, '/')
	if dir, base = name[:i+1], name[i+1:]; base == "." || base == ".." {
		return name, ""
	}
	return dir, base
}

func readlink(dir *os.File, name string) (string, error) {
	buf := make([]byte, maxPath)
	n, err := unix.Readlinkat(int(dir.Fd()), name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// explain says which link on the way to a directory leads nowhere inside: it would
// lead somewhere for who follows it outside.
func (r root) explain(name string, cause error) error {
	if cause != unix.ENOENT && cause != unix.ENOTDIR {
		return cause
	}
	at := ""
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at += "/" + part
		f, err := r.open(at, unix.O_PATH)
		if err == nil {
			f.Close()
			continue
		}
		dirName, base := split(at)
		dir, err := r.open(dirName, unix.O_PATH|unix.O_DIRECTORY)
		if err != nil || base == "" {
			break
		}
		target, err := readlink(dir, base)
		dir.Close()
		if err == nil {
			return leadsOut(at, target)
		}
		if at != name {
			return fault.New(fault.NotFound, "there is no directory %q in it", at)
		}
	}
	return cause
}

func leadsOut(link, target string) error {
	return fault.New(fault.Forbidden, "%q is a link to %q, which is not in it", "/"+strings.Trim(link, "/"), target)
}

// mkdirAll makes the directories above a place, as one who owns them.
func (r root) mkdirAll(name string, owner *Owner) error {
	at := ""
	for part := range strings.SplitSeq(strings.Trim(name, "/"), "/") {
		at += "/" + part
		f, err := r.open(at, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			f.Close()
			continue
		}
		if err != unix.ENOENT {
			return err
		}
		p, err := r.find(at, false)
		if err != nil {
			return err
		}
		err = p.mkdir(0o755, owner)
		p.close()
		if errors.Is(err, unix.EEXIST) {
			// Somebody else was quicker, or it is a link that leads nowhere.
			if f, err = r.open(at, unix.O_PATH|unix.O_DIRECTORY); err == nil {
				f.Close()
				continue
			}
			return r.explain(at, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mkdir makes a directory that nobody else can use before it is as it should be.
func (p place) mkdir(mode uint32, owner *Owner) error {
	if err := unix.Mkdirat(int(p.dir.Fd()), p.name, 0o700); err != nil {
		return err
	}
	fd, err := unix.Openat(int(p.dir.Fd()), p.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setFile(fd, owner, &mode)
}

// setFile gives an open file its owner and then its mode, which the first may change.
func setFile(fd int, owner *Owner, mode *uint32) error {
	if owner != nil {
		if err := unix.Fchown(fd, int(owner.UID), int(owner.GID)); err != nil {
			if errors.Is(err, unix.EINVAL) {
				return fault.New(fault.Invalid, "it has no user %d with group %d", owner.UID, owner.GID)
			}
			return err
		}
	}
	if mode != nil {
		return unix.Fchmod(fd, *mode&0o7777)
	}
	return nil
}

// info tells about the file at a place, or what it is a link to.
func (p place) info() (Info, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(p.dir.Fd()), p.name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return Info{}, err
	}
	i := infoOf(&st)
	if i.Type == Symlink {
		target, err := readlink(p.dir, p.name)
		if err != nil {
			return Info{}, err
		}
		i.Target = []byte(target)
	}
	return i, nil
}

func infoOf(st *unix.Stat_t) Info {
	i := Info{
		Type: Other, Owner: Owner{st.Uid, st.Gid}, Mode: st.Mode & 0o7777,
		Size: st.Size, MTime: st.Mtim.Nano(),
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		i.Type = Regular
	case unix.S_IFDIR:
		i.Type = Directory
	case unix.S_IFLNK:
		i.Type = Symlink
	}
	return i
}

// openFile opens a place that is a regular file or directory to read from. What it
// is is looked at first: opening a device may do something.
func (p place) openFile() (*os.File, Info, error) {
	i, err := p.info()
	if err != nil {
		return nil, i, err
	}
	if i.Type != Regular && i.Type != Directory {
		return nil, i, fault.New(fault.Invalid, "it is neither a file nor a directory")
	}
	fd, err := unix.Openat(int(p.dir.Fd()), p.name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, i, err
	}
	f := os.NewFile(uintptr(fd), p.name)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		f.Close()
		return nil, i, err
	}
	if i = infoOf(&st); i.Type != Regular && i.Type != Directory {
		f.Close()
		return nil, i, fault.New(fault.Invalid, "it is neither a file nor a directory")
	}
	return f, i, nil
}

// classed gives an error of the kernel its class and words.
func classed(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return err
	}
	for _, c := range []struct {
		errno unix.Errno
		class fault.Class
		text  string
	}{
		{unix.ENOENT, fault.NotFound, "there is no such file in it"},
		{unix.ENOTDIR, fault.NotFound, "something on the way to it is no directory"},
		{unix.EEXIST, fault.AlreadyExists, "it exists already"},
		{unix.EISDIR, fault.Invalid, "it is a directory"},
		{unix.ENOTEMPTY, fault.WrongState, "it is a directory that is not empty; delete it with --recursive"},
		{unix.EROFS, fault.Forbidden, "it is read-only there"},
		{unix.EPERM, fault.Forbidden, "the machine does not allow that"},
		{unix.EACCES, fault.Forbidden, "the machine does not allow that"},
		{unix.ELOOP, fault.Invalid, "its links go in circles"},
		{unix.ENAMETOOLONG, fault.Invalid, "its name is too long"},
		{unix.EBUSY, fault.Busy, "something is mounted there"},
		{unix.ENOSPC, fault.Exhausted, "there is no space left"},
		{unix.EDQUOT, fault.Exhausted, "there is no space left"},
	} {
		if errors.Is(err, c.errno) {
			return fault.New(c.class, "%s", c.text)
		}
	}
	return fmt.Errorf("inside: %w", err)
}
