package lxc

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"brig/instance"
	cgroups "brig/instance/cgroup"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// hierarchies are the cgroup hierarchies of this host.
type hierarchies struct{ cgroups.Hierarchies }

func findHierarchies() (hierarchies, error) {
	h, err := cgroups.Find()
	return hierarchies{h}, err
}

// cgroup is a machine's place in the hierarchies.
type cgroup struct {
	h     hierarchies
	names config.Cgroups
}

func (h hierarchies) of(m *instance.Machine) cgroup {
	return cgroup{h: h, names: config.CgroupsOf(m)}
}

// payload is the directory that freezes and counts the container.
func (c cgroup) payload() string { return filepath.Join(c.h.Tracker, c.names.Payload) }

// life tells whether processes are in the container and whether they are
// frozen. No cgroup means no process.
func (c cgroup) life() (alive, frozen bool, err error) {
	if !c.h.V2 {
		pids, err := cgroups.PIDs(filepath.Join(c.payload(), c.names.Inner))
		if err != nil || len(pids) == 0 {
			return false, false, ignoreMissing(err)
		}
		state, err := os.ReadFile(filepath.Join(c.payload(), "freezer.state"))
		return true, bytes.HasPrefix(state, []byte("FR")), ignoreMissing(err)
	}
	events, err := os.ReadFile(filepath.Join(c.payload(), "cgroup.events"))
	if err != nil {
		return false, false, ignoreMissing(err)
	}
	return bytes.Contains(events, []byte("populated 1")), bytes.Contains(events, []byte("frozen 1")), nil
}

func ignoreMissing(err error) error {
	// ENODEV: it went while it was read.
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// freeze asks for the container to be frozen or thawed.
func (c cgroup) freeze(on bool) error {
	file, value := "freezer.state", "THAWED"
	if on {
		value = "FROZEN"
	}
	if c.h.V2 {
		file, value = "cgroup.freeze", "0"
		if on {
			value = "1"
		}
	}
	return os.WriteFile(filepath.Join(c.payload(), file), []byte(value), 0)
}

// settled tells whether every process is frozen, or none is.
func (c cgroup) settled(frozen bool) (bool, error) {
	file, on, off := "freezer.state", "FROZEN", "THAWED"
	if c.h.V2 {
		file, on, off = "cgroup.events", "frozen 1", "frozen 0"
	}
	state, err := os.ReadFile(filepath.Join(c.payload(), file))
	want := off
	if frozen {
		want = on
	}
	return bytes.Contains(state, []byte(want)), err
}

// init gives the process id of the container's init, 0 when there is none.
func (c cgroup) init() int {
	dir := filepath.Join(c.payload(), c.names.Inner)
	if pid := firstInit(dir); pid != 0 || !c.h.V2 {
		return pid
	}
	// On v2 processes are in leaves. systemd is in this one.
	if pid := firstInit(filepath.Join(dir, "init.scope")); pid != 0 {
		return pid
	}
	found := 0
	filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			found = firstInit(path)
		}
		if found != 0 {
			return fs.SkipAll
		}
		return nil
	})
	return found
}

func firstInit(dir string) int {
	pids, _ := cgroups.PIDs(dir)
	for _, pid := range pids {
		if isInit(pid) {
			return pid
		}
	}
	return 0
}

// isInit tells whether a process is the first of a process namespace below that
// of this process. A container may have containers of its own: they are deeper.
func isInit(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	_, rest, ok := bytes.Cut(status, []byte("\nNSpid:"))
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	ids := strings.Fields(string(line))
	return ok && len(ids) == 2 && ids[1] == "1"
}

// monitor gives the process id of liblxc's monitor, 0 when it is gone. liblxc
// puts the keeper that started it into the same cgroup.
func (c cgroup) monitor() int {
	for _, dir := range []string{c.names.Monitor, c.pivot()} {
		pids, _ := cgroups.PIDs(filepath.Join(c.h.Tracker, dir))
		for _, pid := range pids {
			title, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cmdline")
			if bytes.HasPrefix(title, []byte("[lxc monitor]")) {
				return pid
			}
		}
	}
	return 0
}

// pivot is the cgroup in which the monitor ends.
func (c cgroup) pivot() string { return filepath.Join(c.names.Pivot, "lxc.pivot") }

// leave takes the processes that end the container out of its last cgroup, so
// that it can be removed before they have ended: the monitor, and its hook.
func (c cgroup) leave() {
	for _, base := range c.h.Dirs {
		pids, _ := cgroups.PIDs(filepath.Join(base, c.pivot()))
		for _, pid := range pids {
			// One that has ended meanwhile has left as well.
			_ = os.WriteFile(filepath.Join(base, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
	}
}

// removePayload removes the cgroups of a container that has ended. liblxc's
// monitor would do so too before it calls its hook, but looks at each of the
// dozens of files in each of them first. It tells whether none is left.
func (c cgroup) removePayload() (gone bool) {
	gone = true
	for _, base := range c.h.Dirs {
		dir := filepath.Join(base, c.names.Payload)
		cgroups.Remove(dir)
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			gone = false
		}
	}
	return gone
}

// remove removes the cgroups that are left. Those in use stay.
func (c cgroup) remove() {
	for _, base := range c.h.Dirs {
		for _, name := range []string{c.names.Payload, c.names.Monitor, c.names.Pivot} {
			cgroups.Remove(filepath.Join(base, name))
		}
	}
}
