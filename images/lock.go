package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"
	"syscall"

	"brig/instance/fault"
	"brig/instance/flock"
)

const lockPrefix = "image-"

// Lock waits for the lock named key, which other processes and goroutines then
// cannot have until release is called, or this process ends. It is how two
// pulls of one image share the work: the second one waits, and then sees what
// the first one made. Release may be called more than once.
func (s *Store) Lock(ctx context.Context, key string) (release func(), err error) {
	l, err := acquire(ctx, s.lockPath(key))
	if err != nil {
		return nil, fmt.Errorf("cannot lock image %q: %w", key, err)
	}
	return sync.OnceFunc(l.Discard), nil
}

func (s *Store) lockPath(key string) string {
	if !plain(key, "._-", 100) {
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.locks, lockPrefix+key)
}

// acquire takes a lock whose file exists only while somebody wants it.
func acquire(ctx context.Context, path string) (*flock.Lock, error) {
	l, err := flock.Acquire(ctx, path)
	return l, classify(err)
}

// share takes a lock together with others.
func share(ctx context.Context, path string) (*flock.Lock, error) {
	l, err := flock.AcquireShared(ctx, path)
	return l, classify(err)
}

// classify gives the errors of a file system that a caller can act on their
// class.
func classify(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EMFILE):
		return fault.Wrap(fault.Exhausted, err)
	case errors.Is(err, fs.ErrPermission):
		return fault.Wrap(fault.Forbidden, err)
	case errors.Is(err, syscall.EROFS):
		return fault.Wrap(fault.Unavailable, err)
	}
	return err
}
