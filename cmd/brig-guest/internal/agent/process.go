package agent

import (
	"encoding/json"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"brig/cmd/brig-guest/internal/control"
	"brig/instance/guest"
)

// Role is the argument that makes brig-guest an agent. The agent inherits its
// control socket and its settings.
const (
	Role       = "agent"
	controlFD  = 3
	settingsFD = 4
)

// reportWait bounds how long process 1 waits for the host to have heard.
const reportWait = 3 * time.Second

// Process is an agent as process 1 sees it.
type Process struct {
	PID      int
	control  *os.File
	reported chan struct{} // closed when the host knows of the last state

	mu     sync.Mutex // guards onStop
	onStop func()
}

// Start starts an agent from this program's own file, which may be deleted. It
// goes on when process 1 becomes something else.
func Start(s *guest.Settings) (*Process, error) {
	mine, theirs, err := control.Pair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	settings, err := settingsFile(s)
	if err != nil {
		mine.Close()
		return nil, err
	}
	defer settings.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		mine.Close()
		return nil, fmt.Errorf("cannot start agent: %w", err)
	}
	defer null.Close()
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err != nil {
		log = null
	} else {
		defer log.Close()
	}
	proc, err := os.StartProcess("/proc/self/exe", []string{"brig-guest", Role}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=" + guest.DefaultPath},
		Files: []*os.File{null, null, log, theirs, settings},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		mine.Close()
		return nil, fmt.Errorf("cannot start agent: %w", err)
	}
	p := &Process{PID: proc.Pid, control: mine, reported: make(chan struct{})}
	go p.listen()
	return p, proc.Release()
}

// settingsFile is a file in memory that holds s.
func settingsFile(s *guest.Settings) (*os.File, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("settings", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot start agent: %w", err)
	}
	f := os.NewFile(uintptr(fd), "settings")
	if _, err := f.WriteAt(b, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot start agent: %w", err)
	}
	return f, nil
}

// listen takes what the agent says until the socket closes.
func (p *Process) listen() {
	reported := false
	for {
		m, err := control.Receive(p.control)
		if err != nil {
			return
		}
		if m.Stop {
			p.mu.Lock()
			f := p.onStop
			p.mu.Unlock()
			if f != nil {
				f()
			}
		}
		if m.Reported && !reported {
			reported = true
			close(p.reported)
		}
	}
}

// OnStop sets what to do when the host asks the main process to end. It is
// called from another goroutine.
func (p *Process) OnStop(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onStop = f
}

// Tell gives the agent a new state. An agent that is gone misses nothing: the
// next one is told again.
func (p *Process) Tell(state string, code int, text string) {
	_ = control.Send(p.control, control.Message{State: state, Code: code, Text: text[:min(len(text), 4096)]})
}

// Report is Tell for the last state, and waits for a limited time until the
// host has heard of it.
func (p *Process) Report(state string, code int, text string) {
	p.Tell(state, code, text)
	select {
	case <-p.reported:
	case <-time.After(reportWait):
	}
}

// Close lets the agent's socket go.
func (p *Process) Close() { p.control.Close() }
