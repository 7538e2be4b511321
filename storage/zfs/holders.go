package zfs

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// holder is a process in whose mount namespace a dataset is mounted. One process
// stands for all of a namespace.
type holder struct {
	pid  int
	name string
}

func (h holder) String() string { return fmt.Sprintf("process %d (%s)", h.pid, h.name) }

// one fits the mounts of one dataset or snapshot.
func one(name string) func(source string) bool {
	return func(source string) bool { return source == name }
}

// within fits the mounts of a dataset and of all that is in it.
func within(name string) func(source string) bool {
	return func(source string) bool {
		rest, ok := strings.CutPrefix(source, name)
		return ok && (rest == "" || rest[0] == '/' || rest[0] == '@')
	}
}

// holders finds the mount namespaces in which something that fits is mounted.
func holders(fits func(source string) bool) []holder {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	seen := map[string]bool{}
	var found []holder
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		space, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		if err != nil || seen[space] {
			continue
		}
		seen[space] = true
		mountinfo, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err == nil && len(parseMountPoints(mountinfo, fits)) > 0 {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			found = append(found, holder{pid, strings.TrimSpace(string(name))})
		}
	}
	return found
}

// openers finds the processes that use the file system with an open directory: they
// have files open there, or are in it.
func openers(dir *os.Root) []holder {
	st, err := dir.Stat(".")
	if err != nil {
		return nil
	}
	device := uint64(st.Sys().(*syscall.Stat_t).Dev)
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []holder
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		paths := []string{fmt.Sprintf("/proc/%d/cwd", pid), fmt.Sprintf("/proc/%d/root", pid)}
		files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		for _, f := range files {
			paths = append(paths, fmt.Sprintf("/proc/%d/fd/%s", pid, f.Name()))
		}
		uses := func(path string) bool { d, ok := deviceOf(path); return ok && d == device }
		if slices.ContainsFunc(paths, uses) {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			found = append(found, holder{pid, strings.TrimSpace(string(name))})
		}
	}
	return found
}

// deviceOf tells the file system that a path is in, without asking a server of one
// that may not answer.
func deviceOf(path string) (uint64, bool) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	return unix.Mkdev(st.Dev_major, st.Dev_minor), err == nil
}

// describe names holders for an error.
func describe(list []holder) string {
	switch len(list) {
	case 0:
		return "a program that keeps a file of it open"
	case 1:
		return list[0].String()
	}
	return fmt.Sprintf("%s and %d more", list[0], len(list)-1)
}

// parseMountPoints gives the places where what fits is mounted, the last first,
// from a mountinfo file (proc(5)): fields, of which the fifth is the mount point,
// then a dash, the file system's type and its source.
func parseMountPoints(mountinfo []byte, fits func(source string) bool) []string {
	var points []string
	for s := bufio.NewScanner(bytes.NewReader(mountinfo)); s.Scan(); {
		before, after, ok := strings.Cut(s.Text(), " - ")
		fields, source := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(source) < 2 || source[0] != "zfs" || !fits(unescape(source[1])) {
			continue
		}
		points = append([]string{unescape(fields[4])}, points...)
	}
	return points
}

// unescape undoes what the kernel does to spaces and their like in mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// release unmounts what fits in every mount namespace where nobody uses it. Whoever
// makes a namespace gets a copy of all mounts of the host, and may keep those of
// volumes it knows nothing of as long as it lives.
func release(fits func(source string) bool) {
	for _, h := range holders(fits) {
		done := make(chan error)
		go func() {
			// The thread has another namespace from now on, and ends with the goroutine.
			runtime.LockOSThread()
			done <- unmountIn(h.pid, fits)
		}()
		<-done // whether it is enough, destroying the dataset tells
	}
}

// unmountIn moves this thread into the mount namespace of a process and unmounts
// what fits there.
func unmountIn(pid int, fits func(source string) bool) error {
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
	for _, point := range parseMountPoints(mountinfo, fits) {
		failed = errors.Join(failed, unix.Unmount(point, unix.UMOUNT_NOFOLLOW))
	}
	return failed
}
