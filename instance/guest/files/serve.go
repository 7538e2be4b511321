package files

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// server answers one client after the other request.
type server struct {
	root root
	conn net.Conn
	in   *wire.FrameReader
	out  *wire.FrameWriter
}

// Serve does what comes by conn to the files below dir until the client is gone. A
// file that the client has not sent to its end is taken away again.
func Serve(conn net.Conn, dir *os.File) error {
	s := &server{root: root{dir}, conn: conn, in: wire.NewFrameReader(conn), out: wire.NewFrameWriter(conn)}
	for {
		var q Request
		if err := wire.Read(conn, &q); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		err := s.answer(q)
		if lost, ok := errors.AsType[*broken](err); ok {
			return lost.err
		}
		if err != nil {
			if err := s.reply(failure(err)); err != nil {
				return err
			}
		}
	}
}

// broken is an error after which the conversation cannot go on.
type broken struct{ err error }

func (b *broken) Error() string { return b.err.Error() }

// replyWait bounds how long a client may take to read a piece.
const replyWait = 10 * time.Minute

func (s *server) reply(r Reply) error {
	s.conn.SetWriteDeadline(time.Now().Add(replyWait))
	if err := wire.Write(s.conn, r); err != nil {
		return &broken{err}
	}
	return nil
}

func failure(err error) Reply {
	err = classed(err)
	text := err.Error()
	return Reply{Class: string(fault.Of(err)), Error: text[:min(len(text), wire.MaxText)]}
}

// answer does what is asked. An error that it returns is not answered yet.
func (s *server) answer(q Request) error {
	path := string(q.Path)
	if len(path) > maxPath || len(q.Target) > maxPath || strings.ContainsRune(path, 0) {
		return fault.New(fault.Invalid, "its name is too long, or has a zero byte")
	}
	switch q.Op {
	case OpRead:
		return s.read(path, q)
	case OpList:
		return s.list(path)
	case OpWrite:
		return s.write(path, q)
	}
	var err error
	if q.Parents {
		dir, _ := split(path)
		err = s.root.mkdirAll(dir, q.Owner)
	}
	if err != nil {
		return err
	}
	p, err := s.root.find(path, !q.NoFollow)
	if err != nil {
		return err
	}
	defer p.close()
	var r Reply
	switch q.Op {
	case OpStat:
		var i Info
		i, err = p.info()
		r.Info = &i
	case OpMkdir:
		err = p.makeDir(q)
	case OpSymlink:
		err = p.symlink(q)
	case OpRemove:
		err = p.remove(q.Recursive)
	case OpSet:
		err = p.set(q)
	default:
		err = fault.New(fault.Unsupported, "what runs in the machine is too old to %s files; restart it", q.Op)
	}
	if err != nil {
		return err
	}
	return s.reply(r)
}

func (p place) makeDir(q Request) error {
	mode := uint32(0o755)
	if q.Mode != nil {
		mode = *q.Mode
	}
	err := p.mkdir(mode, q.Owner)
	if p.name == "." {
		err = unix.EEXIST
	}
	if !errors.Is(err, unix.EEXIST) || !q.Exist {
		return err
	}
	i, err := p.info()
	if err == nil && i.Type != Directory {
		err = fault.New(fault.AlreadyExists, "it exists already, and is no directory")
	}
	return err
}

func (p place) symlink(q Request) error {
	i, err := p.info()
	if err == nil && i.Type == Directory {
		return unix.EISDIR
	}
	tmp := tempName()
	if err := unix.Symlinkat(string(q.Target), int(p.dir.Fd()), tmp); err != nil {
		return err
	}
	if q.Owner != nil {
		err = unix.Fchownat(int(p.dir.Fd()), tmp, int(q.Owner.UID), int(q.Owner.GID), unix.AT_SYMLINK_NOFOLLOW)
	} else {
		err = nil
	}
	if err == nil && q.MTime != nil {
		err = p.times(tmp, *q.MTime)
	}
	return p.settle(tmp, err)
}

// settle gives a new file its name, or removes it.
func (p place) settle(tmp string, err error) error {
	if err == nil {
		err = unix.Renameat(int(p.dir.Fd()), tmp, int(p.dir.Fd()), p.name)
	}
	if err != nil {
		unix.Unlinkat(int(p.dir.Fd()), tmp, 0)
	}
	return err
}

func tempName() string {
	var b [8]byte
	rand.Read(b[:])
	return ".brig-" + hex.EncodeToString(b[:])
}

func (p place) times(name string, mtime int64) error {
	now := unix.Timespec{Nsec: unix.UTIME_OMIT}
	return unix.UtimesNanoAt(int(p.dir.Fd()), name, []unix.Timespec{now, unix.NsecToTimespec(mtime)}, unix.AT_SYMLINK_NOFOLLOW)
}

// set changes the attributes of a file, not those of what a link leads to.
func (p place) set(q Request) error {
	i, err := p.info()
	if err != nil {
		return err
	}
	if q.Owner != nil {
		err = unix.Fchownat(int(p.dir.Fd()), p.name, int(q.Owner.UID), int(q.Owner.GID), unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && i.Type != Symlink && q.Mode != nil {
		f, _, openErr := p.openFile()
		if openErr != nil {
			return openErr
		}
		err = setFile(int(f.Fd()), nil, q.Mode)
		f.Close()
	}
	if err == nil && q.MTime != nil {
		err = p.times(p.name, *q.MTime)
	}
	return err
}

// maxRemoveDepth bounds nesting: each level takes an open file.
const maxRemoveDepth = 400

func (p place) remove(recursive bool) error {
	if p.name == "." {
		return fault.New(fault.Invalid, "it is the root directory, or ends in \"..\"")
	}
	return removeAt(int(p.dir.Fd()), p.name, recursive, 0)
}

func removeAt(dir int, name string, recursive bool, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if !errors.Is(err, unix.EISDIR) {
		return err
	}
	if err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); !recursive || !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if depth > maxRemoveDepth {
		return fault.New(fault.Exhausted, "it is nested more than %d levels deep", maxRemoveDepth)
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	for {
		names, err := f.Readdirnames(listBatch)
		for _, n := range names {
			if err := removeAt(fd, n, true, depth+1); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("%q: %w", n, classed(err))
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// list sends what is in a directory, or the one file that there is.
func (s *server) list(path string) error {
	p, err := s.root.find(path, true)
	if err != nil {
		return err
	}
	defer p.close()
	i, err := p.info()
	if err != nil {
		return err
	}
	if i.Type != Directory {
		i.Name = []byte(p.name)
		return s.reply(Reply{Info: &i, List: []Info{i}})
	}
	f, _, err := p.openFile()
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		names, err := f.Readdirnames(listBatch)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		end := err != nil || len(names) == 0
		r := Reply{Info: &i, More: !end}
		size := 0
		for _, n := range names {
			one, err := place{f, n}.info()
			if errors.Is(err, unix.ENOENT) {
				continue // gone meanwhile
			}
			if err != nil {
				return err
			}
			one.Name = []byte(n)
			r.List = append(r.List, one)
			if size += 2*(len(n)+len(one.Target)) + 200; size > maxMessage {
				if err := s.reply(Reply{Info: &i, List: r.List, More: true}); err != nil {
					return err
				}
				r.List, size = nil, 0
			}
		}
		if err := s.reply(r); err != nil || end {
			return err
		}
	}
}
