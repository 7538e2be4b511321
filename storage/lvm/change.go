package lvm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// change is one change in progress, in a directory of its own below staging. The
// lock on that directory tells Sweep that its owner lives; the file in it tells
// which logical volumes the change makes or lets go, so that whoever finds it dead
// knows what may be waste. All that is written before a command that makes a logical
// volume is made durable by ready, once.
type change struct {
	pool     *Pool
	name     string // of the directory, and the id of what the change makes
	dir      *os.Root
	lock     *os.File
	ids      []string
	done     bool // the change has happened
	wasteful bool // it has let something go, which Sweep is to remove
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 30 * time.Second

// Names in a change's directory.
const (
	idsFile   = "ids.json"
	newVolume = "volume"
)

// begin starts a change that makes or lets go logical volumes. The caller ends it.
func (p *Pool) begin(ctx context.Context, ids ...string) (*change, error) {
	p.tend(ctx)
	for {
		c := &change{pool: p, name: newID()}
		if err := p.root.Mkdir(c.path(), 0o700); err != nil {
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
		if err := c.touch(ids...); err != nil {
			c.end()
			return nil, err
		}
		p.step("change begun")
		return c, nil
	}
}

// touch notes logical volumes before they are made or let go.
func (c *change) touch(ids ...string) error {
	c.ids = append(c.ids, ids...)
	b, err := json.Marshal(c.ids)
	if err != nil {
		return err
	}
	if err := c.dir.WriteFile(idsFile+".new", b, 0o600); err != nil {
		return err
	}
	return c.dir.Rename(idsFile+".new", idsFile)
}

// ready makes durable what was written on the pool's own volume.
func (c *change) ready() error { return unix.Syncfs(int(c.pool.at.Fd())) }

// path is a path in the change's directory, relative to the pool.
func (c *change) path(parts ...string) string {
	return path.Join(append([]string{stagingDir, c.name}, parts...)...)
}

// end takes away what is left of the change. What a failed one made is removed at
// once if it can be; what a successful one let go waits for Sweep.
func (c *change) end() {
	defer c.close()
	p := c.pool
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if c.wasteful || !c.done && p.destroy(ctx, c.ids) != nil {
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
	return ignoreMissing(p.root.Rename(dir, path.Join(trashDir, newID())))
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

// stage writes the record of the new volume, and makes durable what there is of it.
func (c *change) stage(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	return cmp.Or(c.dir.WriteFile(path.Join(newVolume, recordFile), b, 0o600), c.ready())
}

// publish makes the new volume visible.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := c.pool.move(ctx, c.path(newVolume), key); err != nil {
		return nil, err
	}
	c.done = true
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}

// save makes rec the record of the volume, durably. It is the moment at which a
// change happens. Command, if there is one, is run after everything before that is
// durable.
func (c *change) save(h *locked, rec record, command func() error) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	if err := cmp.Or(c.dir.WriteFile(recordFile, b, 0o600), c.ready()); err != nil {
		return err
	}
	if command != nil {
		if err := command(); err != nil {
			return err
		}
	}
	if err := rename(c.dir, recordFile, h.dir, recordFile); err != nil {
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

// idsIn reads what a change that is over, or a deleted volume, has left: the
// directory is one of the trash or of staging.
func (p *Pool) idsIn(dir string) ([]string, error) {
	rec, err := p.read(dir)
	if err == nil {
		return rec.ids(), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	b, err := p.readFile(path.Join(dir, idsFile), maxRecord)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(b) == 0 {
		return nil, nil // it came no further
	}
	if err != nil {
		return nil, err
	}
	var ids []string
	if err := json.Unmarshal(b, &ids); err != nil {
		return nil, fault.New(fault.Unavailable, "%q is damaged: %w", path.Join(dir, idsFile), err)
	}
	for _, id := range ids {
		if !validID(id) {
			return nil, fault.New(fault.Unavailable, "%q is damaged: it names %q", path.Join(dir, idsFile), id)
		}
	}
	return ids, nil
}
