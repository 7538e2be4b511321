package limits

import (
	"fmt"
	"slices"
	"strconv"

	"brig/instance/fault"
)

// Setting is a file of a cgroup and what is to be written there. Controller is
// the hierarchy of cgroup v1 that has it.
type Setting struct {
	Controller string
	File       string
	Value      string
}

// Weights of processor time that the kernel gives a cgroup by default.
const (
	shares = 1024 // cpu.shares of v1
	weight = 100  // cpu.weight of v2
)

// Settings gives what the limits in an instance's configuration are to its
// cgroup. Every file that a limit could set is among them, with the value that
// stands for no limit where there is none, so that writing all of them makes a
// changed configuration true; the order is one in which they can be written. The
// values are those that the parsers here accept, invalid otherwise; a processor that
// the host lacks is unsupported.
//
// The files are those of the kernel's Documentation/admin-guide/cgroup-v2.rst and
// cgroup-v1.
func Settings(config map[string]string, id string, h Host, v2 bool) ([]Setting, error) {
	l, err := read(config, h)
	if err != nil {
		return nil, err
	}
	cpus, err := l.cpu.pick(id, h.CPUs)
	if err != nil {
		return nil, err
	}
	if v2 {
		return l.v2(WriteSet(cpus)), nil
	}
	if cpus == nil {
		cpus = h.CPUs // v1 has no word for all
	}
	return l.v1(WriteSet(cpus)), nil
}

// Any tells whether a configuration has a limit that a cgroup makes true.
func Any(config map[string]string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { _, ok := config[key]; return ok })
}

var keys = []string{KeyCPU, KeyCPUAllowance, KeyCPUPriority, KeyMemory, KeyMemoryEnforce, KeyMemorySwap, KeyProcesses}

// Given is what Settings gives of the limits that are set, for a cgroup that is new:
// a file that is as it should be, or is not there, is no matter then.
func Given(config map[string]string, id string, h Host, v2 bool) ([]Setting, error) {
	all, err := Settings(config, id, h, v2)
	if err != nil {
		return nil, err
	}
	none, err := Settings(nil, id, h, v2)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(s Setting) bool { return slices.Contains(none, s) }), nil
}

// values are the parsed limits.
type values struct {
	cpu       CPU
	allowance Allowance
	priority  int
	memory    int64 // 0: no limit
	soft      bool
	swap      Swap
	processes int // 0: no limit
}

func read(config map[string]string, h Host) (values, error) {
	l := values{priority: MaxPriority, soft: config[KeyMemoryEnforce] == "soft"}
	for _, r := range []struct {
		key  string
		into func(v string) error
	}{
		{KeyCPU, func(v string) (err error) { l.cpu, err = ParseCPU(v); return }},
		{KeyCPUAllowance, func(v string) (err error) { l.allowance, err = ParseAllowance(v); return }},
		{KeyCPUPriority, func(v string) (err error) { l.priority, err = ParsePriority(v); return }},
		{KeyMemory, func(v string) (err error) { l.memory, err = ParseMemory(v, h.Memory); return }},
		{KeyMemorySwap, func(v string) (err error) { l.swap, err = ParseSwap(v); return }},
		{KeyProcesses, func(v string) (err error) { l.processes, err = ParseProcesses(v); return }},
	} {
		v, ok := config[r.key]
		if !ok {
			continue
		}
		if err := r.into(v); err != nil {
			return values{}, fault.New(fault.Invalid, "cannot use %s %q: %w", r.key, v, err)
		}
	}
	return l, nil
}

// time gives the part of processor time, of a default that the kernel has. Each
// step of priority below the highest takes 9 % of it: the lowest leaves a tenth.
func (l values) time(whole int) int {
	part := whole
	if l.allowance.Percent > 0 {
		part = whole * l.allowance.Percent / 100
	}
	return max(part*(10+9*l.priority)/100, 2)
}

func (l values) v2(cpus string) []Setting {
	limit := func(n int64) string {
		if n == 0 {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	quota := "max 100000"
	if a := l.allowance; a.Quota > 0 {
		quota = fmt.Sprintf("%d %d", a.Quota.Microseconds(), a.Period.Microseconds())
	}
	hard, high, swap := limit(l.memory), "max", "max"
	if l.soft {
		hard, high = "max", limit(l.memory)
	}
	switch {
	case l.swap.Never:
		swap = "0"
	case l.swap.Max > 0:
		swap = limit(l.swap.Max)
	}
	return []Setting{
		{"cpuset", "cpuset.cpus", cpus},
		{"cpu", "cpu.weight", strconv.Itoa(l.time(weight))},
		{"cpu", "cpu.max", quota},
		{"memory", "memory.high", high},
		{"memory", "memory.max", hard},
		{"memory", "memory.swap.max", swap},
		{"pids", "pids.max", limit(int64(l.processes))},
	}
}

func (l values) v1(cpus string) []Setting {
	limit := func(n int64) string {
		if n == 0 {
			return "-1"
		}
		return strconv.FormatInt(n, 10)
	}
	period, quota := "100000", "-1"
	if a := l.allowance; a.Quota > 0 {
		period, quota = strconv.FormatInt(a.Period.Microseconds(), 10), strconv.FormatInt(a.Quota.Microseconds(), 10)
	}
	processes := "max"
	if l.processes > 0 {
		processes = strconv.Itoa(l.processes)
	}
	hard, soft := limit(l.memory), "-1"
	if l.soft {
		hard, soft = "-1", limit(l.memory)
	}
	// v1 bounds memory and swap together, never lower than memory alone, and only
	// where memory is bounded.
	both := "-1"
	if l.memory > 0 && !l.soft {
		switch {
		case l.swap.Never:
			both = limit(l.memory)
		case l.swap.Max > 0:
			both = limit(l.memory + l.swap.Max)
		}
	}
	return []Setting{
		{"cpuset", "cpuset.cpus", cpus},
		{"cpu", "cpu.shares", strconv.Itoa(l.time(shares))},
		{"cpu", "cpu.cfs_period_us", period},
		{"cpu", "cpu.cfs_quota_us", quota},
		{"memory", "memory.soft_limit_in_bytes", soft},
		{"memory", "memory.memsw.limit_in_bytes", "-1"}, // so that the next may rise and fall
		{"memory", "memory.limit_in_bytes", hard},
		{"memory", "memory.memsw.limit_in_bytes", both},
		{"pids", "pids.max", processes},
	}
}
