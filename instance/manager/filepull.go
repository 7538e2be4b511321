package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage/treecopy"
)

// PullFile copies a file, or with Recursive a directory, from a snapshot to the
// host. Links on the way to it lead to where they lead for the guest. What arrives
// belongs to the caller, and has no set-user-id bits; devices, sockets and FIFOs
// are left out.
func (m *Manager) PullFile(ctx context.Context, r FileRequest) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot copy %q of snapshot %q of %q: %w", r.Path, r.Snapshot, r.Name, err)
		}
	}()
	if err := store.CheckSnapshotName(r.Snapshot); err != nil {
		return err
	}
	inst, err := m.open(ctx, r.Name)
	if err != nil {
		return err
	}
	dir, done, err := m.lookInto(ctx, inst, r.Snapshot)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, done()) }()
	src, err := openIn(dir, r.Path)
	if err != nil {
		return err
	}
	defer src.Close()
	p := &puller{ctx: ctx}
	if err := p.pull(src, r); err != nil {
		return err
	}
	if p.left > 0 {
		m.cfg.Notice(fmt.Sprintf("%d devices, sockets and FIFOs were left out", p.left))
	}
	return nil
}

// maxTries bounds how often openIn tries anew.
const maxTries = 10000

// openIn opens a file or directory below dir, which counts as the root for all
// links. A FIFO does not block, and a device does nothing in a view.
func openIn(dir *os.File, name string) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK | unix.O_NOCTTY,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	fd, err := unix.Openat2(int(dir.Fd()), path.Join("/", name), how)
	// The kernel gives up on ".." while anybody on the host renames anything.
	// A lease on the file says the same, for longer.
	for i := 0; i < maxTries && (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)); i++ {
		fd, err = unix.Openat2(int(dir.Fd()), path.Join("/", name), how)
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return nil, fault.New(fault.NotFound, "there is no such file in it")
	case errors.Is(err, unix.ENXIO), errors.Is(err, unix.EACCES):
		return nil, fault.New(fault.Invalid, "it is neither a file nor a directory")
	case err != nil:
		return nil, fmt.Errorf("open: %w", err)
	}
	return os.NewFile(uintptr(fd), path.Base(path.Join("/", name))), nil
}

// puller copies to the host.
type puller struct {
	ctx  context.Context
	left int // out
}

func (p *puller) pull(src *os.File, r FileRequest) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	switch {
	case !st.IsDir() && !st.Mode().IsRegular():
		return fault.New(fault.Invalid, "it is neither a file nor a directory")
	case st.IsDir() && r.Output != nil:
		return fault.New(fault.Invalid, "it is a directory, which cannot be printed")
	case st.IsDir() && !r.Recursive:
		return fault.New(fault.Invalid, "it is a directory; copy it with --recursive")
	case r.Output != nil:
		_, err := io.Copy(r.Output, &reader{p.ctx, src})
		return err
	}
	where, name := filepath.Split(r.Target)
	if st, err := os.Stat(r.Target); name == "" || name == "." || name == ".." || err == nil && st.IsDir() {
		where, name = r.Target, path.Base(path.Join("/", r.Path))
		if name == "/" {
			name = r.Snapshot
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
	if st.IsDir() {
		return p.directory(src, st, to, name, 0)
	}
	return p.file(src, st, to, name)
}

// file copies a regular file, so that under its name there is what was there or
// all of it.
func (p *puller) file(src *os.File, st fs.FileInfo, to *os.Root, name string) (err error) {
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
	err = treecopy.File(p.ctx, src, f)
	if err == nil {
		err = f.Chmod(st.Mode().Perm())
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := to.Chtimes(tmp, time.Time{}, st.ModTime()); err != nil {
		return err
	}
	return to.Rename(tmp, name)
}

// maxPullDepth bounds nesting: each level takes two open files.
const maxPullDepth = 400

func (p *puller) directory(src *os.File, st fs.FileInfo, to *os.Root, name string, depth int) error {
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
	names, err := treecopy.NamesIn(int(src.Fd()))
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := p.ctx.Err(); err != nil {
			return err
		}
		if err := p.entry(src, into, n, depth); err != nil {
			return fmt.Errorf("%s: %w", strings.ToValidUTF8(n, "?"), err)
		}
	}
	return errors.Join(into.Chmod(".", st.Mode().Perm()|0o700), into.Chtimes(".", time.Time{}, st.ModTime()))
}

// entry copies one name of a directory.
func (p *puller) entry(src *os.File, into *os.Root, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(int(src.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFDIR:
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(int(src.Fd()), name, buf)
		if err != nil {
			return err
		}
		if err := into.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return into.Symlink(string(buf[:n]), name)
	default:
		p.left++
		return nil
	}
	fd, err := unix.Openat(int(src.Fd()), name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return p.directory(f, info, into, name, depth+1)
	case info.Mode().IsRegular():
		return p.file(f, info, into, name)
	}
	p.left++
	return nil
}

// reader is a reader that ends with a context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r *reader) Read(b []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}
