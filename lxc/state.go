package lxc

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/guest"
	"brig/lxc/config"

	"golang.org/x/sys/unix"
)

// State asks the kernel how m is.
func (d *Driver) State(m *instance.Machine) instance.State {
	c, err := d.cgroup(m)
	if err != nil {
		return instance.State{Status: instance.Broken, Reason: err.Error()}
	}
	alive, frozen, err := c.life()
	switch {
	case err != nil:
		return instance.State{Status: instance.Broken, Reason: err.Error()}
	case !alive:
		s := stopped(m)
		if s.ExitCode == nil && c.monitor() != 0 {
			return instance.State{Status: instance.Running, Reason: "it has ended, and its end is being recorded"}
		}
		return s
	}
	s := instance.State{Status: instance.Running, PID: c.init()}
	if frozen {
		s.Status = instance.Frozen
	}
	switch {
	case s.PID == 0:
		s.Reason = "its init is ending"
		return s
	case !executed(s.PID, m.Helpers.Keeper):
		s.PID, s.Reason, s.Health = 0, "its init is starting", "starting"
		return s
	}
	s.StartedAt = startedAt(s.PID)
	s.Health = "starting"
	if answers(m, s.PID) {
		s.Health = "ready"
	}
	return s
}

// executed tells whether an init is its own program and no longer the fork of
// the keeper that liblxc makes an init of.
func executed(pid int, keeper string) bool {
	self, err := os.Stat(keeper)
	if err != nil {
		return true
	}
	exe, err := os.Stat("/proc/" + strconv.Itoa(pid) + "/exe")
	return err == nil && !os.SameFile(exe, self)
}

// stopped adds how m ended, if its run directory still knows.
func stopped(m *instance.Machine) instance.State {
	s := instance.State{Status: instance.Stopped}
	f, err := os.Open(m.Path(instance.ExitFile))
	if err != nil {
		return s
	}
	defer f.Close()
	var exit instance.Exit
	if json.NewDecoder(io.LimitReader(f, 64<<10)).Decode(&exit) == nil {
		s.ExitCode, s.Reason = &exit.Code, exit.Reason
	}
	return s
}

// answers tells whether an init takes orders: brig-guest and systemd have a file
// for that, any other does at once.
func answers(m *instance.Machine, pid int) bool {
	sign := guest.ContainerReady
	if !config.IsApp(m) {
		exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
		if err != nil || filepath.Base(exe) != "systemd" {
			return err == nil
		}
		sign = "/run/systemd/private"
	}
	fd, err := openInside(pid, sign)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
}

// openInside finds a file in the root directory of a container, where every
// link of it stays.
func openInside(pid int, name string) (int, error) {
	root, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	how := &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	fd, err := unix.Openat2(root, name, how)
	// The kernel gives up on ".." while anybody on the host renames anything.
	for err == unix.EAGAIN || err == unix.EINTR {
		fd, err = unix.Openat2(root, name, how)
	}
	return fd, err
}

// startedAt is when a process started, zero if it is gone.
func startedAt(pid int) time.Time {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return time.Time{}
	}
	// The name, in brackets, may hold anything.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	const starttime = 22 - 3 // proc(5), less what was cut off
	if len(fields) <= starttime {
		return time.Time{}
	}
	ticks, err := strconv.ParseInt(fields[starttime], 10, 64)
	if err != nil {
		return time.Time{}
	}
	var up unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &up); err != nil {
		return time.Time{}
	}
	const userHZ = 100
	return time.Now().Add(time.Duration(ticks)*time.Second/userHZ - time.Duration(up.Nano()))
}
