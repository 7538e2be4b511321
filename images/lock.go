package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

const lockPrefix = "image-"

var lockName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}$`)

// Lock waits for the lock named key, which other processes and goroutines then
// cannot have until release is called, or this process ends. It is how two
// pulls of one image share the work: the second one waits, and then sees what
// the first one made. Release may be called more than once.
func (s *Store) Lock(ctx context.Context, key string) (release func(), err error) {
	l, err := acquire(ctx, s.lockPath(key), unix.LOCK_EX)
	if err != nil {
		return nil, fmt.Errorf("cannot lock image %q: %w", key, err)
	}
	return l.release, nil
}

func (s *Store) lockPath(key string) string {
	if !lockName.MatchString(key) {
		sum := sha256.Sum256([]byte(key))
		key = hex.EncodeToString(sum[:])
	}
	return filepath.Join(s.locks, lockPrefix+key)
}

// fileLock is a flock on a file that exists only while somebody wants it.
type fileLock struct {
	f *os.File
}

// acquire polls instead of waiting in the kernel, where ctx could not reach it.
func acquire(ctx context.Context, path string, how int) (*fileLock, error) {
	pause := time.Millisecond
	for {
		l, err := tryAcquire(path, how)
		if err != nil || l != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(pause*2, 50*time.Millisecond)
	}
}

// tryAcquire gives nil when somebody else has the lock.
func tryAcquire(path string, how int) (*fileLock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			err = os.MkdirAll(filepath.Dir(path), 0o700)
			if err == nil {
				continue
			}
		}
		if err != nil {
			return nil, classify(err)
		}
		if err := flock(f, how|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, classify(err)
		}
		// The holder before us may have unlinked the file between our open and
		// our lock; a lock on that is worth nothing.
		if sameFile(f, path) {
			return &fileLock{f: f}, nil
		}
		f.Close()
	}
}

// release removes the file, unless others share the lock.
func (l *fileLock) release() {
	if l.f == nil {
		return
	}
	if flock(l.f, unix.LOCK_EX|unix.LOCK_NB) == nil && sameFile(l.f, l.f.Name()) {
		os.Remove(l.f.Name())
	}
	l.f.Close()
	l.f = nil
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
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
