package lvm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// What is in a volume's directory on the pool's own volume.
const (
	recordFile = "volume.json"
	metaDir    = "meta"
)

// maxRecord bounds what is read of a record.
const maxRecord = 8 << 20

// record is the content of volume.json, the truth about a volume. A logical volume
// that no record names is none of a volume's.
type record struct {
	Version   int             `json:"version"`
	Class     storage.Class   `json:"class"`
	Content   storage.Content `json:"content"`
	Limit     int64           `json:"limit,omitempty"` // bytes; 0: none
	Data      string          `json:"data"`            // the id of the logical volume
	Snapshots []snapshot      `json:"snapshots,omitempty"`
}

// snapshot is one snapshot in a record: a logical volume, and a directory of
// metadata files with the same name.
type snapshot struct {
	ID string `json:"id"`
	storage.Snapshot
}

// ids gives all logical volumes that the record names.
func (r *record) ids() []string {
	all := []string{r.Data}
	for _, s := range r.Snapshots {
		all = append(all, s.ID)
	}
	return all
}

// readOnly tells whether nobody writes to the volume any more.
func (r *record) readOnly() bool { return r.Class == storage.Images }

// clone gives a copy that shares nothing.
func (r *record) clone() record {
	c := *r
	c.Snapshots = slices.Clone(r.Snapshots)
	return c
}

// find gives the index of a snapshot.
func (r *record) find(name string) (int, error) {
	i := slices.IndexFunc(r.Snapshots, func(s snapshot) bool { return s.Name == name })
	if i < 0 {
		return 0, fault.New(fault.NotFound, "there is no snapshot %q", name)
	}
	return i, nil
}

// load reads the record of a volume. A missing volume is not-found.
func (p *Pool) load(key storage.Key) (record, error) {
	rec, err := p.read(key.String())
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := p.root.Lstat(string(key.Class)); err != nil {
			return rec, unavailable(err)
		}
		return rec, fault.New(fault.NotFound, "there is no volume %q", key)
	}
	return rec, err
}

// errTooLarge tells that a file is larger than anything brig writes.
var errTooLarge = errors.New("it is too large")

// readFile reads a regular file of the pool's own volume, by a path without links
// in it, in as few calls as can be: list does it for each volume.
func (p *Pool) readFile(name string, most int64) (_ []byte, err error) {
	fd, err := unix.Openat2(int(p.at.Fd()), name, &unix.OpenHow{
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

// read reads the record of the volume in a directory of the pool's own volume.
func (p *Pool) read(dir string) (rec record, err error) {
	damaged := func(format string, args ...any) (record, error) {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: %w", dir, fmt.Errorf(format, args...))
	}
	b, err := p.readFile(path.Join(dir, recordFile), maxRecord)
	if errors.Is(err, errTooLarge) {
		return damaged("%w", err)
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return damaged("%w", err)
	}
	if rec.Version > formatVersion {
		return rec, fault.New(fault.Unsupported, "%q was written by a newer brig in format %d", dir, rec.Version)
	}
	for _, id := range rec.ids() {
		if !validID(id) || !slices.Contains(classes, rec.Class) {
			return damaged("it names %q of class %q", id, rec.Class)
		}
	}
	if rec.Content != storage.Tree && rec.Content != storage.Disk {
		return damaged("it says that it holds %q", rec.Content)
	}
	return rec, nil
}

// locked is a volume that is held, with its record.
type locked struct {
	dir  *os.Root
	lock *os.File
	rec  record
}

func (h *locked) close() {
	h.lock.Close() // which unlocks
	h.dir.Close()
}

// lockVolume holds a volume: for a change (LOCK_EX), or so that nobody changes it
// while it is cloned (LOCK_SH), and reads its record.
func (p *Pool) lockVolume(ctx context.Context, key storage.Key, how int) (*locked, error) {
	for {
		dir, err := p.root.OpenRoot(key.String())
		if errors.Is(err, fs.ErrNotExist) {
			_, err = p.load(key) // which says why
			return nil, cmp.Or(err, fault.New(fault.Busy, "somebody else is making it"))
		}
		if err != nil {
			return nil, err
		}
		lock, err := flock(ctx, dir, how)
		if err != nil {
			dir.Close()
			return nil, err
		}
		h := &locked{dir: dir, lock: lock}
		// It may have been renamed or deleted while this waited.
		mine, err := lock.Stat()
		if err != nil {
			h.close()
			return nil, err
		}
		if there, err := p.root.Lstat(key.String()); err != nil || !os.SameFile(mine, there) {
			h.close()
			continue
		}
		if h.rec, err = p.load(key); err != nil {
			h.close()
			return nil, err
		}
		return h, nil
	}
}

// encode gives the text of a record.
func encode(rec record) ([]byte, error) {
	rec.Version = formatVersion
	b, err := json.Marshal(rec)
	return append(b, '\n'), err
}

// syncDir makes the names in a directory durable.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// namesIn names what is in a directory.
func namesIn(root *os.Root, name string) ([]string, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// flock locks the directory dir until the file it returns is closed, or the
// program ends. It tries again and again, because a call that waits in the kernel
// could not obey ctx.
func flock(ctx context.Context, dir *os.Root, how int) (*os.File, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	if err := lockFile(ctx, f, how); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func lockFile(ctx context.Context, f *os.File, how int) error {
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// share keeps Sweep from reading the records until release is called. Whoever
// moves one holds it, so that no record is missed on its way.
func (p *Pool) share(ctx context.Context) (release func(), err error) {
	f, err := flock(ctx, p.root, unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}
