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
	if err := inNamespace(f); err != nil {
		t.Fatal(err)
	}
}

func inNamespace(f func() error) error {
	done := make(chan error)
	go func() { done <- first(isolate, f) }()
	return <-done
}

// isolate gives the thread of the calling goroutine a mount namespace of its own.
// The thread stays with the goroutine and ends with it.
func isolate() error {
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("making mounts private: %w", err)
	}
	return nil
}

// first calls functions until one fails.
func first(steps ...func() error) error {
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}
