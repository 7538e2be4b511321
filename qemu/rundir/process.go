package rundir

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockFD is the descriptor number at which QEMU has the lock.
const LockFD = 3

// Process is QEMU, held by a descriptor that cannot come to mean another
// process.
type Process struct {
	PID int
	fd  int
}

// Find gives the QEMU process of the machine with this run directory: the one
// that has the lock file open where the keeper put it. hint is the process id
// to try first. It gives os.ErrNotExist when there is none.
func Find(dir string, hint int) (*Process, error) {
	lock, err := os.Stat(filepath.Join(dir, Lock))
	if err != nil {
		return nil, err
	}
	if p, ok := open(hint, lock); ok {
		return p, nil
	}
	names, err := processes()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if p, ok := open(pid, lock); ok {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no QEMU process has %q open: %w", filepath.Join(dir, Lock), os.ErrNotExist)
}

func processes() ([]string, error) {
	proc, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer proc.Close()
	return proc.Readdirnames(-1)
}

// open holds the process if it is QEMU with this lock file. What it looks at
// comes after it has the descriptor, so it looks at the process it holds.
func open(pid int, lock os.FileInfo) (*Process, bool) {
	if pid <= 0 {
		return nil, false
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, false
	}
	p := &Process{PID: pid, fd: fd}
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || !strings.HasPrefix(filepath.Base(exe), "qemu-system-") {
		p.Close()
		return nil, false
	}
	have, err := os.Stat(fmt.Sprintf("/proc/%d/fd/%d", pid, LockFD))
	if err != nil || !os.SameFile(have, lock) || p.Ended() {
		p.Close()
		return nil, false
	}
	return p, true
}

// Kill ends the process at once. One that has ended is no error.
func (p *Process) Kill() error {
	err := unix.PidfdSendSignal(p.fd, unix.SIGKILL, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// ShareLock makes the lock last until this process has ended too.
func (p *Process) ShareLock() error {
	_, err := unix.PidfdGetfd(p.fd, LockFD, 0)
	return err
}

// Ended tells whether the process has ended.
func (p *Process) Ended() bool {
	return p.poll(0)
}

// Wait returns when the process has ended.
func (p *Process) Wait() {
	for !p.poll(-1) {
	}
}

func (p *Process) poll(timeout int) bool {
	fds := []unix.PollFd{{Fd: int32(p.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, timeout)
	return err == nil && n > 0
}

// Close lets go of the process.
func (p *Process) Close() { unix.Close(p.fd) }
