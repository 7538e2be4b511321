package lvm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// change is one change in progress, in a directory of its own below staging. The
// lock on that directory tells Sweep that its owner lives; the file in it tells
// which logical volumes the change makes or lets go, so that whoever finds it dead
// knows what may be waste. All that is written before a command that makes a logical
// volume is made durable by ready, once.
type change struct {
	pool     *Pool
	name     string // of the directory, and the id of what the change makes
	dir      *pooldir.Held
	ids      []string
	done     bool // the change has happened
	wasteful bool // it has let something go, which Sweep is to remove
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 30 * time.Second

// maxIDs bounds what is read of the file of a change.
const maxIDs = 8 << 20

// idsFile is in a change's directory.
const idsFile = "ids.json"

// begin starts a change that makes or lets go logical volumes. The caller ends it.
func (p *Pool) begin(ctx context.Context, ids ...string) (*change, error) {
	p.tend(ctx)
	dir, err := p.root.Stage(ctx)
	if err != nil {
		return nil, err
	}
	c := &change{pool: p, name: dir.ID(), dir: dir}
	if err := c.touch(ids...); err != nil {
		c.end()
		return nil, err
	}
	p.step("change begun")
	return c, nil
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
func (c *change) ready() error { return unix.Syncfs(int(c.pool.root.File.Fd())) }

// end takes away what is left of the change. What a failed one made is removed at
// once if it can be; what a successful one let go waits for Sweep.
func (c *change) end() {
	defer c.dir.Close()
	p := c.pool
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if c.wasteful || !c.done && p.destroy(ctx, c.ids) != nil {
		p.throwAway(c.dir.Path())
		return
	}
	p.root.RemoveAll(c.dir.Path())
}

// throwAway moves a directory to the trash.
func (p *Pool) throwAway(dir string) error {
	_, err := p.root.ThrowAway(dir)
	return err
}

// stage writes the record of the new volume, and makes durable what there is of it.
func (c *change) stage(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	return cmp.Or(c.dir.WriteFile(path.Join(pooldir.NewVolume, recordFile), b, 0o600), c.ready())
}

// publish makes the new volume visible.
func (c *change) publish(ctx context.Context, key storage.Key, rec record) (storage.Volume, error) {
	if err := c.pool.move(ctx, c.dir.Path(pooldir.NewVolume), key); err != nil {
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
	if err := pooldir.Move(c.dir, recordFile, h.dir, recordFile); err != nil {
		return err
	}
	h.rec = rec
	c.done = true
	if err := pooldir.Sync(h.dir, "."); err != nil {
		return err
	}
	c.pool.step("record saved")
	return nil
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
	b, err := p.root.Read(path.Join(dir, idsFile), maxIDs)
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
		if !pooldir.ValidID(id) {
			return nil, fault.New(fault.Unavailable, "%q is damaged: it names %q", path.Join(dir, idsFile), id)
		}
	}
	return ids, nil
}
