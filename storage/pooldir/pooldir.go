// Package pooldir is what pool drivers have in common that keep their records in a
// directory: reading and writing small files there so that a crash leaves the old
// or the new one, holding a volume's directory by a lock, changes in progress in
// directories of their own below staging, and the trash. It also judges what a new
// volume was filled with, copies metadata files, and tells whether a folder can become
// a pool. What the records say, and what
// a volume's data are, is the drivers' business.
package pooldir

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/storage"
)

// Directories of a pool, beside those of the volume classes.
const (
	Staging = "staging" // changes in progress
	Trash   = "trash"   // what Sweep has yet to free
)

// MetaDir is the directory of a volume's metadata files in the volume's own.
const MetaDir = "meta"

// Classes are the volume classes, each of which has a directory by its name.
func Classes() []storage.Class {
	return []storage.Class{storage.Images, storage.Instances, storage.Custom}
}

// Dir is the open directory of a pool.
type Dir struct {
	*os.Root
	File *os.File // the same directory
}

// Open opens the directory of root, which Close closes too, as it does after an
// error.
func Open(root *os.Root) (*Dir, error) {
	f, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	return &Dir{Root: root, File: f}, nil
}

// OpenFolder opens the directory at a path, and makes it if it is missing and may
// be made.
func OpenFolder(path string, mayMake bool) (*Dir, error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) && mayMake {
		// Guests' set-user-id programs must be out of reach for the host's users.
		if err := durable.MkdirAll(path, 0o700); err != nil {
			return nil, err
		}
		root, err = os.OpenRoot(path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "%w: put it back, or mount its disk; if it is elsewhere now, forget this pool with brig storage delete --force, and adopt it there", err)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	return Open(root)
}

// Close lets go of the directory.
func (d *Dir) Close() error { return errors.Join(d.File.Close(), d.Root.Close()) }

// errTooLarge tells that a file is larger than anything brig writes.
var errTooLarge = errors.New("it is too large")

// Read reads a regular file of at most so many bytes, by a path without links in
// it. It takes four calls of the kernel, where an os.Root would take four a
// directory: list does it three times an instance.
func (d *Dir) Read(name string, most int64) ([]byte, error) {
	fd, err := unix.Openat2(int(d.File.Fd()), name, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return nil, &fs.PathError{Op: "openat2", Path: name, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	case st.Size > most:
		return nil, &fs.PathError{Op: "read", Path: name, Err: errTooLarge}
	}
	b := make([]byte, st.Size)
	// Files are replaced and never changed, so one call gives all of it.
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: err}
	}
	return b[:n], nil
}

// maxRecord bounds what is read of a record.
const maxRecord = 8 << 20

// ReadRecord reads a JSON file. One that is damaged is unavailable, one that is
// missing fs.ErrNotExist.
func (d *Dir) ReadRecord(name string, to any) error {
	b, err := d.Read(name, maxRecord)
	if err == nil {
		err = json.Unmarshal(b, to)
	} else if !errors.Is(err, errTooLarge) {
		return err
	}
	if err != nil {
		return fault.New(fault.Unavailable, "the record %q is damaged: %w", name, err)
	}
	return nil
}

// List names the volumes of a class, sorted. A name that begins with a dot is not
// one of a volume.
func (d *Dir) List(ctx context.Context, class storage.Class) ([]string, error) {
	if err := (storage.Key{Class: class, Name: "x"}).Check(); err != nil {
		return nil, err
	}
	names, err := Names(d, string(class))
	if err != nil {
		return nil, Damaged(err)
	}
	names = slices.DeleteFunc(names, func(name string) bool { return strings.HasPrefix(name, ".") })
	slices.Sort(names)
	return names, ctx.Err()
}

// CheckNew refuses a key that no new volume can have.
func (d *Dir) CheckNew(ctx context.Context, key storage.Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	switch _, err := d.Lstat(key.String()); {
	case err == nil:
		return fault.New(fault.AlreadyExists, "there is a volume %q already", key)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	if err := d.Missing(key); !fault.Is(err, fault.NotFound) {
		return err
	}
	return ctx.Err()
}

// OpenMeta opens the directory of a volume's metadata files.
func (d *Dir) OpenMeta(key storage.Key) (*os.Root, error) {
	dir, err := d.OpenRoot(path.Join(key.String(), MetaDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.Missing(key)
	}
	return dir, err
}

// ReadMeta reads a metadata file of at most so many bytes of a volume.
func (d *Dir) ReadMeta(key storage.Key, name string, most int64) ([]byte, error) {
	if !fs.ValidPath(name) {
		return nil, fault.New(fault.Invalid, "%q is not the name of a file", name)
	}
	return d.Read(path.Join(key.String(), MetaDir, name), most)
}

// Missing is the error about a volume that has no record: not-found, or unavailable
// if the pool is not there.
func (d *Dir) Missing(key storage.Key) error {
	if _, err := d.Lstat(string(key.Class)); err != nil {
		return Damaged(err)
	}
	return fault.New(fault.NotFound, "there is no volume %q", key)
}

// Damaged says that the pool is not as it has to be, if err says that something is
// missing in it.
func Damaged(err error) error {
	if fault.Is(err, fault.NotFound) || errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "the pool is gone or damaged: %w", err)
	}
	return err
}
