package overlay

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
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// What is in a volume's directory.
const (
	recordFile   = "volume.json"
	metaDir      = "meta"
	snapshotsDir = "snapshots"
)

// maxRecord bounds what is read of a record.
const maxRecord = 8 << 20

// record is the content of volume.json. It is the truth about a volume: a layer
// or snapshot directory that no record names is waste.
type record struct {
	Version   int             `json:"version"`
	Content   storage.Content `json:"content"`
	Flat      bool            `json:"flat,omitempty"`   // the active layer is the whole tree
	Active    string          `json:"active,omitempty"` // the layer that is written; images have none
	Next      string          `json:"next,omitempty"`   // a disk that a running machine was told to go on in
	Layers    []string        `json:"layers"`           // frozen ones, top first
	Merged    []string        `json:"merged,omitempty"` // others that show the same, which a disk may stand on instead: its header says
	Snapshots []snapshot      `json:"snapshots,omitempty"`
}

// snapshot is one snapshot in a record. Its metadata files are in the directory
// ID; without that directory it counts as deleted, which on a full file system
// is easier than writing a record.
type snapshot struct {
	ID string `json:"id"`
	storage.Snapshot
	Layers []string `json:"layers"`
}

// all gives every layer that r names.
func (r *record) all() []string {
	all := slices.Concat(r.Layers, r.Merged)
	for _, id := range []string{r.Active, r.Next} {
		if id != "" {
			all = append(all, id)
		}
	}
	for _, s := range r.Snapshots {
		all = append(all, s.Layers...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// clone gives a copy that shares nothing.
func (r *record) clone() record {
	c := *r
	c.Layers = slices.Clone(r.Layers)
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
			return rec, fault.New(fault.Unavailable, "the pool is gone: %w", err)
		}
		return rec, fault.New(fault.NotFound, "there is no volume %q", key)
	}
	return rec, err
}

// read reads the record of the volume in the directory dir of the pool.
func (p *Pool) read(dir string) (rec record, err error) {
	b, err := p.readFile(path.Join(dir, recordFile), maxRecord)
	if errors.Is(err, errTooLarge) {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: %w", dir, err)
	}
	if err != nil {
		return rec, err
	}
	if err := json.Unmarshal(b, &rec); err != nil {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: %w", dir, err)
	}
	if rec.Version > formatVersion {
		return rec, fault.New(fault.Unsupported, "%q was written by a newer brig in format %d", dir, rec.Version)
	}
	for _, id := range rec.all() {
		if !validID(id) {
			return rec, fault.New(fault.Unavailable, "the record of %q is damaged: it names a layer %q", dir, id)
		}
	}
	if len(rec.Layers) == 0 && (!rec.Flat || rec.Active == "") {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: it names no layer", dir)
	}
	return rec, p.dropGone(dir, &rec)
}

// dropGone takes the snapshots without a directory out of a record. It looks once,
// since there may be a thousand.
func (p *Pool) dropGone(dir string, rec *record) error {
	if len(rec.Snapshots) == 0 {
		return nil
	}
	names, err := p.names(path.Join(dir, snapshotsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "the snapshots of %q cannot be read: %w", dir, err)
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = validID(name)
	}
	rec.Snapshots = slices.DeleteFunc(rec.Snapshots, func(s snapshot) bool { return !there[s.ID] })
	return nil
}

// names lists a directory, without looking at each entry as readDir does.
func (p *Pool) names(dir string) ([]string, error) {
	d, err := p.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// errTooLarge tells that a file is larger than anything brig writes.
var errTooLarge = errors.New("it is too large")

// readFile reads a regular file of the pool, by a path without links in it. It
// takes four calls of the kernel, where an os.Root would take four a directory:
// list does it three times an instance.
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

// validID keeps damaged records from naming anything but a layer.
func validID(id string) bool {
	return len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// locked is a volume that is being changed.
type locked struct {
	dir  *os.Root
	lock *os.File
	rec  record
}

func (h *locked) close() {
	h.lock.Close() // which unlocks
	h.dir.Close()
}

// lockVolume locks a volume against other changes, and reads it. The manager
// keeps changes of one volume apart, but not two clones of one source, and a
// clone may have to change its source.
func (p *Pool) lockVolume(ctx context.Context, key storage.Key) (*locked, error) {
	for {
		dir, err := p.root.OpenRoot(key.String())
		if errors.Is(err, fs.ErrNotExist) {
			_, err = p.load(key) // which says why
			return nil, cmp.Or(err, fault.New(fault.Busy, "somebody else is making it"))
		}
		if err != nil {
			return nil, err
		}
		lock, err := flock(ctx, dir, unix.LOCK_EX)
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
		if h.rec, err = p.load(key); err == nil {
			err = p.settle(ctx, h)
		}
		if err != nil {
			h.close()
			return nil, err
		}
		return h, nil
	}
}

// save makes rec the record of the volume, durably. It is the moment at which a
// change happens.
func (c *change) save(h *locked, rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	if err := writeFile(c.dir, recordFile, b); err != nil {
		return err
	}
	c.pool.step("record written")
	if err := rename(c.dir, recordFile, h.dir, recordFile); err != nil {
		return err
	}
	h.rec, c.unnamed = rec, false
	if err := syncDir(h.dir, "."); err != nil {
		return err
	}
	c.pool.step("record saved")
	return nil
}

// save saves a record as a change of its own.
func (p *Pool) save(ctx context.Context, h *locked, rec record) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	return c.save(h, rec)
}

// rename moves a file from one open directory to another.
func rename(from *os.Root, name string, to *os.Root, newName string) error {
	src, err := from.Open(".")
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Open(".")
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.Renameat(int(src.Fd()), name, int(dst.Fd()), newName); err != nil {
		return fmt.Errorf("rename %q: %w", name, err)
	}
	return nil
}

func encode(rec record) ([]byte, error) {
	rec.Version = formatVersion
	b, err := json.Marshal(rec)
	return append(b, '\n'), err
}

// writeFile writes a file and syncs it.
func writeFile(dir *os.Root, name string, b []byte) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// syncDir makes the names in a directory durable.
func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func readDir(root *os.Root, name string) ([]os.DirEntry, error) {
	d, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.ReadDir(-1)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// The time between two tries to get a lock.
const (
	minWait = 200 * time.Microsecond
	maxWait = 20 * time.Millisecond
)

// flock locks the directory dir until the file it returns is closed, or the
// program ends. It tries again and again, because a call that waits in the kernel
// could not obey ctx.
func flock(ctx context.Context, dir *os.Root, how int) (*os.File, error) {
	f, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock: %w", err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// share keeps Sweep from collecting layers until release is called. Whoever
// names a layer in a record, or moves a record, holds it.
func (p *Pool) share(ctx context.Context) (release func(), err error) {
	return p.lockLayers(ctx, unix.LOCK_SH)
}

func (p *Pool) lockLayers(ctx context.Context, how int) (release func(), err error) {
	dir, err := p.root.OpenRoot(layersDir)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	defer dir.Close()
	f, err := flock(ctx, dir, how)
	if err != nil {
		return nil, err
	}
	return func() { f.Close() }, nil
}
