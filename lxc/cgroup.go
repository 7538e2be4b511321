package lxc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// hierarchies are the cgroup hierarchies of this host, each as the directory of
// the host's root cgroup in it.
type hierarchies struct {
	dirs    []string
	tracker string // the one that tells what runs: v1's freezer, else v2
	v2      bool   // whether tracker is v2
	devices bool   // whether devices can be allowed and denied
	unified bool   // whether there is v2 alone
}

// findHierarchies reads where cgroups are mounted and where init is in them,
// since that is what liblxc's paths start from.
func findHierarchies() (hierarchies, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return hierarchies{}, fmt.Errorf("cannot find cgroups: %w", err)
	}
	groups, err := os.ReadFile("/proc/1/cgroup")
	if err != nil {
		return hierarchies{}, fmt.Errorf("cannot find cgroups: %w", err)
	}
	h := parseHierarchies(string(mounts), string(groups))
	if h.tracker == "" {
		return h, fault.New(fault.Unsupported, "this host has no cgroups mounted that could hold a container: mount cgroup2 at /sys/fs/cgroup")
	}
	return h, nil
}

func parseHierarchies(mountinfo, groups string) hierarchies {
	var h hierarchies
	var unified string
	v1 := false
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(strings.TrimSpace(line), " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 3 || kind[0] != "cgroup" && kind[0] != "cgroup2" {
			continue
		}
		options := strings.Split(kind[2], ",")
		dir := filepath.Join(unescape(fields[4]), strings.TrimPrefix(groupOf(groups, kind[0], options), unescape(fields[3])))
		switch kind[0] {
		case "cgroup2":
			unified = dir
		case "cgroup":
			v1 = true
			if slices.Contains(options, "freezer") {
				h.tracker = dir
			}
			if slices.Contains(options, "devices") {
				h.devices = true
			}
		}
		if !slices.Contains(h.dirs, dir) {
			h.dirs = append(h.dirs, dir)
		}
	}
	h.unified = unified != "" && !v1
	if h.unified {
		h.devices = true // by a BPF program
	}
	if h.tracker == "" {
		h.tracker, h.v2 = unified, true
	}
	return h
}

// groupOf is the cgroup of host's init in a hierarchy, without the leaf that
// systemd keeps for itself.
func groupOf(groups, kind string, options []string) string {
	for line := range strings.Lines(groups) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(f) != 3 {
			continue
		}
		match := kind == "cgroup2" && f[0] == "0"
		if kind == "cgroup" && f[0] != "0" {
			match = slices.Contains(options, strings.Split(f[1], ",")[0])
		}
		if match {
			return strings.TrimSuffix(f[2], "/init.scope")
		}
	}
	return ""
}

// unescape undoes the octal escapes of /proc/self/mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s // without making a replacer first
	}
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
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
func (c cgroup) payload() string { return filepath.Join(c.h.tracker, c.names.Payload) }

// life tells whether processes are in the container and whether they are
// frozen. No cgroup means no process.
func (c cgroup) life() (alive, frozen bool, err error) {
	if !c.h.v2 {
		pids, err := readPIDs(filepath.Join(c.payload(), c.names.Inner))
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
	if c.h.v2 {
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
	if c.h.v2 {
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
	if pid := firstInit(dir); pid != 0 || !c.h.v2 {
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
	pids, _ := readPIDs(dir)
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
		pids, _ := readPIDs(filepath.Join(c.h.tracker, dir))
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
	for _, base := range c.h.dirs {
		pids, _ := readPIDs(filepath.Join(base, c.pivot()))
		for _, pid := range pids {
			// One that has ended meanwhile has left as well.
			_ = os.WriteFile(filepath.Join(base, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		}
	}
}

// removePayload removes the cgroups of a container that has ended. liblxc's
// monitor would do so too before it calls its hook, but looks at each of the
// dozens of files in each of them first.
func (c cgroup) removePayload() {
	for _, base := range c.h.dirs {
		removeCgroup(filepath.Join(base, c.names.Payload))
	}
}

// remove removes the cgroups that are left. Those in use stay.
func (c cgroup) remove() {
	for _, base := range c.h.dirs {
		for _, name := range []string{c.names.Payload, c.names.Monitor, c.names.Pivot} {
			removeCgroup(filepath.Join(base, name))
		}
	}
}

// removeTime bounds how long a cgroup may stay in use by processes that ended.
const removeTime = 200 * time.Millisecond

// removeCgroup removes a cgroup and those below it. The kernel keeps one for a
// moment after the last process in it was killed.
func removeCgroup(dir string) {
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
				removeCgroup(filepath.Join(dir, e.Name()))
			}
		}
		if unix.Rmdir(dir) == nil {
			return
		}
		pids, err := readPIDs(dir)
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

func readPIDs(dir string) ([]int, error) {
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
