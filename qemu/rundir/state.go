package rundir

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"brig/instance"
)

// maxState bounds what is read of a state file.
const maxState = 64 << 10

// State is what the keeper knows of its machine. Whether QEMU runs is not in
// it: that is asked of the lock.
type State struct {
	PID               int            `json:"pid"` // of QEMU
	StartedAt         time.Time      `json:"started_at"`
	Frozen            bool           `json:"frozen,omitempty"`
	Init              bool           `json:"init"`  // the image's init runs
	Ready             bool           `json:"ready"` // the agent answers
	Reason            string         `json:"reason,omitempty"`
	Accelerator       string         `json:"accelerator"`
	AcceleratorReason string         `json:"accelerator_reason"`
	VsockCID          uint32         `json:"vsock_cid,omitempty"`
	Exit              *instance.Exit `json:"exit,omitempty"` // set when it has ended, or has said how it will
}

// ReadState reads the state file in dir.
func ReadState(dir string) (State, error) {
	var s State
	f, err := os.Open(filepath.Join(dir, StateFile))
	if err != nil {
		return s, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxState))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(b, &s); err != nil {
		return s, fmt.Errorf("cannot read %q: %w", f.Name(), err)
	}
	return s, nil
}

// WriteState replaces the state file in dir. A reader sees the old or the new
// state. It is not made durable: after a crash of the host nothing runs.
func WriteState(dir string, s State) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, StateFile)
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
