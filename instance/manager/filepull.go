package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/instance/fault"
	"brig/instance/guest/files"
)

// PullFile copies a file, or with Recursive a directory, of an instance or a snapshot
// to the host. Links on the way to it lead to where they lead for the guest. What
// arrives belongs to the caller, and has no set-user-id bits; devices, sockets and
// FIFOs are left out.
func (m *Manager) PullFile(ctx context.Context, r FileRequest) (err error) {
	defer about(&err, "copy", r.Name, r.Path)
	src, err := m.reachToRead(ctx, r.Name, r.Path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	p := &puller{ctx: ctx, from: src.Client}
	if err := p.pull(src.path, r); err != nil {
		return err
	}
	if p.left > 0 {
		m.cfg.Notice(fmt.Sprintf("%d devices, sockets and FIFOs were left out", p.left))
	}
	return nil
}

// ListFiles tells what is in a directory, sorted by name, or about one file.
func (m *Manager) ListFiles(ctx context.Context, name, where string) (list []FileInfo, err error) {
	defer about(&err, "list", name, where)
	src, err := m.reachToRead(ctx, name, where)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.close()) }()
	all, err := src.List(ctx, src.path)
	if err != nil {
		return nil, err
	}
	for _, i := range all {
		list = append(list, fileInfo(i))
	}
	slices.SortFunc(list, func(a, b FileInfo) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// puller copies to the host.
type puller struct {
	ctx  context.Context
	from *files.Client
	left int // out
}

func (p *puller) pull(from string, r FileRequest) error {
	if r.Output != nil {
		return p.from.Read(p.ctx, from, false, func(files.Info) (files.Sink, error) { return printed{r.Output}, nil })
	}
	i, err := p.from.Stat(p.ctx, from, false)
	switch {
	case err != nil:
		return err
	case i.Type != files.Regular && i.Type != files.Directory:
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	case i.Type == files.Directory && !r.Recursive:
		return fault.New(fault.Invalid, "it is a directory; copy it with --recursive")
	}
	if r.Parents {
		if err := os.MkdirAll(filepath.Dir(r.Target), 0o777); err != nil {
			return fault.New(fault.Invalid, "its directory cannot be made: %w", err)
		}
	}
	where, name := filepath.Split(r.Target)
	if st, err := os.Stat(r.Target); name == "" || name == "." || name == ".." || err == nil && st.IsDir() {
		where, name = r.Target, path.Base(from)
		if name == "/" {
			name = path.Base(path.Join(r.Name, r.Path))
		}
	}
	if where == "" {
		where = "."
	}
	to, err := os.OpenRoot(where)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "there is no directory %q", where)
	}
	if err != nil {
		return err
	}
	defer to.Close()
	if i.Type == files.Directory {
		return p.directory(from, i, to, name, 0)
	}
	return p.file(from, false, to, name)
}

// printed is standard output, which has no holes.
type printed struct{ io.Writer }

func (p printed) Hole(n int64) error {
	_, err := io.CopyN(p.Writer, zeros{}, n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// arriving is a file on the host while it is filled.
type arriving struct {
	*os.File
	at int64
}

func (a *arriving) Write(b []byte) (int, error) {
	n, err := a.File.Write(b)
	a.at += int64(n)
	return n, err
}

func (a *arriving) Hole(n int64) error {
	a.at += n
	_, err := a.Seek(a.at, io.SeekStart)
	return err
}

// file copies a regular file, so that under its name there is what was there or
// all of it.
func (p *puller) file(from string, noFollow bool, to *os.Root, name string) (err error) {
	// The longest name has no room for more.
	tmp := ".brig-" + newID()
	f, err := to.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			to.Remove(tmp)
		}
	}()
	a := &arriving{File: f}
	var i files.Info
	err = p.from.Read(p.ctx, from, noFollow, func(info files.Info) (files.Sink, error) {
		i = info
		return a, nil
	})
	if err == nil {
		err = f.Truncate(a.at)
	}
	if err == nil {
		err = f.Chmod(fs.FileMode(i.Mode) & fs.ModePerm)
	}
	if err == nil {
		err = files.SetXattrs(f, i.Xattrs)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := to.Chtimes(tmp, time.Time{}, time.Unix(0, i.MTime)); err != nil {
		return err
	}
	return to.Rename(tmp, name)
}

// maxPullDepth bounds nesting: each level takes an open file.
const maxPullDepth = 400

func (p *puller) directory(from string, i files.Info, to *os.Root, name string, depth int) error {
	if depth > maxPullDepth {
		return fault.New(fault.Exhausted, "it is nested more than %d levels deep", maxPullDepth)
	}
	if err := to.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	into, err := to.OpenRoot(name)
	if err != nil {
		return err
	}
	defer into.Close()
	list, err := p.from.List(p.ctx, from)
	if err != nil {
		return err
	}
	for _, one := range list {
		if err := p.entry(from+"/"+string(one.Name), one, into, depth); err != nil {
			return fmt.Errorf("%s: %w", strings.ToValidUTF8(string(one.Name), "?"), err)
		}
	}
	mode := fs.FileMode(i.Mode)&fs.ModePerm | 0o700
	return errors.Join(into.Chmod(".", mode), into.Chtimes(".", time.Time{}, time.Unix(0, i.MTime)))
}

// entry copies one name of a directory. What has become a link or gone since it was
// listed is as it is now.
func (p *puller) entry(from string, i files.Info, into *os.Root, depth int) error {
	name := string(i.Name)
	switch i.Type {
	case files.Regular:
		return p.file(from, true, into, name)
	case files.Directory:
		return p.directory(from, i, into, name, depth+1)
	case files.Symlink:
		if err := into.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return into.Symlink(string(i.Target), name)
	}
	p.left++
	return nil
}
