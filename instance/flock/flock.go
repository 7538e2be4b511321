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

func acquire(ctx context.Context, path string, how int) (l *Lock, err error) {
	err = poll(ctx, path, func() (bool, error) {
		l, err = try(path, how)
		return l != nil, err
	})
	return l, err
}

// poll tries until a lock is taken, instead of waiting in the kernel, where ctx
// could not reach it.
func poll(ctx context.Context, name string, try func() (bool, error)) error {
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if done, err := try(); done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("cannot lock %q: %w", name, ctx.Err())
		case <-time.After(pause):
		}
	}
}

// Hold locks an open file or directory, for its holder alone or shared with others
// (LOCK_EX or LOCK_SH), until it is closed. It waits until ctx ends. That f still
// has its name is for the caller to see.
func Hold(ctx context.Context, f *os.File, how int) error {
	return poll(ctx, f.Name(), func() (bool, error) { return TryHold(f, how) })
}

// TryHold is Hold without waiting: it tells whether it got the lock.
func TryHold(f *os.File, how int) (bool, error) {
	for {
		switch err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB); {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EWOULDBLOCK):
			return false, nil
		case !errors.Is(err, unix.EINTR):
			return false, fmt.Errorf("cannot lock %q: %w", f.Name(), err)
		}
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
		locked, err := TryHold(f, how)
		if locked && current(f, path) {
			return &Lock{f}, nil
		}
		f.Close()
		if !locked {
			return nil, err
		}
		// Its last holder removed it: lock the new one.
	}
}

// File is the locked file. It stays the Lock's.
func (l *Lock) File() *os.File { return l.file }

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
