// Package cgroup finds the control groups of this host, of either version, and makes
// the limits of instances true in them. Which files and values those are is said by
// package limits.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/instance/fault"
)

// Hierarchies are the cgroup hierarchies of this host, each as the directory of
// the host's root cgroup in it.
type Hierarchies struct {
	Dirs    []string
	Tracker string // the one that tells what runs: v1's freezer, else v2
	V2      bool   // whether Tracker is v2
	Devices bool   // whether devices can be allowed and denied
	Unified bool   // whether there is v2 alone

	controllers map[string]string // directory of the host's root cgroup by controller
}

// Find reads where cgroups are mounted and where init is in them,
// since that is what liblxc's paths start from.
func Find() (Hierarchies, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return Hierarchies{}, fmt.Errorf("cannot find cgroups: %w", err)
	}
	groups, err := os.ReadFile("/proc/1/cgroup")
	if err != nil {
		return Hierarchies{}, fmt.Errorf("cannot find cgroups: %w", err)
	}
	h := parse(string(mounts), string(groups))
	if h.Unified {
		list, err := os.ReadFile(filepath.Join(h.Tracker, "cgroup.controllers"))
		if err != nil {
			return h, fmt.Errorf("cannot find cgroups: %w", err)
		}
		for _, c := range strings.Fields(string(list)) {
			h.controllers[c] = h.Tracker
		}
	}
	if h.Tracker == "" {
		return h, fault.New(fault.Unsupported, "this host has no cgroups mounted that could hold a container: mount cgroup2 at /sys/fs/cgroup")
	}
	return h, nil
}

func parse(mountinfo, groups string) Hierarchies {
	h := Hierarchies{controllers: map[string]string{}}
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
				h.Tracker = dir
			}
			for _, o := range options {
				h.controllers[o] = dir
			}
			if slices.Contains(options, "devices") {
				h.Devices = true
			}
		}
		if !slices.Contains(h.Dirs, dir) {
			h.Dirs = append(h.Dirs, dir)
		}
	}
	h.Unified = unified != "" && !v1
	if h.Unified {
		h.Devices = true // by a BPF program
	}
	if h.Tracker == "" {
		h.Tracker, h.V2 = unified, true
	}
	return h
}

// Allow lets a cgroup of version 1, and those below it, use a device, or with deny not
// any more. A group can only use what the one above it can.
func (h Hierarchies) Allow(name, rule string, deny bool) error {
	dir := h.controllers["devices"]
	if dir == "" {
		return nil
	}
	file := "devices.allow"
	if deny {
		file = "devices.deny"
	}
	return filepath.WalkDir(filepath.Join(dir, name), func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			err = os.WriteFile(filepath.Join(path, file), []byte(rule), 0)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it went meanwhile
		}
		return err
	})
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
