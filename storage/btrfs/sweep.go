package btrfs

import (
	"context"
	"errors"
	"path"

	"brig/storage"
	"brig/storage/pooldir"
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
	for _, dead := range p.root.Dead() {
		err = errors.Join(err, r.remove(dead.Path()))
		// If this was one that was just being made, its owner waits for the lock, and
		// tries again.
		dead.Close()
	}
	err = errors.Join(err, p.sweepLeft(ctx, r))
	for _, name := range p.root.Trashed() {
		err = errors.Join(err, r.remove(path.Join(pooldir.Trash, name)))
	}
	if e := ctx.Err(); e != nil {
		return e
	}
	return errors.Join(err, r.wait(), p.makeReserve())
}

// Pending tells whether there is anything for Sweep.
func (p *Pool) Pending() bool { return p.root.Pending() }

// sweepLeft removes what deletions on a full pool left in its place.
func (p *Pool) sweepLeft(ctx context.Context, r *remover) error {
	for _, class := range pooldir.Classes() {
		names, err := pooldir.Names(p.root, string(class))
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := p.sweepHalf(path.Join(string(class), name), volumeFile, r); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *Pool) sweepHalf(dir, record string, r *remover) error {
	if !p.has(path.Join(dir, record)) {
		if half, _ := p.half(dir); half {
			return r.remove(dir)
		}
		return nil
	}
	if record == snapshotFile {
		return nil
	}
	names, err := pooldir.Names(p.root, path.Join(dir, snapshotsDir))
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	for _, name := range names {
		if err := p.sweepHalf(path.Join(dir, snapshotsDir, name), snapshotFile, r); err != nil {
			return err
		}
	}
	return nil
}
