package lxc

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"brig/instance"
)

var _ instance.Meter = (*Driver)(nil)

// Use tells what m uses, as its cgroups count it. What the host does not count
// is zero.
func (d *Driver) Use(m *instance.Machine) (instance.Use, error) {
	c, err := d.cgroup(m)
	if err != nil {
		return instance.Use{}, err
	}
	use := instance.Use{
		Memory:    c.count("memory.current", "memory.usage_in_bytes"),
		CPU:       time.Duration(c.count("cpuacct.usage")),
		Processes: int(c.count("pids.current")),
	}
	if use.CPU == 0 {
		use.CPU = time.Duration(c.stat("cpu.stat", "usage_usec")) * time.Microsecond
	}
	return use, nil
}

// count reads the first of some files that one of the hierarchies has.
func (c cgroup) count(files ...string) int64 {
	for _, file := range files {
		for _, dir := range c.h.dirs {
			data, err := os.ReadFile(filepath.Join(dir, c.names.Payload, file))
			if err != nil {
				continue
			}
			if n, err := strconv.ParseInt(string(bytes.TrimSpace(data)), 10, 64); err == nil {
				return n
			}
		}
	}
	return 0
}

// stat reads one value of a file with a name and a value in each line.
func (c cgroup) stat(file, name string) int64 {
	for _, dir := range c.h.dirs {
		data, err := os.ReadFile(filepath.Join(dir, c.names.Payload, file))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(data) {
			key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
			if string(key) != name {
				continue
			}
			if n, err := strconv.ParseInt(string(value), 10, 64); err == nil {
				return n
			}
		}
	}
	return 0
}
