package qemu

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"brig/instance"
	"brig/instance/cgroup"
	"brig/qemu/machine"
	"brig/qemu/rundir"
	"brig/qemu/runner"
	"brig/storage/qcow2"
)

// clockTicks is the unit of processor times in /proc, which is the same for
// every Linux on this architecture.
const clockTicks = 100

// The fields of /proc/PID/stat that are read here, counted from the one after
// the name: https://man7.org/linux/man-pages/man5/proc_pid_stat.5.html.
const (
	fieldUser   = 11
	fieldSystem = 12
	fieldRSS    = 21
)

// Use tells what QEMU uses of the host. The guest's memory counts as far as it
// was touched.
func (d *Driver) Use(m *instance.Machine) (instance.Use, error) {
	if err := mustRun(m, "measure"); err != nil {
		return instance.Use{}, err
	}
	s, err := rundir.ReadState(m.RunDir)
	if err != nil {
		return instance.Use{}, fmt.Errorf("cannot measure %q: %w", m.Name, err)
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.PID))
	if err != nil {
		return instance.Use{}, fmt.Errorf("cannot measure %q: %w", m.Name, err)
	}
	// The name is in parentheses and may hold anything.
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) <= fieldRSS {
		return instance.Use{}, fmt.Errorf("cannot measure %q: process %d has an odd description", m.Name, s.PID)
	}
	var n [3]int64
	for i, field := range []int{fieldUser, fieldSystem, fieldRSS} {
		if n[i], err = strconv.ParseInt(string(fields[field]), 10, 64); err != nil {
			return instance.Use{}, fmt.Errorf("cannot measure %q: %w", m.Name, err)
		}
	}
	use := instance.Use{
		Memory:    n[2] * int64(os.Getpagesize()),
		CPU:       time.Duration(n[0]+n[1]) * time.Second / clockTicks,
		Processes: 1,
		RootSize:  rootSize(m.Root.Disk),
	}
	use.MemoryPeak = field(s.PID, "status", "VmHWM") << 10
	use.Swap = field(s.PID, "status", "VmSwap") << 10
	use.Read, use.Written = field(s.PID, "io", "read_bytes"), field(s.PID, "io", "write_bytes")
	if n, err := machine.CPUs(m.Config); err == nil {
		use.CPULimit = time.Duration(n) * time.Second
	}
	if host, err := runner.HostMemory(); err == nil {
		use.MemoryLimit, _ = machine.Memory(m.Config, host)
	}
	if h, err := cgroup.Find(); err == nil {
		// Its memory is also that of the files that QEMU reads, which is no use of the
		// guest's.
		group := h.Use(cgroup.Name(m))
		use.SwapLimit = group.SwapLimit
		if group.CPULimit > 0 {
			use.CPULimit = min(use.CPULimit, group.CPULimit)
		}
	}
	return use, nil
}

// field reads a number of a file in /proc/PID with lines of a name, a colon and a
// value; 0 if it is not there. Sizes in status are in KiB.
func field(pid int, file, name string) int64 {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		return 0
	}
	for line := range bytes.Lines(data) {
		key, value, _ := bytes.Cut(line, []byte(":"))
		if words := bytes.Fields(value); string(key) == name && len(words) > 0 {
			n, _ := strconv.ParseInt(string(words[0]), 10, 64)
			return n
		}
	}
	return 0
}

// rootSize is how large a guest sees its disk; 0 if that cannot be told.
func rootSize(d instance.Disk) int64 {
	if d.Format != "qcow2" {
		f, size, err := qcow2.OpenRaw(d.Path, os.O_RDONLY)
		if err != nil {
			return 0
		}
		f.Close()
		return size
	}
	f, err := os.Open(d.Path)
	if err != nil {
		return 0
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	h, err := qcow2.Read(f, info.Size())
	if err != nil {
		return 0
	}
	return h.Size
}
