package btrfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
	"brig/storage/storagetest"
)

// scratch is the environment variable with the btrfs that the tests work on.
const scratch = "BTRFS_TEST_DIR"

// TestMain runs the tests again in a mount namespace of their own, with a btrfs on
// a loop device, which both are gone when they end.
func TestMain(m *testing.M) {
	switch {
	case os.Getuid() != 0:
		os.Exit(m.Run())
	case os.Getenv(scratch) == "":
		os.Exit(isolated())
	}
	if err := prepare(os.Getenv(scratch)); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	storagetest.Main(m, driver("btrfs", storage.Tree), driver("btrfs-disk", storage.Disk))
}

func isolated() int {
	dir, err := os.MkdirTemp("", "btrfs")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), scratch+"="+dir)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	runtime.LockOSThread() // whose end would be taken for that of this program
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if cmd.ProcessState == nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return cmd.ProcessState.ExitCode()
}

// prepare mounts a btrfs in dir, unless that was done for a program that is killed
// in the middle of something.
func prepare(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "fs")); err == nil {
		return nil
	}
	// Nobody pulls the plug in a test: it need not wait for the disk.
	return mkfs(filepath.Join(dir, "file"), filepath.Join(dir, "fs"), 4<<30, "nobarrier")
}

// mkfs makes a btrfs in a file, and mounts it.
func mkfs(file, place string, size int64, option string) error {
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size), os.Mkdir(place, 0o700))
	if err != nil {
		return err
	}
	for _, cmd := range [][]string{
		{"mkfs.btrfs", "-q", file},
		// The loop device goes away with the mount.
		{"mount", "-o", "loop," + option, file, place},
	} {
		if _, err := run.Output(context.Background(), cmd[0], cmd[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// driver is this driver for one of its contents.
func driver(name string, content storage.Content) storagetest.Driver {
	return storagetest.Driver{
		Name:    name,
		Content: content,
		Limits:  content == storage.Tree,
		Capabilities: storage.Capabilities{
			Contents:      []storage.Content{storage.Tree, storage.Disk},
			InstantClone:  true,
			LiveSnapshots: true,
		},
		Open: func(place string, step func(string)) (storage.Pool, error) {
			return btrfs.Open(place, btrfs.Options{Step: step})
		},
		Place: newPlace,
		Small: func(t *testing.T) string { return small(t, 128<<20) },
	}
}

// newPlace makes a directory on btrfs for a pool.
func newPlace(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a btrfs")
	}
	dir, err := os.MkdirTemp(filepath.Join(os.Getenv(scratch), "fs"), "p")
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "pool")
}

// small mounts a btrfs of its own for a test.
func small(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a btrfs")
	}
	dir := t.TempDir()
	place := filepath.Join(dir, "fs")
	if err := mkfs(filepath.Join(dir, "file"), place, size, "nobarrier"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return place
}

func TestBtrfs(t *testing.T) { storagetest.Run(t, driver("btrfs", storage.Tree)) }

func TestBtrfsDisk(t *testing.T) { storagetest.Run(t, driver("btrfs-disk", storage.Disk)) }
