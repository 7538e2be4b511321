package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/instance/fault"

	"golang.org/x/sys/unix"
)

// Locks are flocks on files of one folder, one a name. The kernel drops them
// with their holder, so a lock is never stale. Readers take none.
type Locks struct {
	dir  string
	wait time.Duration
}

// NewLocks keeps lock files in dir and lets a caller wait for another's lock
// as long as wait.
func NewLocks(dir string, wait time.Duration) *Locks { return &Locks{dir: dir, wait: wait} }

// holder is what a lock file tells about who holds it.
type holder struct {
	Doing string    `json:"doing"`
	Since time.Time `json:"since"`
	PID   int       `json:"pid"`
}

// Held are locks that are held.
type Held struct{ files []*os.File }

// Lock takes the locks of all names, in an order that cannot dead-lock, saying
// what they are taken for. When another holds one for too long the error is
// busy and says with what.
func (l *Locks) Lock(ctx context.Context, doing string, names ...string) (*Held, error) {
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot make the folder of locks: %w", classed(err))
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	held := new(Held)
	for _, name := range sorted {
		f, err := l.one(ctx, name, doing)
		if err != nil {
			held.Release()
			return nil, err
		}
		held.files = append(held.files, f)
	}
	return held, nil
}

// Release drops the locks and removes their files.
func (h *Held) Release() {
	for _, f := range slices.Backward(h.files) {
		// Whoever waits for this file finds it gone and makes a new one.
		os.Remove(f.Name())
		f.Close()
	}
	h.files = nil
}

func (l *Locks) one(ctx context.Context, name, doing string) (*os.File, error) {
	path := filepath.Join(l.dir, strings.ReplaceAll(name, "/", "_")+".lock")
	deadline := time.Now().Add(l.wait)
	pause := time.Millisecond
	for {
		f, err := tryLock(path)
		if err != nil {
			return nil, fmt.Errorf("cannot lock %q: %w", name, classed(err))
		}
		if f != nil {
			data, err := json.Marshal(holder{Doing: doing, Since: time.Now(), PID: os.Getpid()})
			if err == nil {
				_, err = f.WriteAt(data, 0)
			}
			if err == nil {
				err = f.Truncate(int64(len(data)))
			}
			// On a full file system nobody learns who holds the lock.
			if err = classed(err); err != nil && !fault.Is(err, fault.Exhausted) {
				f.Close()
				return nil, fmt.Errorf("cannot lock %q: %w", name, err)
			}
			return f, nil
		}
		if time.Now().After(deadline) {
			return nil, fault.New(fault.Busy, "cannot %s %q: it is busy%s; try again when that is done", doing, name, busyWith(path))
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("cannot %s %q: %w while waiting for its lock%s", doing, name, ctx.Err(), busyWith(path))
		case <-timer.C:
		}
		pause = min(2*pause, 50*time.Millisecond)
	}
}

// tryLock gives the locked file, or nil when another holds the lock.
func tryLock(path string) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, err
		}
		// The holder before us may have removed the file that we locked.
		var ours, there unix.Stat_t
		if unix.Fstat(int(f.Fd()), &ours) == nil && unix.Lstat(path, &there) == nil && ours.Ino == there.Ino && ours.Dev == there.Dev {
			return f, nil
		}
		f.Close()
	}
}

func busyWith(path string) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 4096))
	var h holder
	if err != nil || json.Unmarshal(data, &h) != nil {
		return ""
	}
	return fmt.Sprintf(" with %s since %s (process %d)", h.Doing, h.Since.Local().Format(time.TimeOnly), h.PID)
}
