// Package flock locks files among the processes of a host. A lock belongs to
// the process that took it and goes with it, so a crash leaves none behind. Lock
// files may be removed by whoever holds them: taking a lock makes sure that the
// locked file is still the one with that name.
package flock

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// The pauses between two looks at a lock that somebody else holds.
const (
	firstPause = 200 * time.Microsecond
	lastPause  = 5 * time.Millisecond
)

// Lock is a lock that is held. Exactly one of Release and Discard ends it.
type Lock struct {
	file *os.File
}

// Acquire locks the file at path, for its holder alone, and makes the file and
// the directories above it if they are missing. It waits until ctx ends.
func Acquire(ctx context.Context, path string) (*Lock, error) {
	return acquire(ctx, path, unix.LOCK_EX)
}

// AcquireShared is Acquire for a lock that others may share.
func AcquireShared(ctx context.Context, path string) (*Lock, error) {
	return acquire(ctx, path, unix.LOCK_SH)
}

// acquire polls instead of waiting in the kernel, where ctx could not reach it.
func acquire(ctx context.Context, path string, how int) (*Lock, error) {
	pause := firstPause
	for {
		l, err := try(path, how)
		if l != nil || err != nil {
			return l, err
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("cannot lock %q: %w", path, ctx.Err())
		case <-time.After(pause):
		}
		pause = min(2*pause, lastPause)
	}
}

// Try is Acquire without waiting: it gives nil when somebody else holds the
// lock, be it in this process.
func Try(path string) (*Lock, error) { return try(path, unix.LOCK_EX) }

func try(path string, how int) (*Lock, error) {
	for {
		f, err := open(path)
		if err != nil {
			return nil, fmt.Errorf("cannot lock %q: %w", path, err)
		}
		err = unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		switch {
		case err == nil && current(f, path):
			return &Lock{f}, nil
		case err == nil, errors.Is(err, unix.EINTR):
			f.Close() // its last holder removed it: lock the new one
		case errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, nil
		default:
			f.Close()
			return nil, fmt.Errorf("cannot lock %q: %w", path, err)
		}
	}
}

// Release gives the lock back and leaves the file.
func (l *Lock) Release() { l.file.Close() }

// Discard gives the lock back and removes the file, unless others share it.
func (l *Lock) Discard() {
	if unix.Flock(int(l.file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && current(l.file, l.file.Name()) {
		os.Remove(l.file.Name())
	}
	l.file.Close()
}

// Note replaces what the file says to those who find it locked.
func (l *Lock) Note(text []byte) error {
	if err := l.file.Truncate(0); err != nil {
		return fmt.Errorf("cannot write to the lock %q: %w", l.file.Name(), err)
	}
	if _, err := l.file.WriteAt(text, 0); err != nil {
		return fmt.Errorf("cannot write to the lock %q: %w", l.file.Name(), err)
	}
	return nil
}

// open opens the file at path. A holder may be removing the directories while
// they are made here, so it tries again when one is missing.
func open(path string) (*os.File, error) {
	for range 100 {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if !errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		err = os.MkdirAll(filepath.Dir(path), 0o700)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
	}
	return nil, fs.ErrNotExist
}

// current tells whether f is still the file at path.
func current(f *os.File, path string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(path)
	return err == nil && os.SameFile(opened, named)
}
