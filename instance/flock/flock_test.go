package flock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/flock"
)

func TestOnlyOneHoldsALockWhileFilesAndDirectoriesComeAndGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "lock")
	var inside, held atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				l, err := flock.Acquire(t.Context(), path)
				if err != nil {
					t.Error(err)
					return
				}
				if n := inside.Add(1); n != 1 {
					t.Errorf("%d hold the lock at once", n)
				}
				held.Add(1)
				inside.Add(-1)
				if i%2 == 0 {
					l.Release()
					continue
				}
				l.Discard()
				os.Remove(filepath.Dir(path))
			}
		})
	}
	wg.Wait()
	if n := held.Load(); n != 8*200 {
		t.Errorf("the lock was held %d times, want %d", n, 8*200)
	}
}

func TestTryGivesNilWhileTheLockIsHeld(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	first, err := flock.Try(path)
	if first == nil || err != nil {
		t.Fatalf("Try() = %v, %v, want a lock", first, err)
	}
	if second, err := flock.Try(path); second != nil || err != nil {
		t.Errorf("Try() of a held lock = %v, %v, want nil", second, err)
	}
	first.Discard()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("Discard() left the file: %v", err)
	}
	if third, err := flock.Try(path); third == nil || err != nil {
		t.Errorf("Try() after Discard() = %v, %v, want a lock", third, err)
	}
}

func TestAcquireObeysItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	held, err := flock.Try(path)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Release()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := flock.Acquire(ctx, path); !errors.Is(err, context.Canceled) {
		t.Errorf("Acquire() = %v, want cancelled", err)
	}
}

func TestHoldLocksADirectoryUntilItIsClosed(t *testing.T) {
	dir := t.TempDir()
	open := func() *os.File {
		f, err := os.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, c := range []struct {
		first, second int
		want          bool
	}{
		{unix.LOCK_EX, unix.LOCK_EX, false},
		{unix.LOCK_SH, unix.LOCK_EX, false},
		{unix.LOCK_SH, unix.LOCK_SH, true},
	} {
		first, second := open(), open()
		if err := flock.Hold(t.Context(), first, c.first); err != nil {
			t.Fatal(err)
		}
		if got, err := flock.TryHold(second, c.second); got != c.want || err != nil {
			t.Errorf("TryHold(%d) beside %d = %v, %v, want %v", c.second, c.first, got, err, c.want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		if err := flock.Hold(ctx, second, c.second); (err == nil) != c.want || err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Hold(%d) beside %d = %v, want it to wait: %v", c.second, c.first, err, !c.want)
		}
		cancel()
		first.Close()
		if err := flock.Hold(t.Context(), second, c.second); err != nil {
			t.Errorf("Hold(%d) after the other was closed = %v", c.second, err)
		}
		second.Close()
	}
}
