package overlay

import (
	"context"
	"path"
	"time"

	"brig/storage"
	"brig/storage/pooldir"
)

// change is one change being prepared, in a directory of its own below staging.
// The lock on that directory tells Sweep that its owner lives.
type change struct {
	pool *Pool
	dir  *pooldir.Held

	unnamed bool // layers were made that no record names yet
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 10 * time.Second

// Names in a change's directory.
const (
	newLayer    = "layer"
	newSnapshot = "snapshot"
)

// begin starts a change. The caller ends it.
func (p *Pool) begin(ctx context.Context) (*change, error) {
	dir, err := p.root.Stage(ctx)
	if err != nil {
		return nil, err
	}
	p.step("change begun")
	return &change{pool: p, dir: dir}, nil
}

// end takes away what is left of the change. Layers that a failed one has made
// are for Sweep to find, which Pending tells of for as long as there is trash.
func (c *change) end() {
	defer c.dir.Close()
	// An empty directory needs no trash. What cannot be removed now waits for Sweep.
	if !c.unnamed && c.pool.root.Remove(c.dir.Path()) == nil {
		return
	}
	if id, err := c.pool.root.ThrowAway(c.dir.Path()); err == nil && !c.unnamed {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		defer cancel()
		c.pool.emptyTrash(ctx, []string{id})
	}
}

// writeRecord writes the record of the new volume. From then on Sweep finds it,
// while it need not survive a power cut before publish: nor does the change.
func (c *change) writeRecord(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	name := path.Join(pooldir.NewVolume, recordFile)
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
	return c.pool.root.Rename(c.dir.Path(newLayer), path.Join(layersDir, id))
}

// publish makes the new volume visible. The caller holds the layers shared.
func (c *change) publish(key storage.Key, rec record) (storage.Volume, error) {
	if err := syncFiles(c.dir, pooldir.NewVolume); err != nil {
		return nil, err
	}
	if err := c.pool.move(c.dir.Path(pooldir.NewVolume), key); err != nil {
		return nil, err
	}
	c.unnamed = false
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}
