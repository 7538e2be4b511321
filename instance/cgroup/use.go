package cgroup

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"brig/instance"
	"brig/instance/limits"
)

// Use tells what the processes in a cgroup use, and how much they may. It only reads
// files, whose formats are those of the kernel's Documentation/admin-guide/cgroup-v2.rst
// and cgroup-v1.
func (h Hierarchies) Use(name string) instance.Use {
	if h.Unified {
		return h.useV2(name)
	}
	return h.useV1(name)
}

func (h Hierarchies) useV2(name string) instance.Use {
	u := instance.Use{
		Memory:       h.number(name, "memory", "memory.current"),
		MemoryPeak:   h.number(name, "memory", "memory.peak"),
		MemoryLimit:  h.number(name, "memory", "memory.max"),
		Swap:         h.number(name, "memory", "memory.swap.current"),
		SwapLimit:    h.number(name, "memory", "memory.swap.max"),
		CPU:          time.Duration(h.value(name, "cpu", "cpu.stat", "usage_usec")) * time.Microsecond,
		Processes:    int(h.number(name, "pids", "pids.current")),
		ProcessLimit: int(h.number(name, "pids", "pids.max")),
	}
	if u.MemoryLimit == 0 {
		u.MemoryLimit = h.number(name, "memory", "memory.high")
	}
	quota, period := pair(h.read(name, "cpu", "cpu.max"))
	u.CPULimit = h.processorTime(name, quota, period)
	for line := range bytes.Lines(h.read(name, "io", "io.stat")) {
		for field := range bytes.FieldsSeq(line) {
			key, value, _ := bytes.Cut(field, []byte("="))
			switch string(key) {
			case "rbytes":
				u.Read += parse64(value)
			case "wbytes":
				u.Written += parse64(value)
			}
		}
	}
	return u
}

func (h Hierarchies) useV1(name string) instance.Use {
	u := instance.Use{
		Memory:       h.number(name, "memory", "memory.usage_in_bytes"),
		MemoryPeak:   h.number(name, "memory", "memory.max_usage_in_bytes"),
		MemoryLimit:  bound(h.number(name, "memory", "memory.limit_in_bytes")),
		Swap:         h.value(name, "memory", "memory.stat", "total_swap"),
		CPU:          time.Duration(h.number(name, "cpuacct", "cpuacct.usage")),
		Processes:    int(h.number(name, "pids", "pids.current")),
		ProcessLimit: int(h.number(name, "pids", "pids.max")),
	}
	// v1 bounds both together.
	if both := bound(h.number(name, "memory", "memory.memsw.limit_in_bytes")); both > 0 && u.MemoryLimit > 0 {
		u.SwapLimit = both - u.MemoryLimit
	}
	if u.MemoryLimit == 0 {
		u.MemoryLimit = bound(h.number(name, "memory", "memory.soft_limit_in_bytes"))
	}
	u.CPULimit = h.processorTime(name, h.number(name, "cpu", "cpu.cfs_quota_us"), h.number(name, "cpu", "cpu.cfs_period_us"))
	for line := range bytes.Lines(h.read(name, "blkio", "blkio.throttle.io_service_bytes_recursive")) {
		if f := bytes.Fields(line); len(f) == 3 {
			switch string(f[1]) {
			case "Read":
				u.Read += parse64(f[2])
			case "Write":
				u.Written += parse64(f[2])
			}
		}
	}
	return u
}

// processorTime is the time of each second that a cgroup may take, from its quota for
// each period and the processors it has. Zero: no less than the host's.
func (h Hierarchies) processorTime(name string, quota, period int64) time.Duration {
	var limit time.Duration
	if quota > 0 && period > 0 {
		limit = time.Duration(quota * int64(time.Second) / period)
	}
	for _, file := range []string{"cpuset.cpus.effective", "cpuset.effective_cpus"} {
		own, err := limits.ParseSet(string(bytes.TrimSpace(h.read(name, "cpuset", file))))
		all, err2 := limits.ParseSet(string(bytes.TrimSpace(h.read("", "cpuset", file))))
		if err != nil || err2 != nil || len(own) >= len(all) {
			continue
		}
		if most := time.Duration(len(own)) * time.Second; limit == 0 || most < limit {
			limit = most
		}
	}
	return limit
}

// bound leaves out the number that v1 has for no limit: the largest whole number of
// pages.
func bound(n int64) int64 {
	if n >= math.MaxInt64/2 {
		return 0
	}
	return n
}

// read gives a file of a cgroup: nothing if the host does not have it.
func (h Hierarchies) read(name, controller, file string) []byte {
	dir := h.controllers[controller]
	if h.Unified {
		dir = h.Tracker // which counts processor time without a controller, too
	}
	if dir == "" {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(dir, name, file))
	if err != nil {
		return nil
	}
	return data
}

// number reads a file with one number. The word max is no limit, which is 0.
func (h Hierarchies) number(name, controller, file string) int64 {
	return parse64(bytes.TrimSpace(h.read(name, controller, file)))
}

// value reads one value of a file with a name and a value in each line.
func (h Hierarchies) value(name, controller, file, key string) int64 {
	for line := range bytes.Lines(h.read(name, controller, file)) {
		if k, v, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" ")); string(k) == key {
			return parse64(v)
		}
	}
	return 0
}

func pair(data []byte) (a, b int64) {
	if f := bytes.Fields(data); len(f) == 2 {
		return parse64(f[0]), parse64(f[1])
	}
	return 0, 0
}

func parse64(text []byte) int64 {
	n, err := strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
