package qemu

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"brig/instance"
	"brig/qemu/rundir"
)

// State asks the kernel who holds the machine's lock, and reads the rest from
// the file that the keeper keeps true.
func (d *Driver) State(m *instance.Machine) instance.State {
	held, err := rundir.Held(m.Path(rundir.Lock))
	if err != nil {
		return instance.State{Status: instance.Broken, Reason: err.Error()}
	}
	if !held {
		return stopped(m)
	}
	s, err := rundir.ReadState(m.RunDir)
	if err != nil && !os.IsNotExist(err) {
		return instance.State{Status: instance.Running, Health: starting, Reason: err.Error()}
	}
	state := instance.State{
		Status: instance.Running, Reason: s.Reason, PID: s.PID, StartedAt: s.StartedAt, Health: starting,
		Accelerator: s.Accelerator, AcceleratorReason: s.AcceleratorReason,
	}
	if s.Frozen {
		state.Status = instance.Frozen
	}
	switch {
	case m.Firmware != "":
		state.Health = "" // nobody in it tells
	case s.Ready:
		state.Health = ready
	}
	if kept, err := rundir.Held(m.Path(rundir.KeeperLock)); err == nil && !kept {
		state.Reason = "its keeper is gone; the next command that changes it gives it a new one"
	}
	if halted(s.PID) {
		state.Reason = fmt.Sprintf("its QEMU was stopped by a signal and does nothing; kill -CONT %d lets it go on", s.PID)
	}
	return state
}

// halted tells whether a process was stopped by a signal or is being traced: by the
// letter behind its name in /proc/PID/stat (proc(5)).
func halted(pid int) bool {
	if pid <= 0 {
		return false
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	rest := b[bytes.LastIndexByte(b, ')')+1:]
	return len(rest) > 1 && (rest[1] == 'T' || rest[1] == 't')
}

// The words of State.Health.
const (
	starting = "starting"
	ready    = "ready"
)

// maxExit bounds what is read of the exit file.
const maxExit = 64 << 10

// stopped is the state of a machine that does not run, with how it ended.
func stopped(m *instance.Machine) instance.State {
	state := instance.State{Status: instance.Stopped}
	f, err := os.Open(m.Path(instance.ExitFile))
	if os.IsNotExist(err) {
		return state
	}
	if err != nil {
		state.Reason = err.Error()
		return state
	}
	defer f.Close()
	var exit instance.Exit
	if err := json.NewDecoder(io.LimitReader(f, maxExit)).Decode(&exit); err != nil {
		state.Reason = "cannot tell how it ended: " + err.Error()
		return state
	}
	state.ExitCode, state.Reason = &exit.Code, exit.Reason
	return state
}

// Kept tells whether the keeper of a running machine is there.
func (d *Driver) Kept(m *instance.Machine) bool {
	kept, err := rundir.Held(m.Path(rundir.KeeperLock))
	return err != nil || kept
}
