// Package outfile writes files for users, whole or not at all: what is under the name
// already stays as it is until the new file is complete and on the disk. A file that is
// given up, also by being killed, leaves nothing where the file system can make files
// without a name.
package outfile

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// File is a file that is being written. Discard or Commit ends it.
type File struct {
	*os.File
	path string // what it is to be called
	name string // what it is called meanwhile; empty: nothing
}

// Create begins the file path. Errors: not-found without its folder, invalid when
// path is a folder, forbidden, exhausted.
func Create(path string) (*File, error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return nil, fault.New(fault.Invalid, "cannot write %q: something else than a file is there", path)
	}
	f, err := Scratch(filepath.Dir(path))
	if err == nil {
		return &File{File: f, path: path}, nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, Fault(fmt.Errorf("cannot write %q: %w", path, err))
	}
	name := beside(path)
	f, err = os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, Fault(fmt.Errorf("cannot write %q: %w", path, err))
	}
	return &File{File: f, path: path, name: name}, nil
}

// Scratch makes a file without a name in a folder.
func Scratch(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &fs.PathError{Op: "create a file in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), filepath.Join(dir, "(without a name)")), nil
}

func beside(path string) string {
	return filepath.Join(filepath.Dir(path), ".brig-export-"+rand.Text())
}

// Handle is a path by which this process opens the file again, and tools that inherit
// it as their descriptor fd do.
func Handle(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// Commit flushes the file and gives it its name, which another may have had.
func (f *File) Commit() error {
	err := errors.Join(f.Chmod(0o644), f.Sync())
	if err == nil && f.name == "" {
		name := beside(f.path)
		err = unix.Linkat(unix.AT_FDCWD, Handle(int(f.Fd())), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW)
		if err == nil {
			f.name = name
		}
	}
	if err == nil {
		err = os.Rename(f.name, f.path)
	}
	if err != nil {
		f.Discard()
		return Fault(err)
	}
	return Fault(errors.Join(f.Close(), syncDir(filepath.Dir(f.path))))
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}

// Discard gives the file up.
func (f *File) Discard() {
	_ = f.Close()
	if f.name != "" {
		_ = os.Remove(f.name)
	}
}

// Replace writes the file path anew.
func Replace(path string, write func(*os.File) error) error {
	f, err := Create(path)
	if err != nil {
		return err
	}
	if err := write(f.File); err != nil {
		f.Discard()
		return Fault(err)
	}
	return f.Commit()
}

// Fault gives errors of writing files their class.
func Fault(err error) error {
	switch {
	case err == nil || fault.Of(err) != fault.Internal:
		return err
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.Exhausted, err)
	case errors.Is(err, fs.ErrNotExist):
		return fault.Wrap(fault.NotFound, err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fault.Wrap(fault.Forbidden, err)
	}
	return err
}
