package cgroup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/limits"
)

// Name is what the cgroup of a machine is called, in every hierarchy. The run
// directory is part of it: two brigs whose folders were copied from each other know
// the same ids.
func Name(m *instance.Machine) string {
	sum := sha256.Sum256([]byte(filepath.Clean(m.RunDir)))
	return "brig-" + m.ID + "-" + hex.EncodeToString(sum[:3])
}

// Enter makes the cgroup of a name, with the limits given, where it is not there, and
// moves this process into it, with all that it starts from now on. It is safe to
// repeat. After an error Leave undoes what was done.
func (h Hierarchies) Enter(name string, given []limits.Setting) error {
	if h.Unified {
		h.delegate()
	}
	for _, base := range h.Dirs {
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("cannot make the cgroup %s: %w", dir, err)
		}
		if err := inherit(base, dir); err != nil {
			return fmt.Errorf("cannot set up the cgroup %s: %w", dir, err)
		}
	}
	for _, s := range given {
		if _, err := h.replace(name, s); err != nil {
			return limitError(s, err)
		}
	}
	for _, base := range h.Dirs {
		if err := write(filepath.Join(base, name), "cgroup.procs", strconv.Itoa(os.Getpid())); err != nil {
			return fmt.Errorf("cannot enter the cgroup %s: %w", filepath.Join(base, name), err)
		}
	}
	return nil
}

// delegate lets cgroups of version 2 have the controllers that limits need. What the
// host does not give is missed by the limit that needs it.
func (h Hierarchies) delegate() {
	for _, c := range []string{"cpuset", "cpu", "io", "memory", "pids"} {
		if _, ok := h.controllers[c]; ok {
			_ = write(h.Tracker, "cgroup.subtree_control", "+"+c)
		}
	}
}

// inherit gives a cgroup of version 1 the processors and the memory nodes of the one
// above: it begins with none, and nobody may be in it then.
func inherit(base, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		own, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil || strings.TrimSpace(string(own)) != "" {
			continue // another controller, or there already
		}
		above, err := os.ReadFile(filepath.Join(base, file))
		if err != nil {
			continue // version 2, where it has them by itself
		}
		if err := write(dir, file, strings.TrimSpace(string(above))); err != nil {
			return err
		}
	}
	return nil
}

// Leave moves this process back to where all others are, and removes the cgroup of a
// name. One that others are in stays.
func (h Hierarchies) Leave(name string) {
	for _, base := range h.Dirs {
		dir := filepath.Join(base, name)
		if pids, err := PIDs(dir); err == nil && slices.Contains(pids, os.Getpid()) {
			_ = write(base, "cgroup.procs", strconv.Itoa(os.Getpid()))
		}
		Remove(dir)
	}
}

// removeTime bounds how long a cgroup may stay in use by processes that ended.
const removeTime = 200 * time.Millisecond

// Remove removes a cgroup, given as its directory, and those below it. The kernel
// keeps one for a moment after the last process in it was killed. One that is in use
// stays.
func Remove(dir string) {
	for deadline := time.Now().Add(removeTime); ; <-time.After(time.Millisecond) {
		err := unix.Rmdir(dir)
		if err == nil || errors.Is(err, unix.ENOENT) {
			return
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return
		}
		for _, e := range entries {
			if e.IsDir() {
				Remove(filepath.Join(dir, e.Name()))
			}
		}
		if unix.Rmdir(dir) == nil {
			return
		}
		pids, err := PIDs(dir)
		if err != nil || slices.ContainsFunc(pids, lives) || time.Now().After(deadline) {
			return
		}
	}
}

// lives tells whether a process runs a program and is not just ending.
func lives(pid int) bool {
	_, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil
}

// PIDs are the processes in a cgroup, given as its directory.
func PIDs(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for line := range strings.Lines(string(data)) {
		if pid, err := strconv.Atoi(strings.TrimSpace(line)); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Has tells whether a cgroup of a name is there.
func (h Hierarchies) Has(name string) bool {
	return slices.ContainsFunc(h.Dirs, func(base string) bool {
		_, err := os.Lstat(filepath.Join(base, name))
		return err == nil
	})
}
