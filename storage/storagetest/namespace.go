package storagetest

import (
	"fmt"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// Namespace calls f on a thread that has a mount namespace of its own, so that
// what f mounts is never seen by the host and goes away with the thread. Programs
// that f starts are in the namespace too. It needs root.
func Namespace(t testing.TB, f func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts file systems")
	}
	done := make(chan error)
	go func() {
		// A locked thread is not used again, but ends with its goroutine.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			done <- fmt.Errorf("making mounts private: %w", err)
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
