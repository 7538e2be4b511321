package instance

import "time"

// VolumeVersion is the format of volume.json that this brig writes.
const VolumeVersion = 1

// Volume is what a custom volume is: the content of volume.json inside of it.
// The name of the volume in its pool is the truth about its name.
type Volume struct {
	Version     int               `json:"version"`
	ID          string            `json:"id"`   // 16 hex digits, for life
	Type        string            `json:"type"` // custom
	Description string            `json:"description"`
	CreatedAt   time.Time         `json:"created_at"`
	Config      map[string]string `json:"config"`
}

// Attached is a custom volume that a machine has as a device: a directory on the
// host with unshifted ids, or a disk.
type Attached struct {
	Device   string `json:"device"` // its name, which differs from that of all others
	Pool     string `json:"pool"`   // of Volume
	Volume   string `json:"volume"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Dir      string `json:"dir,omitempty"`    // file systems: where it is on the host
	Path     string `json:"path,omitempty"`   // file systems: where the instance has it, absolute
	Disk     Disk   `json:"disk,omitzero"`    // block volumes
	Shared   bool   `json:"shared,omitempty"` // block volumes: others may write to it, too
}

// Mount is a shared directory that a guest mounts by itself.
type Mount struct {
	Tag      string `json:"tag"`  // by which the guest finds it
	Type     string `json:"type"` // as mount(8) knows it: virtiofs
	Path     string `json:"path"`
	ReadOnly bool   `json:"readonly,omitempty"`
}
