package manager

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/files"
)

// PushFiles copies files of the host into an instance, or with Recursive directories.
// They keep their modes, times and owners' ids unless the request has others; a file
// of Input has those of the file it replaces. Each file arrives as a whole or not at
// all. Links are resolved as the guest does, and never lead out of it; those in a
// directory are copied as links. Devices, sockets and FIFOs are left out.
func (m *Manager) PushFiles(ctx context.Context, r PushRequest) (err error) {
	defer about(&err, "copy to", r.Name, r.Path)
	to, err := m.reachToWrite(ctx, "copy files to", r.Name, r.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	p := &pusher{ctx: ctx, to: to.Client, r: r}
	if r.Input != nil {
		return p.to.Write(ctx, p.request(to.path, nil), r.Input)
	}
	into, err := p.into(to.path)
	if err != nil {
		return err
	}
	for _, source := range r.Sources {
		where := to.path
		if into {
			abs, err := filepath.Abs(source)
			if err != nil {
				return err
			}
			where = path.Join(to.path, filepath.Base(abs))
		}
		if err := p.push(source, where); err != nil {
			return fmt.Errorf("%q: %w", source, err)
		}
	}
	if p.left > 0 {
		m.cfg.Notice(fmt.Sprintf("%d devices, sockets and FIFOs were left out", p.left))
	}
	return nil
}

// MakeDirectory makes a directory in an instance.
func (m *Manager) MakeDirectory(ctx context.Context, r DirectoryRequest) (err error) {
	defer about(&err, "make the directory", r.Name, r.Path)
	to, err := m.reachToWrite(ctx, "make a directory in", r.Name, r.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	q := files.Request{Op: files.OpMkdir, Path: []byte(to.path), NoFollow: true, Parents: r.Parents, Exist: r.Parents, Mode: r.Mode}
	if r.UID != nil || r.GID != nil {
		q.Owner = r.owner(files.Owner{})
	}
	return to.Do(ctx, q)
}

// DeleteFile deletes a file or link of an instance, or an empty directory, or with
// Recursive any. With Force one that is not there is no error.
func (m *Manager) DeleteFile(ctx context.Context, r RemoveRequest) (err error) {
	defer about(&err, "delete", r.Name, r.Path)
	to, err := m.reachToWrite(ctx, "delete files of", r.Name, r.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.close()) }()
	err = to.Do(ctx, files.Request{Op: files.OpRemove, Path: []byte(to.path), NoFollow: true, Recursive: r.Recursive || r.Force})
	if r.Force && fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// owner is what a request makes of an owner.
func (o Ownership) owner(of files.Owner) *files.Owner {
	if o.UID != nil {
		of.UID = *o.UID
	}
	if o.GID != nil {
		of.GID = *o.GID
	}
	return &of
}

// pusher copies to an instance.
type pusher struct {
	ctx  context.Context
	to   *files.Client
	r    PushRequest
	left int // out
}

// into tells whether files are to be put into what the user named, and not to become it.
func (p *pusher) into(where string) (bool, error) {
	wanted := len(p.r.Sources) > 1 || strings.HasSuffix(where, "/")
	i, err := p.to.Stat(p.ctx, where, false)
	switch {
	case fault.Is(err, fault.NotFound) && wanted && !p.r.Parents:
		return false, fault.New(fault.NotFound, "there is no such directory in it; make it with --create-dirs")
	case fault.Is(err, fault.NotFound):
		return wanted, nil
	case err == nil && wanted && i.Type != files.Directory:
		return false, fault.New(fault.Invalid, "it is no directory")
	}
	return i.Type == files.Directory, err
}

// request is the wish to have a file that is like one of the host; st is nil for a
// stream.
func (p *pusher) request(where string, st *syscall.Stat_t) files.Request {
	q := files.Request{Path: []byte(where), Parents: p.r.Parents, Mode: p.r.Mode}
	if st == nil {
		if p.r.UID != nil || p.r.GID != nil {
			q.Owner = p.r.owner(files.Owner{})
		}
		return q
	}
	q.Owner = p.r.owner(files.Owner{UID: st.Uid, GID: st.Gid})
	if q.Mode == nil {
		mode := st.Mode & 0o7777
		q.Mode = &mode
	}
	mtime := st.Mtim.Nano()
	q.MTime = &mtime
	return q
}

// push copies what the user named, whatever links lead there.
func (p *pusher) push(source, where string) error {
	f, err := os.OpenFile(source, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no such file on the host")
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return err
	case st.Mode().IsRegular():
		return p.file(f, p.request(where, st.Sys().(*syscall.Stat_t)))
	case !st.IsDir():
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	case !p.r.Recursive:
		return fault.New(fault.Invalid, "it is a directory; copy it with --recursive")
	}
	root, err := os.OpenRoot(source)
	if err != nil {
		return err
	}
	defer root.Close()
	return p.directory(root, where, 0)
}

func (p *pusher) file(f *os.File, q files.Request) error {
	q.Xattrs = files.Xattrs(f)
	return p.to.Write(p.ctx, q, f)
}

func (p *pusher) directory(from *os.Root, where string, depth int) error {
	if depth > maxPullDepth {
		return fault.New(fault.Exhausted, "it is nested more than %d levels deep", maxPullDepth)
	}
	st, err := from.Stat(".")
	if err != nil {
		return err
	}
	q := p.request(where, st.Sys().(*syscall.Stat_t))
	if p.r.Mode != nil {
		// The mode is meant for files. A directory has to be entered, too.
		mode := *p.r.Mode | *p.r.Mode&0o444>>2
		q.Mode = &mode
	}
	made, err := p.mkdir(q, depth)
	if err != nil {
		return err
	}
	dir, err := from.Open(".")
	if err != nil {
		return err
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	slices.Sort(names)
	for _, name := range names {
		if err := p.entry(from, name, where+"/"+name, depth); err != nil {
			return fmt.Errorf("%q: %w", name, err)
		}
	}
	if !made {
		return nil
	}
	q.Op, q.NoFollow = files.OpSet, true
	return p.to.Do(p.ctx, q)
}

// mkdir makes a directory that only its owner can use until it is full, or takes the
// one that is there, which stays as it is. Below the first, a link to a directory is
// none.
func (p *pusher) mkdir(q files.Request, depth int) (made bool, err error) {
	private := uint32(0o700)
	q.Op, q.Mode, q.NoFollow = files.OpMkdir, &private, depth > 0
	err = p.to.Do(p.ctx, q)
	if !fault.Is(err, fault.AlreadyExists) {
		return err == nil, err
	}
	q.Exist = true
	return false, p.to.Do(p.ctx, q)
}

// entry copies one name of a directory of the host, whatever it becomes meanwhile.
func (p *pusher) entry(from *os.Root, name, where string, depth int) error {
	st, err := from.Lstat(name)
	if err != nil {
		return err
	}
	q := p.request(where, st.Sys().(*syscall.Stat_t))
	q.Parents = false
	switch {
	case st.IsDir():
		root, err := from.OpenRoot(name)
		if err != nil {
			return err
		}
		defer root.Close()
		return p.directory(root, where, depth+1)
	case st.Mode()&fs.ModeSymlink != 0:
		target, err := from.Readlink(name)
		if err != nil {
			return err
		}
		q.Op, q.Target, q.NoFollow = files.OpSymlink, []byte(target), true
		return p.to.Do(p.ctx, q)
	case !st.Mode().IsRegular():
		p.left++
		return nil
	}
	f, err := from.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if now, err := f.Stat(); err != nil || !now.Mode().IsRegular() {
		p.left++
		return err
	}
	q.NoFollow = true // a link of this name is replaced
	return p.file(f, q)
}
