package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// change is one change being prepared, in a directory of its own below staging.
// The lock on that directory tells Sweep that its owner lives.
type change struct {
	pool *Pool
	name string // of the directory
	dir  *os.Root
	lock *os.File // the same directory
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
		if c.lock, err = c.dir.Open("."); err != nil {
			c.dir.Close()
			return nil, err
		}
		if err := flock(ctx, c.lock); err != nil {
			c.close()
			return nil, err
		}
		if p.has(c.path()) {
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

// end takes away what is left of the change. What cannot be removed now waits for
// Sweep. After a failure it waits until the space is free again.
func (c *change) end(failed bool) {
	defer c.close()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	r := c.pool.remover(ctx)
	if r.remove(c.pool.root, c.path()) == nil && failed {
		r.wait()
	}
}

// commit makes a change durable that has moved what it made out of its directory.
// To sync a directory that something was moved out of, btrfs commits the whole
// transaction, and so all that was written out before. (The ioctls that commit
// have the kernel's own thread do so, which now and then is half a minute late.)
func (c *change) commit() error { return c.lock.Sync() }

// close unlocks the change's directory.
func (c *change) close() {
	c.lock.Close()
	c.dir.Close()
}

// flush writes out the metadata files in a directory of the change, so that the
// next commit makes them durable.
func (c *change) flush(dir string) error {
	entries, err := readDir(c.dir, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || isDisk(e.Name()) {
			continue
		}
		f, err := c.dir.Open(path.Join(dir, e.Name()))
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

// The time between two tries to get a lock, and between two looks at the kernel.
const (
	minWait = 200 * time.Microsecond
	maxWait = 20 * time.Millisecond
)

// flock locks f until it is closed, or the program ends. It tries again and again,
// because a call that waits in the kernel could not obey ctx.
func flock(ctx context.Context, f *os.File) error {
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock: %w", err)
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// pause waits, but not longer than ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
