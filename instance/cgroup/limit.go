package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/limits"
)

// Host tells what limits are relative to on this host.
func (h Hierarchies) Host() (limits.Host, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return limits.Host{}, fmt.Errorf("cannot tell how much memory this host has: %w", err)
	}
	host := limits.Host{Memory: int64(info.Totalram) * int64(info.Unit)}
	files := []string{"/sys/devices/system/cpu/online"}
	if dir, ok := h.controllers["cpuset"]; ok {
		files = slices.Insert(files, 0, filepath.Join(dir, "cpuset.cpus.effective"), filepath.Join(dir, "cpuset.effective_cpus"))
	}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		if host.CPUs, err = limits.ParseSet(strings.TrimSpace(string(data))); err == nil {
			return host, nil
		}
	}
	return host, fault.New(fault.Unavailable, "cannot tell which processors this host has: %s cannot be read", files[len(files)-1])
}

// Given are the limits that a new cgroup of the instance of an id is made with. The
// keys are those of an instance's configuration.
func (h Hierarchies) Given(id string, config map[string]string) ([]limits.Setting, error) {
	if !limits.Any(config) {
		return nil, nil
	}
	host, err := h.Host()
	if err != nil {
		return nil, err
	}
	given, err := limits.Given(config, id, host, h.Unified)
	if err != nil {
		return nil, err
	}
	for _, s := range given {
		if _, ok := h.controllers[s.Controller]; !ok {
			return nil, fault.New(fault.Unsupported, "this host has no cgroup controller %q, which %s needs", s.Controller, s.File)
		}
	}
	return given, nil
}

// Limit gives a cgroup that processes are in the limits that config says: all of
// them, or none.
func (h Hierarchies) Limit(name, id string, config map[string]string) error {
	host, err := h.Host()
	if err != nil {
		return err
	}
	all, err := limits.Settings(config, id, host, h.Unified)
	if err != nil {
		return err
	}
	none, err := limits.Settings(nil, id, host, h.Unified)
	if err != nil {
		return err
	}
	var undo []limits.Setting
	for _, s := range all {
		old, err := h.replace(name, s)
		if errors.Is(err, fs.ErrNotExist) && slices.Contains(none, s) {
			continue // what cannot be limited is not
		}
		if err != nil {
			for _, u := range slices.Backward(undo) {
				h.replace(name, u)
			}
			return limitError(s, err)
		}
		undo = append(undo, limits.Setting{Controller: s.Controller, File: s.File, Value: old})
	}
	return nil
}

func limitError(s limits.Setting, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.Unsupported, "this host has no %s, which it needs", s.File)
	case errors.Is(err, unix.EBUSY):
		return fault.New(fault.Busy, "%s cannot be %s: more than that is in use", s.File, s.Value)
	}
	return fmt.Errorf("%s cannot be %s: %w", s.File, s.Value, err)
}

// replace writes a setting and gives what was there before.
func (h Hierarchies) replace(name string, s limits.Setting) (old string, err error) {
	dir := filepath.Join(h.controllers[s.Controller], name)
	if h.controllers[s.Controller] == "" {
		return "", fs.ErrNotExist
	}
	data, err := os.ReadFile(filepath.Join(dir, s.File))
	if err != nil {
		return "", err
	}
	old = string(bytes.TrimSpace(data))
	switch {
	case old == s.Value:
		return old, nil
	case s.File == "cpuset.cpus" && !h.Unified:
		return old, spread(dir, s.File, old, s.Value)
	case s.File == "memory.max":
		if err := h.fits(dir, s.Value); err != nil {
			return old, err
		}
	}
	return old, write(dir, s.File, s.Value)
}

func write(dir, file, value string) error {
	f, err := os.OpenFile(filepath.Join(dir, file), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(value)
	return errors.Join(err, f.Close())
}

// fits refuses a limit of memory below what cannot be taken away: cgroup v2 would end
// processes, where v1 says that it is busy.
func (h Hierarchies) fits(dir, value string) error {
	if value == "max" {
		return nil
	}
	var limit, used int64
	fmt.Sscan(value, &limit)
	stat, err := os.ReadFile(filepath.Join(dir, "memory.stat"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(stat)) {
		var n int64
		key, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		if slices.Contains([]string{"anon", "kernel_stack", "pagetables", "shmem", "slab_unreclaimable"}, key) {
			fmt.Sscan(rest, &n)
			used += n
		}
	}
	if used > limit {
		return unix.EBUSY
	}
	return nil
}

// spread changes which processors a cgroup of version 1 has. Those below it have
// lists of their own, which may at no time have more than the one above.
func spread(dir, file, old, value string) error {
	was, err := limits.ParseSet(old)
	if err != nil && old != "" {
		return err
	}
	is, err := limits.ParseSet(value)
	if err != nil {
		return err
	}
	both := limits.WriteSet(slices.Compact(slices.Sorted(slices.Values(append(was, is...)))))
	var dirs []string
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, d := range dirs {
		if err := write(d, file, both); err != nil {
			return err
		}
	}
	for _, d := range slices.Backward(dirs) {
		if err := write(d, file, value); err != nil {
			return err
		}
	}
	return nil
}
