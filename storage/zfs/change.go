package zfs

import (
	"context"
	"encoding/json"
	"errors"
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

// change is one change in progress, in a directory of its own below staging. The
// lock on that directory tells Sweep that its owner lives; the file in it tells
// which datasets and snapshots the change makes or lets go, so that whoever finds
// it dead knows what may be waste. Nothing that is written before a command that
// makes a dataset or a snapshot needs a sync: when the command is over, the whole
// zpool is on disk up to that point.
type change struct {
	pool     *Pool
	name     string // of the directory, and of the dataset and the snapshot that the change makes
	dir      *os.Root
	lock     *os.File
	objects  []string
	done     bool // the change has happened
	wasteful bool // it has let something go, which Sweep is to destroy
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 30 * time.Second

// Names in a change's directory.
const (
	objectsFile = "objects.json"
	newVolume   = "volume"
)

// begin starts a change that makes or lets go objects. The caller ends it.
func (p *Pool) begin(ctx context.Context, objects ...string) (*change, error) {
	for {
		c := &change{pool: p, name: newID()}
		if err := p.insist(func() error { return p.root.Mkdir(c.path(), 0o700) }); err != nil {
			return nil, unavailable(err)
		}
		var err error
		if c.dir, err = p.root.OpenRoot(c.path()); errors.Is(err, fs.ErrNotExist) {
			continue // Sweep came between
		} else if err != nil {
			return nil, err
		}
		if c.lock, err = flock(ctx, c.dir, unix.LOCK_EX); err != nil {
			c.dir.Close()
			return nil, err
		}
		if _, err := p.root.Lstat(c.path()); err != nil {
			c.close()
			continue
		}
		if err := c.touch(objects...); err != nil {
			c.end()
			return nil, err
		}
		p.step("change begun")
		return c, nil
	}
}

// touch notes objects before they are made or let go. It writes nothing if they are
// noted already.
func (c *change) touch(objects ...string) error {
	known := len(c.objects)
	for _, o := range objects {
		if !slices.Contains(c.objects, o) {
			c.objects = append(c.objects, o)
		}
	}
	if len(c.objects) == known {
		return nil
	}
	b, err := json.Marshal(c.objects)
	if err != nil {
		return err
	}
	// Half a file is that of a change that died before it touched anything more.
	err = c.pool.insist(func() error { return c.dir.WriteFile(objectsFile+".new", b, 0o600) })
	if err != nil {
		return err
	}
	return c.pool.insist(func() error { return c.dir.Rename(objectsFile+".new", objectsFile) })
}

// path is a path in the change's directory, relative to the pool.
func (c *change) path(parts ...string) string {
	return path.Join(append([]string{stagingDir, c.name}, parts...)...)
}

// end takes away what is left of the change. What a failed one made is destroyed
// at once if it can be; what a successful one let go waits for Sweep.
func (c *change) end() {
	defer c.close()
	p := c.pool
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if c.wasteful || !c.done && p.destroy(ctx, c.objects) != nil {
		p.throwAway(c.path())
		return
	}
	p.root.RemoveAll(c.path())
}

// close unlocks the change's directory.
func (c *change) close() {
	c.lock.Close()
	c.dir.Close()
}

// throwAway moves a directory to the trash.
func (p *Pool) throwAway(dir string) error {
	return ignoreMissing(p.insist(func() error { return p.root.Rename(dir, path.Join(trashDir, newID())) }))
}

// makeVolume makes the directory of the new volume and opens that of its metadata
// files.
func (c *change) makeVolume() (meta *os.Root, err error) {
	for _, name := range []string{newVolume, path.Join(newVolume, metaDir)} {
		if err := c.dir.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	return c.dir.OpenRoot(path.Join(newVolume, metaDir))
}

// stage writes the record of the new volume. It needs no sync before the command
// that makes the volume's dataset.
func (c *change) stage(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	if err := c.dir.WriteFile(path.Join(newVolume, recordFile), b, 0o600); err != nil {
		return err
	}
	c.pool.step("new record written")
	return nil
}

// publish makes the new volume visible, after the command that made everything of
// it durable.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := c.pool.move(ctx, c.path(newVolume), key); err != nil {
		return nil, err
	}
	c.done = true
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}

// save makes rec the record of the volume, durably. It is the moment at which a
// change happens. Command, if there is one, is run between writing the record and
// that, and makes what was written durable.
func (c *change) save(h *locked, rec record, command func() error) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	write := writeFile
	if command != nil {
		write = func(dir *os.Root, name string, b []byte) error { return dir.WriteFile(name, b, 0o600) }
	}
	if err := c.pool.insist(func() error { return write(c.dir, recordFile, b) }); err != nil {
		return err
	}
	c.pool.step("record written")
	if command != nil {
		if err := command(); err != nil {
			return err
		}
	}
	if err := c.pool.insist(func() error { return rename(c.dir, recordFile, h.dir, recordFile) }); err != nil {
		return err
	}
	h.rec = rec
	c.done = true
	if err := syncDir(h.dir, "."); err != nil {
		return err
	}
	c.pool.step("record saved")
	return nil
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
	return unix.Renameat(int(src.Fd()), name, int(dst.Fd()), newName)
}

// objectsIn reads what a change that is over, or a deleted volume, has left: the
// directory is one of the trash or of staging.
func (p *Pool) objectsIn(dir string) ([]string, error) {
	rec, err := p.read(dir)
	if err == nil {
		return rec.objects(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b, err := p.root.ReadFile(path.Join(dir, objectsFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it came no further
	}
	if err != nil {
		return nil, err
	}
	var objects []string
	if err := json.Unmarshal(b, &objects); err != nil {
		return nil, fault.New(fault.Unavailable, "%q is damaged: %w", path.Join(dir, objectsFile), err)
	}
	for _, o := range objects {
		if !validObject(o) {
			return nil, fault.New(fault.Unavailable, "%q is damaged: it names %q", path.Join(dir, objectsFile), o)
		}
	}
	return objects, nil
}

// validObject keeps damaged files from naming anything that this driver did not
// make.
func validObject(object string) bool {
	class, id, _ := strings.Cut(object, "/")
	id, snapshot, isSnapshot := strings.Cut(id, "@")
	return (storage.Key{Class: storage.Class(class), Name: "x"}).Check() == nil && validID(id) && (!isSnapshot || validID(snapshot))
}
