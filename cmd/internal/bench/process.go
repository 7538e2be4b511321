package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is a process that cannot come to mean another.
type process struct{ pid, fd int }

func openProcess(pid int) (*process, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot open process %d: %w", pid, err)
	}
	return &process{pid, fd}, nil
}

func (p *process) close() { unix.Close(p.fd) }

// kill ends the process. One that has ended is no error.
func (p *process) kill() error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// wait waits until the process has ended.
func (p *process) wait(most time.Duration) error {
	deadline := time.Now().Add(most)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return fmt.Errorf("process %d does not end", p.pid)
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (p *process) executable() (string, error) { return executable(p.pid) }

func executable(pid int) (string, error) {
	return os.Readlink(filepath.Join("/proc", strconv.Itoa(pid), "exe"))
}

// parentOf gives the process that a process is a child of.
func parentOf(pid int) (int, error) {
	stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, err
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 2 {
		return 0, fmt.Errorf("process %d has no parent", pid)
	}
	return strconv.Atoi(fields[1])
}

// processesOf gives the processes that run one of the programs.
func processesOf(programs ...string) (map[int]bool, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[int]bool{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		exe, err := executable(pid)
		if err != nil {
			continue // gone, or the kernel's own
		}
		for _, p := range programs {
			if exe == p {
				found[pid] = true
			}
		}
	}
	return found, nil
}

const mib = 1 << 10 // in the KiB that the kernel counts in

// privateMemory is the memory that only this process has, in MiB.
func privateMemory(pid int) (float64, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	all, err := readMappings(f)
	if err != nil || len(all) != 1 {
		return 0, fmt.Errorf("cannot read the memory of process %d: %w", pid, err)
	}
	return float64(all[0].private) / mib, nil
}

// memoryBesideRAM is the memory that only this QEMU has, less that of its guest,
// in MiB.
func memoryBesideRAM(pid int, ram int64) (float64, error) {
	f, err := os.Open(filepath.Join("/proc", strconv.Itoa(pid), "smaps"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	all, err := readMappings(f)
	if err != nil {
		return 0, fmt.Errorf("cannot read the memory of process %d: %w", pid, err)
	}
	var sum int64
	guests := 0
	for _, m := range all {
		// What QEMU translated lies in a mapping that can be as large.
		if m.size == ram && strings.HasPrefix(m.access, "rw-") {
			guests++
			continue
		}
		sum += m.private
	}
	if guests != 1 {
		return 0, fmt.Errorf("process %d has %d mappings of %d KiB, and not one: which is the guest's memory?", pid, guests, ram)
	}
	return float64(sum) / mib, nil
}

// mapping is a range of a process's memory, in KiB.
type mapping struct {
	access        string // as in rw-p
	size, private int64
}

// readMappings reads smaps or smaps_rollup, see proc_pid_smaps(5).
func readMappings(r io.Reader) ([]mapping, error) {
	var all []mapping
	s := bufio.NewScanner(r)
	for s.Scan() {
		fields := strings.Fields(s.Text())
		if len(fields) < 2 {
			return nil, fmt.Errorf("strange line %q", s.Text())
		}
		key, isField := strings.CutSuffix(fields[0], ":")
		if !isField {
			all = append(all, mapping{access: fields[1]})
			continue
		}
		if key != "Size" && !strings.HasPrefix(key, "Private_") {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil || len(all) == 0 {
			return nil, fmt.Errorf("strange line %q", s.Text())
		}
		if m := &all[len(all)-1]; key == "Size" {
			m.size = n
		} else {
			m.private += n
		}
	}
	return all, s.Err()
}
