package guest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Root is a guest's root directory, seen from outside or from within. Links in
// it, absolute ones too, lead to where they lead for the guest and never out of
// it, which is what os.Root refuses for absolute ones.
type Root struct{ dir *os.File }

// OpenRoot opens the root directory at path.
func OpenRoot(path string) (*Root, error) {
	dir, err := os.OpenFile(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return &Root{dir: dir}, nil
}

// RootOf is the root directory that an os.Root holds. The caller closes both.
func RootOf(r *os.Root) (*Root, error) {
	dir, err := r.Open(".")
	if err != nil {
		return nil, err
	}
	return &Root{dir: dir}, nil
}

// Close lets the directory go.
func (r *Root) Close() error { return r.dir.Close() }

// open is openat2 with every link resolved beneath the root. Links of /proc
// are not followed, and a FIFO does not block.
func (r *Root) open(name string, flags int, mode fs.FileMode) (*os.File, error) {
	how := &unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if flags&unix.O_PATH == 0 {
		how.Flags |= unix.O_NONBLOCK | unix.O_NOCTTY
	}
	if flags&unix.O_CREAT != 0 {
		how.Mode = uint64(mode.Perm())
	}
	for {
		fd, err := unix.Openat2(int(r.dir.Fd()), name, how)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return os.NewFile(uintptr(fd), name), nil
	}
}

// Stat tells about the file that name leads to.
func (r *Root) Stat(name string) (fs.FileInfo, error) {
	f, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Read reads a regular file of at most max bytes.
func (r *Root) Read(name string, max int64) ([]byte, error) {
	f, err := r.open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, max+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > max {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("longer than %d bytes", max)}
	}
	return b, nil
}

// Write gives a regular file its content, and does not touch one that has it
// already. A missing file is made with mode 0644.
func (r *Root) Write(name string, content []byte) error {
	if old, err := r.Read(name, int64(len(content))); err == nil && bytes.Equal(old, content) {
		return nil
	}
	f, err := r.open(name, unix.O_WRONLY|unix.O_CREAT, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return &fs.PathError{Op: "write", Path: name, Err: errors.New("not a regular file")}
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Close()
}

// MkdirAll makes a directory and its missing parents with mode 0755.
func (r *Root) MkdirAll(name string) error {
	name = path.Clean("/" + name)
	if name == "/" {
		return nil
	}
	if err := r.MkdirAll(path.Dir(name)); err != nil {
		return err
	}
	parent, err := r.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	err = unix.Mkdirat(int(parent.Fd()), path.Base(name), 0o755)
	if err == nil {
		return nil
	}
	if !errors.Is(err, unix.EEXIST) {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	// It may be a link to a directory.
	d, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	return d.Close()
}

// OpenDir opens the directory that name leads to, to mount at, and gives the path
// of it in the guest, without links.
func (r *Root) OpenDir(name string) (*os.File, string, error) {
	dir, err := r.open(name, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, "", err
	}
	here, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err == nil {
		var root string
		root, err = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", r.dir.Fd()))
		inside, ok := strings.CutPrefix(here, strings.TrimSuffix(root, "/"))
		if err == nil && (!ok || !strings.HasPrefix(inside, "/")) {
			err = &fs.PathError{Op: "open", Path: name, Err: errors.New("not below the root directory")}
		}
		here = inside
	}
	if err != nil {
		dir.Close()
		return nil, "", err
	}
	return dir, here, nil
}

// Place makes an empty file, to mount at, or opens one that is there and has nothing in
// it. What else is there is an error.
func (r *Root) Place(name string) (*os.File, error) {
	if err := r.MkdirAll(path.Dir(name)); err != nil {
		return nil, err
	}
	made, err := r.open(name, unix.O_RDONLY|unix.O_CREAT|unix.O_EXCL, 0o644)
	if err == nil {
		made.Close()
	}
	f, err := r.open(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > 0 {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("something is there already")}
	}
	return f, nil
}

// RemovePlace removes such a file. What else is there stays.
func (r *Root) RemovePlace(name string) error {
	f, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	f.Close()
	if err == nil && (!info.Mode().IsRegular() || info.Size() > 0) {
		err = &fs.PathError{Op: "remove", Path: name, Err: errors.New("something else is there")}
	}
	if err != nil {
		return err
	}
	return r.remove(name)
}

// remove removes a file or link, not what it leads to.
func (r *Root) remove(name string) error {
	parent, err := r.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	return unix.Unlinkat(int(parent.Fd()), path.Base(name), 0)
}

// readlink gives the target of a link.
func (r *Root) readlink(name string) (string, error) {
	parent, err := r.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", err
	}
	defer parent.Close()
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(parent.Fd()), path.Base(name), buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}
