package runner

import (
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"brig/instance"
	"brig/qemu/rundir"
)

// Exit codes of machines that did not say one themselves.
const (
	exitKilled = 137 // ended from outside, as if by SIGKILL
	exitLost   = 255 // nobody knows
)

// status is what is known of the machine, and in state.json.
type status struct {
	dir string

	mu     sync.Mutex // guards what follows
	state  rundir.State
	off    string // why QEMU says it shuts down; empty: it does not
	resets int    // since init ran
	events int    // of pausing and resuming
	err    error  // of the last write
}

func (s *status) set(state rundir.State) {
	s.update(func(old *rundir.State) { *old = state })
}

// update changes the state and writes it if it is another one now.
func (s *status) update(change func(*rundir.State)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.state
	change(&s.state)
	if s.state != before {
		s.err = rundir.WriteState(s.dir, s.state)
	}
}

// paused notes that the processors were stopped or go on.
func (s *status) paused(frozen bool) {
	s.update(func(state *rundir.State) {
		state.Frozen = frozen
		s.events++
	})
}

// pauses counts the calls of paused.
func (s *status) pauses() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.events
}

// pausedUnless is paused for an answer that may be older than what was noted
// since: it counts only if nothing was.
func (s *status) pausedUnless(seen int, frozen bool) {
	s.update(func(state *rundir.State) {
		if s.events == seen {
			state.Frozen = frozen
		}
	})
}

// initRuns notes that init runs and the agent answers.
func (s *status) initRuns() {
	s.update(func(state *rundir.State) {
		state.Init, state.Ready = true, true
		s.resets = 0
	})
}

// restarted notes a restart from inside, and tells how many there were without
// init running.
func (s *status) restarted() (resets int) {
	s.update(func(state *rundir.State) {
		state.Init, state.Ready = false, false
		s.resets++
		resets = s.resets
	})
	return resets
}

// shuttingDown notes why QEMU goes.
func (s *status) shuttingDown(reason string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = reason
}

func (s *status) shutDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off != ""
}

// processEnded notes how QEMU's process ended, unless the guest has said how
// its main process did.
func (s *status) processEnded(err error) {
	s.update(func(state *rundir.State) {
		if state.Exit == nil {
			state.Exit = &instance.Exit{}
			state.Exit.Code, state.Exit.Reason = exitOf(s.off, err)
		}
		state.Exit.At = time.Now().UTC()
		state.PID, state.Init, state.Ready, state.Frozen = 0, false, false, false
	})
}

// exitOf gives the exit code of a machine whose QEMU shut down for a reason, or
// ended with err.
func exitOf(off string, err error) (code int, reason string) {
	switch off {
	case "guest-shutdown":
		return 0, ""
	case "guest-reset":
		return exitLost, "it restarted again and again without reaching its init"
	case "":
	default: // host-qmp-quit, host-signal, host-error, host-ui
		return exitKilled, "it was ended by force"
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() && s.Signal() == syscall.SIGKILL {
			return exitKilled, "it was ended by force"
		}
		return exitLost, fmt.Sprintf("QEMU failed: %v", exit)
	}
	return exitLost, "QEMU ended without saying why"
}

// finish gives the error of the last write, without which the end is not on
// record.
func (s *status) finish() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}
