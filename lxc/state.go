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
		return stopped(m)
	}
	s := instance.State{Status: instance.Running, PID: c.init()}
	if frozen {
		s.Status = instance.Frozen
	}
	if s.PID == 0 {
		s.Reason = "its init is ending"
		return s
	}
	s.StartedAt = startedAt(s.PID)
	s.Health = "starting"
	if config.IsApp(m) || answers(s.PID) {
		s.Health = "ready"
	}
	return s
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

// answers tells whether an init takes orders: systemd once its private socket
// is there, any other at once.
func answers(pid int) bool {
	exe, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	if err != nil || filepath.Base(exe) != "systemd" {
		return err == nil
	}
	root, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(root)
	how := &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(root, "/run/systemd/private", how)
	if err != nil {
		return false
	}
	unix.Close(fd)
	return true
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
