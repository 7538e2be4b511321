package manager

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"brig/instance/flock"
)

// sweepLater frees the space of what was deleted without making the caller
// wait. It is a convenience: what is not freed now is freed by a later command.
func (m *Manager) sweepLater() {
	if m.cfg.Sweep != nil && (m.pending() || m.overdue()) {
		m.sweepSoon()
	}
}

// sweepSoon starts a sweep beside this process, unless there is one.
func (m *Manager) sweepSoon() {
	if m.cfg.Sweep == nil || m.sweeping() {
		return
	}
	if err := m.cfg.Sweep(); err != nil {
		m.cfg.Notice(fmt.Sprintf("Deleted data is not freed yet: %v", err))
	}
}

// sweepLock is the lock of whoever frees deleted data: one process is enough,
// and a thousand deletions must not start a thousand of them.
func (m *Manager) sweepLock() string { return m.hiddenLock("sweep") }

// hiddenLock is a lock that is none of an instance's.
func (m *Manager) hiddenLock(name string) string {
	return filepath.Join(m.cfg.Dirs.Run, "locks", "."+name)
}

// sweeping tells whether somebody frees deleted data now. What was deleted
// before this call is then freed as well, since they look again after they have
// given up the lock.
func (m *Manager) sweeping() bool {
	lock, err := flock.Try(m.sweepLock())
	if err != nil {
		return false
	}
	if lock != nil {
		lock.Discard()
	}
	return lock == nil
}

// pending tells whether a pool that can be used has something to sweep.
func (m *Manager) pending() bool {
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(names, func(name string) bool {
		pool, err := m.pool(context.Background(), name)
		return err == nil && pool.Pending()
	})
}

// maxSweeps bounds how often one process starts over because of others that
// delete meanwhile.
const maxSweeps = 1000

// Sweep frees the space of what was deleted, in all pools that can be used, after
// dropping what was kept for as long as it had to be. It waits for others that do
// so, and returns when there was nothing left. Then it merges what many snapshots
// have left, which takes long and keeps nobody from freeing.
func (m *Manager) Sweep(ctx context.Context) error {
	err := errors.Join(m.free(ctx), m.merge(ctx))
	if err == nil && m.pending() {
		return m.free(ctx)
	}
	return err
}

func (m *Manager) free(ctx context.Context) error {
	for range maxSweeps {
		lock, err := flock.Acquire(ctx, m.sweepLock())
		if err != nil {
			return err
		}
		err = m.sweep(ctx)
		lock.Discard()
		if err != nil || !m.pending() {
			return err
		}
	}
	return nil
}

func (m *Manager) sweep(ctx context.Context) error {
	m.tidy(ctx)
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	errs := []error{m.dropEphemeral(ctx), m.expire(ctx), m.sweepOrphans(ctx), m.cfg.Images.Sweep(), m.cfg.Network.Sweep(ctx), m.locks.Sweep()}
	for _, name := range names {
		pool, err := m.pool(ctx, name)
		if err == nil && pool.Pending() {
			err = pool.Sweep(ctx)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot free deleted data in pool %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
