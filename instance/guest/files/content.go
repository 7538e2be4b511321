package files

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/wire"
)

// small is what a file that tells no size may hold: those of /proc do.
const small = 1 << 20

// read sends a file: its content as of when it was opened, or less.
func (s *server) read(path string, q Request) error {
	p, err := s.root.find(path, !q.NoFollow)
	if err != nil {
		return err
	}
	defer p.close()
	f, i, err := p.openFile()
	if err != nil {
		return err
	}
	defer f.Close()
	if i.Type == Directory {
		return fault.New(fault.Invalid, "it is a directory; copy it with --recursive")
	}
	i.Xattrs = Xattrs(f)
	if err := s.reply(Reply{Info: &i}); err != nil {
		return err
	}
	sent := send(s.out, f, i.Size, func() { s.conn.SetWriteDeadline(time.Now().Add(replyWait)) })
	if lost, ok := errors.AsType[*broken](sent); ok {
		return lost
	}
	if err := s.out.Data(wire.FrameEnd, nil); err != nil {
		return &broken{err}
	}
	if sent != nil {
		return sent
	}
	return s.reply(Reply{})
}

// most is how much of a file is carried that tells a size.
func most(size int64) int64 {
	if size == 0 {
		return small
	}
	return size
}

// send sends what f holds, its holes as such. An error of the connection is broken.
func send(w *wire.FrameWriter, f *os.File, size int64, alive func()) error {
	buf := make([]byte, wire.MaxFrame)
	limit, sparse := most(size), size > 0
	for at := int64(0); at < limit; {
		data, err := int64(0), error(nil)
		if sparse {
			if data, err = f.Seek(at, unix.SEEK_DATA); errors.Is(err, unix.ENXIO) {
				data, err = limit, nil // a hole to the end
			} else if err != nil {
				sparse = false // a file that has no places, or none that count
			}
		}
		end := limit
		if sparse {
			if data = min(data, limit); data > at {
				if err := w.Hole(data - at); err != nil {
					return &broken{err}
				}
			}
			if at = data; at >= limit {
				break
			}
			if hole, err := f.Seek(at, unix.SEEK_HOLE); err == nil {
				end = min(hole, limit)
			}
			if _, err := f.Seek(at, io.SeekStart); err != nil {
				return err
			}
		}
		for at < end {
			alive()
			n, err := f.Read(buf[:min(int64(len(buf)), end-at)])
			if n > 0 {
				if err := w.Data(wire.FrameData, buf[:n]); err != nil {
					return &broken{err}
				}
				at += int64(n)
			}
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// write receives a file, under a name of its own until it is whole.
func (s *server) write(path string, q Request) error {
	err := s.writeTo(path, q)
	if _, ok := errors.AsType[*broken](err); ok || err == nil {
		return err
	}
	// The client may be sending still. It stops when it has heard, and goes on
	// with a new connection.
	if err := s.reply(failure(err)); err != nil {
		return err
	}
	return &broken{err}
}

func (s *server) writeTo(path string, q Request) error {
	if q.Parents {
		dir, _ := split(path)
		if err := s.root.mkdirAll(dir, q.Owner); err != nil {
			return err
		}
	}
	p, err := s.root.find(path, !q.NoFollow)
	if err != nil {
		return err
	}
	defer p.close()
	if p.name == "." || strings.HasSuffix(path, "/") {
		return unix.EISDIR
	}
	if err := p.mayReplace(&q); err != nil {
		return err
	}
	tmp := tempName()
	fd, err := unix.Openat(int(p.dir.Fd()), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), tmp)
	err = s.fill(f, q)
	err = errors.Join(err, f.Close())
	if err == nil && q.MTime != nil {
		err = p.times(tmp, *q.MTime)
	}
	if err := p.settle(tmp, err); err != nil {
		return err
	}
	return s.reply(Reply{})
}

// mayReplace looks at what has the name already, which keeps its owner and mode
// where none are given.
func (p place) mayReplace(q *Request) error {
	i, err := p.info()
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case i.Type == Directory:
		return unix.EISDIR
	case i.Type != Regular && i.Type != Symlink:
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	case i.Type == Symlink:
		return nil
	}
	if q.Owner == nil {
		q.Owner = &i.Owner
	}
	if q.Mode == nil {
		q.Mode = &i.Mode
	}
	return nil
}

// fill writes what comes to a new file, and gives it its attributes.
func (s *server) fill(f *os.File, q Request) error {
	at := int64(0)
	for {
		frame, err := s.in.Next()
		if err != nil {
			return &broken{err}
		}
		switch frame.Kind {
		case wire.FrameData:
			_, err = f.Write(frame.Data)
			at += int64(len(frame.Data))
		case wire.FrameHole:
			var n int64
			if n, err = frame.Length(); err == nil {
				at += n
				_, err = f.Seek(at, io.SeekStart)
			}
		case wire.FrameEnd:
			mode := uint32(0o644)
			if q.Mode != nil {
				mode = *q.Mode
			}
			if err := f.Truncate(at); err != nil {
				return err
			}
			if err := setFile(int(f.Fd()), q.Owner, &mode); err != nil {
				return err
			}
			return SetXattrs(f, q.Xattrs)
		default:
			return &broken{fmt.Errorf("frame of kind %d within a file", frame.Kind)}
		}
		if err != nil {
			return err
		}
	}
}

// xattrPrefix is what attributes begin with that are carried: the others mean
// something to a kernel, and not the same everywhere.
const xattrPrefix = "user."

// Xattrs reads the attributes of a file that are carried, as far as they fit.
func Xattrs(f *os.File) map[string][]byte {
	names := make([]byte, maxXattrs)
	n, err := unix.Flistxattr(int(f.Fd()), names)
	if err != nil {
		return nil
	}
	var all map[string][]byte
	room := maxXattrs
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if !strings.HasPrefix(name, xattrPrefix) {
			continue
		}
		value := make([]byte, room)
		n, err := unix.Fgetxattr(int(f.Fd()), name, value)
		if room -= len(name) + max(n, 0); err != nil || room <= 0 {
			break
		}
		if all == nil {
			all = map[string][]byte{}
		}
		all[name] = value[:n]
	}
	return all
}

// SetXattrs gives a file attributes, where its file system has any.
func SetXattrs(f *os.File, all map[string][]byte) error {
	for name, value := range all {
		if !strings.HasPrefix(name, xattrPrefix) {
			return fault.New(fault.Invalid, "an attribute called %q is not carried", name)
		}
		if err := unix.Fsetxattr(int(f.Fd()), name, value, 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return err
		}
	}
	return nil
}
