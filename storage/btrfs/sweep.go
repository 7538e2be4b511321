package btrfs

import (
	"context"
	"errors"
	"path"

	"golang.org/x/sys/unix"

	"brig/storage"
)

// Sweep frees what deleted volumes, dropped snapshots and dead creators left, and
// waits until the kernel has. It can be stopped anywhere. What cannot be removed
// does not keep it from the rest.
func (p *Pool) Sweep(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot sweep pool %q", p.name)
	if err := ctx.Err(); err != nil {
		return err
	}
	r := p.remover(ctx)
	for _, c := range p.deadChanges() {
		err = errors.Join(err, r.remove(p.root, c.path()))
		// If this was one that was just being made, its owner waits for the lock, and
		// tries again.
		c.close()
	}
	err = errors.Join(err, p.sweepLeft(ctx, r))
	for _, name := range p.trashed() {
		err = errors.Join(err, r.remove(p.root, path.Join(trashDir, name)))
	}
	if e := ctx.Err(); e != nil {
		return e
	}
	return errors.Join(err, r.wait(), p.makeReserve())
}

// Pending tells whether there is anything for Sweep.
func (p *Pool) Pending() bool {
	if len(p.trashed()) > 0 {
		return true
	}
	dead := p.deadChanges()
	for _, c := range dead {
		c.close()
	}
	return len(dead) > 0
}

// trashed lists what is in the trash.
func (p *Pool) trashed() []string {
	entries, err := readDir(p.root, trashDir)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// deadChanges gives the changes whose owners died, locked.
func (p *Pool) deadChanges() []*change {
	entries, err := readDir(p.root, stagingDir)
	if err != nil {
		return nil
	}
	var dead []*change
	for _, e := range entries {
		c := &change{pool: p, name: e.Name()}
		if c.dir, err = p.root.OpenRoot(c.path()); err != nil {
			continue
		}
		if c.lock, err = c.dir.Open("."); err == nil {
			if unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				dead = append(dead, c)
				continue
			}
			c.lock.Close()
		}
		c.dir.Close()
	}
	return dead
}

// sweepLeft removes what deletions on a full pool left in its place.
func (p *Pool) sweepLeft(ctx context.Context, r *remover) error {
	for _, class := range classes {
		entries, err := readDir(p.root, string(class))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.sweepHalf(path.Join(string(class), e.Name()), volumeFile, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Pool) sweepHalf(dir, record string, r *remover) error {
	if !p.has(path.Join(dir, record)) {
		if half, _ := p.half(dir); half {
			return r.remove(p.root, dir)
		}
		return nil
	}
	if record == snapshotFile {
		return nil
	}
	entries, err := readDir(p.root, path.Join(dir, snapshotsDir))
	if err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if err := p.sweepHalf(path.Join(dir, snapshotsDir, e.Name()), snapshotFile, r); err != nil {
			return err
		}
	}
	return nil
}
