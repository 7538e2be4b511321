package qemu

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"time"

	"brig/instance"
	"brig/qemu/rundir"
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
	return instance.Use{
		Memory:    n[2] * int64(os.Getpagesize()),
		CPU:       time.Duration(n[0]+n[1]) * time.Second / clockTicks,
		Processes: 1,
	}, nil
}
