package btrfs

import (
	"context"
	"errors"
	"os"
	"path"
	"time"

	"brig/storage/pooldir"
)

// change is one change being prepared, in a directory of its own below staging.
// The lock on that directory tells Sweep that its owner lives.
type change struct {
	pool *Pool
	dir  *pooldir.Held
}

// cleanupTime is how long a failed change may take to give back what it used.
const cleanupTime = 10 * time.Second

// Names in a change's directory.
const (
	newVolume   = "volume"
	newSnapshot = "snapshot"
	filling     = "filling" // the subvolume that a new volume is filled in
)

// begin starts a change that takes space. The caller ends it.
func (p *Pool) begin(ctx context.Context) (*change, error) {
	if err := p.room(); err != nil {
		return nil, err
	}
	dir, err := p.root.Stage(ctx)
	if err != nil {
		return nil, err
	}
	p.step("change begun")
	return &change{pool: p, dir: dir}, nil
}

// end takes away what is left of the change. What cannot be removed now waits for
// Sweep. After a failure it waits until the space is free again.
func (c *change) end(failed bool) {
	defer c.dir.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	r := c.pool.remover(ctx)
	if r.remove(c.dir.Path()) == nil && failed {
		r.wait()
	}
}

// commit makes a change durable that has moved what it made out of its directory.
// To sync a directory that something was moved out of, btrfs commits the whole
// transaction, and so all that was written out before. (The ioctls that commit
// have the kernel's own thread do so, which now and then is half a minute late.)
func (c *change) commit() error { return c.dir.File.Sync() }

// flush writes out the metadata files in a directory of the change, so that the
// next commit makes them durable.
func (c *change) flush(dir string) error {
	names, err := pooldir.Files(c.dir, dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if pooldir.IsDisk(name) {
			continue
		}
		f, err := c.dir.Open(path.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(writeOut(f), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// open opens a directory of the change for ioctls.
func (c *change) open(name string) (*os.File, error) { return c.dir.Open(name) }
