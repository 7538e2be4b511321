package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// small mounts a small file system that nobody but the calling test sees.
func small(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	dir := t.TempDir()
	runtime.LockOSThread() // never unlocked: the mount ends with the thread
	err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	if err == nil {
		err = unix.Mount("small", dir, "tmpfs", 0, "size=256k")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	// All threads reach it by way of this one.
	return fmt.Sprintf("/proc/self/task/%d/root%s", unix.Gettid(), dir)
}

// fill takes all the space there is in dir.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
}

func TestIntentsAndLocksOnAFullFileSystem(t *testing.T) {
	dir := small(t)
	s := NewIntents(filepath.Join(dir, "intents"))
	first := Intent{ID: "0000000000000001", Kind: "delete", Names: []string{"web"}, Args: []byte(`{"long":"` + strings.Repeat("x", 16<<10) + `"}`)}
	if err := s.Begin(first); err != nil {
		t.Fatal(err)
	}
	if err := s.End(first.ID); err != nil {
		t.Fatal(err)
	}
	locks := NewLocks(filepath.Join(dir, "locks"), time.Second)
	held, err := locks.Lock(t.Context(), "test", "db")
	if err != nil {
		t.Fatal(err)
	}
	held.Release()
	fill(t, dir)
	for n := range 3 {
		held, err := locks.Lock(t.Context(), "delete", "web")
		if err != nil {
			t.Fatalf("Lock on a full file system = %v", err)
		}
		i := Intent{ID: "0000000000000002", Kind: "delete", Names: []string{"web"}, Args: []byte(`{"a":1}`)}
		if err := s.Begin(i); err != nil {
			t.Fatalf("Begin on a full file system = %v", err)
		}
		list, err := s.List()
		if err != nil || len(list) != 1 || list[0].Kind != "delete" || string(list[0].Args) != `{"a":1}` {
			t.Fatalf("List = %+v, %v", list, err)
		}
		// There is one reserve, and a second command waits for it, for a while.
		if n > 0 {
			// The reserve is there again.
		} else if err := s.Begin(first); !fault.Is(err, fault.Exhausted) {
			t.Errorf("a second intent on a full file system = %v, want exhausted", err)
		}
		if err := s.End(i.ID); err != nil {
			t.Fatal(err)
		}
		if list, err := s.List(); err != nil || len(list) != 0 {
			t.Errorf("List after End = %+v, %v", list, err)
		}
		held.Release()
	}
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			i := Intent{ID: fmt.Sprintf("%016x", n), Kind: "delete", Names: []string{"web"}, Args: []byte(`{}`)}
			if err := errors.Join(s.Begin(i), s.End(i.ID)); err != nil {
				t.Errorf("intents side by side on a full file system = %v", err)
			}
		})
	}
	wg.Wait()
}
