package images

import (
	"time"

	"brig/instance"
)

// Backup is an instance in a file of another program, as the file tells about it.
type Backup struct {
	Type      instance.Type
	Instance  BackupState
	Snapshots []BackupState // oldest first
}

// BackupState is one state of it, in Incus's words. Nothing of it has been judged.
type BackupState struct {
	Name         string // of the instance, or of the snapshot
	Description  string
	Architecture string
	Created      time.Time
	Expires      time.Time // zero: never
	Config       map[string]string
	Devices      map[string]map[string]string
	Ephemeral    bool
}
