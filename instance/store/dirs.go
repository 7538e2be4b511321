package store

import (
	"crypto/sha256"
	"encoding/hex"
	"path/filepath"
)

// Dirs are the folders of one brig: state survives everything, run files need
// not survive a reboot, logs are for people.
type Dirs struct {
	State, Run, Log string
}

// Default are the folders of a brig for which BRIG_DIR is not set.
var Default = Dirs{State: "/var/lib/brig", Run: "/run/brig", Log: "/var/log/brig"}

// DirsFor gives the folders below dir, the value of BRIG_DIR; empty means
// Default.
func DirsFor(dir string) Dirs {
	if dir == "" {
		return Default
	}
	return Dirs{
		State: filepath.Join(dir, "state"),
		Run:   filepath.Join(dir, "run"),
		Log:   filepath.Join(dir, "log"),
	}
}

// Tag is a short name for these folders that no other brig on this host has:
// empty for Default, six hex digits otherwise. It goes into the names of host
// interfaces, tables and cgroups.
func (d Dirs) Tag() string {
	if d == Default {
		return ""
	}
	sum := sha256.Sum256([]byte(d.State))
	return hex.EncodeToString(sum[:3])
}

// RunOf is the run directory of the instance with this id.
func (d Dirs) RunOf(id string) string { return filepath.Join(d.Run, "instances", id) }

// LogOf is the log directory of the instance with this id.
func (d Dirs) LogOf(id string) string { return filepath.Join(d.Log, "instances", id) }
