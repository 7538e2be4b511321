package lxc

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	cgroups "brig/instance/cgroup"
	"brig/instance/fault"
)

// Kept tells whether liblxc's monitor of a running container is there.
func (d *Driver) Kept(m *instance.Machine) bool {
	c, err := d.cgroup(m)
	return err == nil && c.monitor() != 0
}

// Remains finds the cgroups of containers that are not there any more. Those of other
// brigs have other names, because the run directory is part of them.
func (d *Driver) Remains(known func(id string) bool, runOf func(id string) string) []instance.Remain {
	h, err := d.hierarchies()
	if err != nil {
		return nil
	}
	var left []instance.Remain
	seen := map[string]bool{}
	for _, base := range h.Dirs {
		dirs, _ := filepath.Glob(filepath.Join(base, "brig-*"))
		for _, dir := range dirs {
			id, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(dir), "brig-"), "-")
			if len(id) != 16 || seen[id] || known(id) {
				continue
			}
			// Whether it had an id range of its own makes no difference to the names.
			c := h.of(&instance.Machine{ID: id, RunDir: runOf(id)})
			if !slices.Contains([]string{c.names.Payload, c.names.Monitor, c.names.Pivot}, filepath.Base(dir)) {
				continue
			}
			seen[id] = true
			left = append(left, instance.Remain{ID: id, What: dir + with(c.members()), Remove: c.end})
		}
	}
	return left
}

func with(pids []int) string {
	if len(pids) == 0 {
		return ""
	}
	return fmt.Sprintf(", with the processes %v", pids)
}

// members are all processes in the cgroups.
func (c cgroup) members() []int {
	var all []int
	for _, base := range c.h.Dirs {
		for _, name := range []string{c.names.Payload, c.names.Monitor, c.names.Pivot} {
			filepath.WalkDir(filepath.Join(base, name), func(path string, e fs.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					pids, _ := cgroups.PIDs(path)
					all = append(all, pids...)
				}
				return nil
			})
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// endTime bounds how long killed processes may take to be gone.
const endTime = 10 * time.Second

// end kills all processes in the cgroups and removes them.
func (c cgroup) end(ctx context.Context) error {
	for deadline := time.Now().Add(endTime); ; {
		members := c.members()
		if len(members) == 0 {
			break
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fault.New(fault.Timeout, "cannot end the processes %v: they do not go", members)
		}
		// Frozen ones would not die.
		if err := c.freeze(false); ignoreMissing(err) != nil {
			return fmt.Errorf("cannot thaw %s: %w", c.names.Payload, err)
		}
		for _, pid := range members {
			c.killMember(pid)
		}
		<-time.After(10 * time.Millisecond)
	}
	c.remove()
	for _, base := range c.h.Dirs {
		for _, name := range []string{c.names.Payload, c.names.Monitor, c.names.Pivot} {
			if _, err := os.Lstat(filepath.Join(base, name)); err == nil {
				return fault.New(fault.Busy, "cannot remove the cgroup %s", filepath.Join(base, name))
			}
		}
	}
	return nil
}

// killMember ends a process if it is still one of the cgroups'.
func (c cgroup) killMember(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return // it is gone
	}
	defer unix.Close(fd)
	groups, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err == nil && strings.Contains(string(groups), "/"+c.names.Payload) {
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	}
}
