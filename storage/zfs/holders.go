package zfs

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/storage/holders"
)

// one fits the mounts of one dataset or snapshot.
func one(name string) func(holders.Mount) bool {
	return func(m holders.Mount) bool { return m.Type == "zfs" && m.Source == name }
}

// within fits the mounts of a dataset and of all that is in it.
func within(name string) func(holders.Mount) bool {
	return func(m holders.Mount) bool {
		rest, ok := strings.CutPrefix(m.Source, name)
		return m.Type == "zfs" && ok && (rest == "" || rest[0] == '/' || rest[0] == '@')
	}
}

// openers finds the processes that use the file system with an open directory.
func openers(dir *os.Root) []holders.Holder {
	st, err := dir.Stat(".")
	if err != nil {
		return nil
	}
	return holders.On(uint64(st.Sys().(*syscall.Stat_t).Dev))
}

// inUse is the end of a sentence about something in use.
func inUse(list []holders.Holder) string {
	return "is in use" + cmp.Or(holders.By(list), " by a program that keeps a file of it open")
}

// release unmounts what fits in every mount namespace where nobody uses it. Whoever
// makes a namespace gets a copy of all mounts of the host, and may keep those of
// volumes it knows nothing of as long as it lives.
func release(fits func(holders.Mount) bool) {
	for _, h := range holders.Namespaces(fits) {
		done := make(chan error)
		go func() {
			// The thread has another namespace from now on, and ends with the goroutine.
			runtime.LockOSThread()
			done <- unmountIn(h.PID, fits)
		}()
		<-done // whether it is enough, destroying the dataset tells
	}
}

// unmountIn moves this thread into the mount namespace of a process and unmounts
// what fits there.
func unmountIn(pid int, fits func(holders.Mount) bool) error {
	// The other namespace may show another /proc, or none.
	proc, err := os.OpenRoot("/proc")
	if err != nil {
		return err
	}
	defer proc.Close()
	space, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer space.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(int(space.Fd()), unix.CLONE_NEWNS); err != nil {
		return err
	}
	mountinfo, err := proc.ReadFile("thread-self/mountinfo")
	if err != nil {
		return err
	}
	var failed error
	for _, m := range holders.ParseMounts(mountinfo) {
		if fits(m) {
			failed = errors.Join(failed, unix.Unmount(m.Point, unix.UMOUNT_NOFOLLOW))
		}
	}
	return failed
}
