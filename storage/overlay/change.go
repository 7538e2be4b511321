package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// change is one change being prepared, in a directory of its own below staging.
// The lock on that directory tells Sweep that its owner lives.
type change struct {
	pool *Pool
	name string // of the directory
	dir  *os.Root
	lock *os.File

	unnamed bool // layers were made that no record names yet
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 10 * time.Second

// Names in a change's directory.
const (
	newVolume   = "volume"
	newLayer    = "layer"
	newSnapshot = "snapshot"
)

// begin starts a change. The caller ends it.
func (p *Pool) begin(ctx context.Context) (*change, error) {
	for {
		c := &change{pool: p, name: newID()}
		if err := p.root.Mkdir(c.path(), 0o700); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fault.New(fault.Unavailable, "the pool is gone: %w", err)
			}
			return nil, err
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
		if _, err := p.root.Lstat(c.path()); err == nil {
			p.step("change begun")
			return c, nil
		}
		c.close()
	}
}

// path is a path in the change's directory, relative to the pool.
func (c *change) path(parts ...string) string {
	return path.Join(append([]string{stagingDir, c.name}, parts...)...)
}

// end takes away what is left of the change. Layers that a failed one has made
// are for Sweep to find, which Pending tells of for as long as there is trash.
func (c *change) end() {
	defer c.close()
	// An empty directory needs no trash. What cannot be removed now waits for Sweep.
	if !c.unnamed && c.pool.root.Remove(c.path()) == nil {
		return
	}
	if id, err := c.pool.throwAway(c.path()); err == nil && !c.unnamed {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		c.pool.emptyTrash(ctx, []string{id})
	}
}

// close unlocks the change's directory.
func (c *change) close() {
	c.lock.Close()
	c.dir.Close()
}

// makeVolume makes the directory of the new volume and opens that of its
// metadata files.
func (c *change) makeVolume() (meta *os.Root, err error) {
	for _, name := range []string{newVolume, path.Join(newVolume, metaDir)} {
		if err := c.dir.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	return c.dir.OpenRoot(path.Join(newVolume, metaDir))
}

// writeRecord writes the record of the new volume. From then on Sweep finds it,
// while it need not survive a power cut before publish: nor does the change.
func (c *change) writeRecord(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	name := path.Join(newVolume, recordFile)
	if err := c.dir.WriteFile(name+".new", b, 0o600); err != nil {
		return err
	}
	if err := c.dir.Rename(name+".new", name); err != nil {
		return err
	}
	c.pool.step("new record written")
	return nil
}

// newActive makes an empty layer over layers, top first, for writing. The caller
// holds the layers shared until a record names it.
func (c *change) newActive(content storage.Content, layers []string) (string, error) {
	c.unnamed = true
	return c.pool.newActive(content, layers)
}

// putLayer moves the new layer to the others. The caller holds the layers shared
// until a record names it.
func (c *change) putLayer(id string) error {
	c.unnamed = true
	return c.pool.root.Rename(c.path(newLayer), path.Join(layersDir, id))
}

// publish makes the new volume visible. The caller holds the layers shared.
func (c *change) publish(key storage.Key, rec record) (storage.Volume, error) {
	if err := syncFiles(c.dir, newVolume); err != nil {
		return nil, err
	}
	if err := c.pool.move(c.path(newVolume), key); err != nil {
		return nil, err
	}
	c.unnamed = false
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}
