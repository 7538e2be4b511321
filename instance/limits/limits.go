// Package limits reads the limits of an instance's configuration, in Incus's
// words, and says what they are to the kernel's cgroups of either version. It is
// pure: who has the cgroup, and when a change is made, is not known here.
//
// limits.cpu is a count or a set of processors. A count takes so many of the
// host's, from one that the instance's id picks, so that instances spread over
// the host without anybody keeping books. limits.cpu.allowance is a share under
// load (50%) or a hard part of time (25ms/100ms). limits.memory is hard unless
// limits.memory.enforce says soft.
package limits

import (
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"brig/instance/fault"
	"brig/instance/size"
)

// The keys.
const (
	KeyCPU           = "limits.cpu"
	KeyCPUAllowance  = "limits.cpu.allowance"
	KeyCPUPriority   = "limits.cpu.priority"
	KeyMemory        = "limits.memory"
	KeyMemoryEnforce = "limits.memory.enforce"
	KeyMemorySwap    = "limits.memory.swap"
	KeyProcesses     = "limits.processes"
)

// MaxCPUs bounds the processors of an instance: a q35 machine has no more.
const MaxCPUs = 255

// CPU is limits.cpu: Count processors of any number, or those of Set. Both zero:
// no limit.
type CPU struct {
	Count int
	Set   []int // sorted
}

// ParseCPU reads limits.cpu: a count from 1 to MaxCPUs, or a set such as 0-3,5.
// One number alone is a count; the set of one processor is written 3-3.
func ParseCPU(v string) (CPU, error) {
	bad := fault.New(fault.Invalid, "want a number of processors from 1 to %d, or a set of them such as 0-3,5", MaxCPUs)
	if n, err := strconv.Atoi(v); err == nil {
		if n < 1 || n > MaxCPUs {
			return CPU{}, bad
		}
		return CPU{Count: n}, nil
	}
	set, err := ParseSet(v)
	if err != nil || len(set) > MaxCPUs {
		return CPU{}, bad
	}
	return CPU{Set: set}, nil
}

// maxCPU bounds the number of a processor.
const maxCPU = 8191

// ParseSet reads the kernel's way to write a set of processors.
func ParseSet(v string) ([]int, error) {
	var set []int
	for part := range strings.SplitSeq(v, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return nil, err
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return nil, err
		}
		if from > to || to > maxCPU {
			return nil, strconv.ErrRange
		}
		for n := from; n <= to; n++ {
			set = append(set, int(n))
		}
	}
	slices.Sort(set)
	return slices.Compact(set), nil
}

// Allowance is limits.cpu.allowance: Percent of a processor's share under load,
// or Quota of time within each Period. All zero: no limit.
type Allowance struct {
	Percent       int
	Quota, Period time.Duration
}

// ParseAllowance reads limits.cpu.allowance: 1% to 100%, or TIME/PERIOD such as
// 25ms/100ms. The kernel takes periods from 1ms to 1s and a quota from 1ms on.
func ParseAllowance(v string) (Allowance, error) {
	bad := fault.New(fault.Invalid, "want a share such as 50%%, or a time within a period of 1ms to 1s, such as 25ms/100ms")
	if digits, ok := strings.CutSuffix(v, "%"); ok {
		n, err := strconv.Atoi(digits)
		if err != nil || n < 1 || n > 100 {
			return Allowance{}, bad
		}
		return Allowance{Percent: n}, nil
	}
	quota, period, ok := strings.Cut(v, "/")
	q, err1 := time.ParseDuration(quota)
	p, err2 := time.ParseDuration(period)
	if !ok || err1 != nil || err2 != nil || p < time.Millisecond || p > time.Second || q < time.Millisecond || q > MaxCPUs*p {
		return Allowance{}, bad
	}
	return Allowance{Quota: q, Period: p}, nil
}

// MaxPriority is the default and the highest of limits.cpu.priority.
const MaxPriority = 10

// ParsePriority reads limits.cpu.priority, 0 to MaxPriority.
func ParsePriority(v string) (int, error) { return whole(v, 0, MaxPriority) }

// ParseProcesses reads limits.processes.
func ParseProcesses(v string) (int, error) { return whole(v, 1, 4<<20) }

func whole(v string, least, most int) (int, error) {
	n, err := strconv.Atoi(v)
	if err != nil || n < least || n > most {
		return 0, fault.New(fault.Invalid, "want a whole number from %d to %d", least, most)
	}
	return n, nil
}

// minMemory is the least that a limit of memory makes sense with, in bytes.
const minMemory = 1 << 20

// ParseMemory reads limits.memory, where host is the memory that percentages
// are of, in bytes.
func ParseMemory(v string, host int64) (int64, error) {
	n, err := size.ParseOf(v, host)
	if err == nil && n < minMemory {
		err = fault.New(fault.Invalid, "want at least 1MiB")
	}
	return n, err
}

// Swap is limits.memory.swap: whether memory may be swapped out, and how much.
type Swap struct {
	Never bool
	Max   int64 // bytes; 0: no bound of its own
}

// ParseSwap reads limits.memory.swap: true, false or a size.
func ParseSwap(v string) (Swap, error) {
	switch v {
	case "true":
		return Swap{}, nil
	case "false":
		return Swap{Never: true}, nil
	}
	n, err := size.Parse(v)
	if err != nil || n == 0 {
		return Swap{}, fault.New(fault.Invalid, "want true, false or a size")
	}
	return Swap{Max: n}, nil
}

// Host is what limits are relative to.
type Host struct {
	CPUs   []int // processors that can be used, sorted
	Memory int64 // bytes
}

// pick gives the processors that a limit leaves to the instance of an id. Nil:
// all of them.
func (c CPU) pick(id string, host []int) ([]int, error) {
	switch {
	case c.Set != nil:
		for _, n := range c.Set {
			if !slices.Contains(host, n) {
				return nil, fault.New(fault.Unsupported, "%s names processor %d, which this host does not have; it has %s", KeyCPU, n, WriteSet(host))
			}
		}
		return c.Set, nil
	case c.Count == 0 || c.Count >= len(host):
		return nil, nil
	}
	h := fnv.New32a()
	h.Write([]byte(id))
	first := int(h.Sum32() % uint32(len(host)))
	picked := make([]int, 0, c.Count)
	for i := range c.Count {
		picked = append(picked, host[(first+i)%len(host)])
	}
	slices.Sort(picked)
	return picked, nil
}

// WriteSet writes a set of processors in the kernel's way.
func WriteSet(set []int) string {
	var parts []string
	for i := 0; i < len(set); {
		j := i
		for j+1 < len(set) && set[j+1] == set[j]+1 {
			j++
		}
		part := strconv.Itoa(set[i])
		if j > i {
			part += "-" + strconv.Itoa(set[j])
		}
		parts = append(parts, part)
		i = j + 1
	}
	return strings.Join(parts, ",")
}
