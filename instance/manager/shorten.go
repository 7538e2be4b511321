package manager

import (
	"context"
	"errors"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/store"
	"brig/storage"
)

// long tells whether the snapshots of an instance have made its volume slow, so
// that a sweep has something to do.
func long(v storage.Volume) bool {
	s, ok := v.(storage.Shortener)
	return ok && s.Long()
}

// merge merges what many snapshots have left, in all pools that can be used. One
// process does so at a time, and one more waits for it; who comes later leaves it to
// that one.
func (m *Manager) merge(ctx context.Context) error {
	waiting, err := flock.Try(m.hiddenLock("merge-next"))
	if waiting == nil {
		return err
	}
	merging, err := flock.Acquire(ctx, m.hiddenLock("merge"))
	waiting.Discard()
	if err != nil {
		return err
	}
	defer merging.Discard()
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		// One that cannot be used was told of when it was swept.
		if pool, err := m.pool(ctx, name); err == nil {
			errs = append(errs, m.shorten(ctx, pool))
		}
	}
	return errors.Join(errs...)
}

// shorten merges what many snapshots have left of the volumes of instances, running
// or not. The data is copied without their locks, which are held for the moment in
// which they move to the copy. What cannot be done now is done another time.
func (m *Manager) shorten(ctx context.Context, pool storage.Pool) error {
	names, err := pool.List(ctx, storage.Instances)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		if store.CheckFullName(name) != nil {
			continue // in the trash it is nobody's to be fast
		}
		volume, err := pool.Open(ctx, storage.Key{Class: storage.Instances, Name: name})
		if err != nil || !long(volume) {
			continue // it went away, or is no concern of this
		}
		err = m.shortenOne(ctx, name, volume)
		switch fault.Of(err) {
		case fault.Busy, fault.Exhausted, fault.NotFound, fault.WrongState, fault.Unsupported:
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (m *Manager) shortenOne(ctx context.Context, name string, volume storage.Volume) error {
	// A running container keeps the layers it was started on.
	if inst, err := m.open(ctx, name); err != nil || volume.Content() == storage.Tree && m.state(inst.spec).Status != instance.Stopped {
		return err
	}
	err := volume.(storage.Shortener).Shorten(ctx, func(ctx context.Context) (*storage.Live, func(), error) {
		inst, held, err := m.openLocked(ctx, "merge the snapshots of", name)
		if err != nil {
			return nil, nil, err
		}
		live, err := m.liveness(inst)
		if err != nil {
			held.Release()
			return nil, nil, err
		}
		return live, held.Release, nil
	})
	if err != nil {
		return fmt.Errorf("cannot merge the snapshots of %q: %w", name, err)
	}
	return nil
}
