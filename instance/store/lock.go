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

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/flock"
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
type Held struct{ locks []*flock.Lock }

// Lock takes the locks of all names, in an order that cannot dead-lock, saying
// what they are taken for. When another holds one for too long the error is
// busy and says with what.
func (l *Locks) Lock(ctx context.Context, doing string, names ...string) (*Held, error) {
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	held := new(Held)
	for _, name := range sorted {
		f, err := l.one(ctx, name, doing)
		if err != nil {
			held.Release()
			return nil, err
		}
		held.locks = append(held.locks, f)
	}
	return held, nil
}

// Release drops the locks and removes their files.
func (h *Held) Release() {
	for _, l := range slices.Backward(h.locks) {
		l.Discard()
	}
	h.locks = nil
}

// Files are the locked files, for a process that has to keep the locks when this one is
// killed. They stay Held's.
func (h *Held) Files() []*os.File {
	var list []*os.File
	for _, l := range h.locks {
		list = append(list, l.File())
	}
	return list
}

// Sweep removes the files of locks whose holders were killed.
func (l *Locks) Sweep() error {
	files, err := filepath.Glob(filepath.Join(l.dir, "*"+lockSuffix))
	for _, file := range files {
		lock, e := flock.Try(file)
		if lock != nil {
			lock.Discard()
		}
		err = errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("cannot clean up locks: %w", err)
	}
	return nil
}

// lockSuffix ends the names of lock files, which are in a folder with others.
const lockSuffix = ".lock"

func (l *Locks) one(ctx context.Context, name, doing string) (*flock.Lock, error) {
	path := filepath.Join(l.dir, strings.ReplaceAll(name, "/", "_")+lockSuffix)
	deadline := time.Now().Add(l.wait)
	pause := time.Millisecond
	for {
		lock, err := flock.Try(path)
		if lock != nil {
			// On a full file system nobody learns who holds it.
			if err = classed(note(lock, doing)); err == nil || fault.Is(err, fault.Exhausted) {
				return lock, nil
			}
			lock.Discard()
		}
		if err != nil {
			return nil, fmt.Errorf("cannot lock %q: %w", name, classed(err))
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

// note tells others what a lock is held for.
func note(lock *flock.Lock, doing string) error {
	data, err := json.Marshal(holder{Doing: doing, Since: time.Now(), PID: os.Getpid()})
	if err != nil {
		return err
	}
	return lock.Note(data)
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

// Holder tells what the lock of a name is held for, or nothing if it is free.
func (l *Locks) Holder(name string) string {
	path := filepath.Join(l.dir, strings.ReplaceAll(name, "/", "_")+lockSuffix)
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == nil {
		return "" // who held it was killed
	}
	return strings.TrimPrefix(busyWith(path), " with ")
}
