package guest

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// RootAt is the root directory that is open as dir, which Close closes.
func RootAt(dir *os.File) (*Root, error) {
	if info, err := dir.Stat(); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, &fs.PathError{Op: "open", Path: dir.Name(), Err: unix.ENOTDIR}
	}
	return &Root{dir: dir}, nil
}

// File is the root directory itself, open as a place: it cannot be read. It stays the
// Root's.
func (r *Root) File() *os.File { return r.dir }

// Lstat tells about a file, link or folder itself: only links on the way to it are
// followed.
func (r *Root) Lstat(name string) (fs.FileInfo, error) {
	f, err := r.open(name, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// Names gives at most max names of what is in a folder.
func (r *Root) Names(dir string, max int) ([]string, error) {
	d, err := r.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(max)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return names, err
}

// Remove removes a file or link, not what it leads to.
func (r *Root) Remove(name string) error { return r.remove(name) }

// Replace puts a new regular file in the place of a file or link, so that under its
// name there is what was there or all of it. It takes write access to the folder
// alone.
func (r *Root) Replace(name string, content []byte, mode fs.FileMode) error {
	parent, err := r.open(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	dir := Root{dir: parent}
	tmp := "." + path.Base(name) + ".brig"
	// One that was killed may have left its own.
	if err := dir.remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := dir.open(tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Chmod(mode.Perm()) // whatever the umask says
	}
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = unix.Renameat(int(parent.Fd()), tmp, int(parent.Fd()), path.Base(name))
	}
	if err != nil {
		return errors.Join(&fs.PathError{Op: "replace", Path: name, Err: err}, ignoreMissing(dir.remove(tmp)))
	}
	return nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
