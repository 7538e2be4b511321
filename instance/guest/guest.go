// Package guest is what brig and brig-guest agree on: the settings that a guest
// starts with, which process an image's configuration asks for, how names of
// users, directories and commands are resolved inside, and the host's side of
// the conversation with the agent (wire has its format). Both forms follow
// these rules, so one image behaves the same in either.
package guest

import (
	"encoding/json"
	"fmt"
	"io"
	"os"

	"brig/instance"
	"brig/instance/fault"
)

// Where brig-guest finds its things in a container, and the signal that asks it
// to end there: the main process then gets its own stop signal.
const (
	ContainerDir    = "/dev/.brig"
	ContainerGuest  = ContainerDir + "/guest"     // brig-guest itself
	ContainerConfig = ContainerDir + "/boot.json" // Settings
	ContainerReady  = ContainerDir + "/ready"     // there once brig-guest heeds signals and the main process runs
	ContainerExit   = ContainerDir + "/exit"      // the exit code, in decimal, once the main process ended
	HaltSignal      = "SIGPWR"
)

// maxSettings bounds a settings file.
const maxSettings = 4 << 20

// Settings are all that a guest is told: the content of boot.json.
type Settings struct {
	instance.Boot
	NICs   []instance.NIC   `json:"nics,omitempty"`
	Mounts []instance.Mount `json:"mounts,omitempty"` // virtual machines; in this order
	Files  bool             `json:"files,omitempty"`  // virtual machines; nothing of the image runs, only its files are served
}

// SettingsOf are the settings of a machine.
func SettingsOf(m *instance.Machine) Settings { return Settings{Boot: m.Boot, NICs: m.NICs} }

// Encode gives the content of boot.json.
func (s Settings) Encode() ([]byte, error) {
	b, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("cannot encode guest settings: %w", err)
	}
	if len(b) > maxSettings {
		return nil, fault.New(fault.Invalid, "cannot start guest: its settings have %d bytes, at most %d fit; shorten its environment", len(b), maxSettings)
	}
	return b, nil
}

// ReadSettings reads boot.json.
func ReadSettings(path string) (*Settings, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read guest settings: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSettings))
	if err != nil {
		return nil, fmt.Errorf("cannot read guest settings: %w", err)
	}
	s := &Settings{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("cannot read guest settings %q: %w", path, err)
	}
	return s, nil
}
