package instance

import (
	"fmt"
	"time"
)

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
	Content     string            `json:"content,omitempty"` // iso: the image of a disc, which is never written to; empty: what its data is
}

// ContentISO is the content of a volume that is the image of a disc.
const ContentISO = "iso"

// Attached is a disk that a machine has as a device. It is a custom volume, which is
// a directory on the host with unshifted ids, or a disk; or it is a directory of the
// host that is no volume, or a file system in memory, or a device file.
type Attached struct {
	Device   string `json:"device"` // its name, which differs from that of all others
	Pool     string `json:"pool"`   // of Volume
	Volume   string `json:"volume"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Source   string `json:"source,omitempty"` // the directory of the host, as it was named, or Tmpfs, if it is no volume
	Size     int64  `json:"size,omitempty"`   // of Tmpfs: bytes; 0: half of the memory there is
	Dir      string `json:"dir,omitempty"`    // file systems: where it is on the host
	Path     string `json:"path,omitempty"`   // file systems: where the instance has it, absolute
	Disk     Disk   `json:"disk,omitzero"`    // block volumes
	Shared   bool   `json:"shared,omitempty"` // block volumes: others may write to it, too
	CDROM    bool   `json:"cdrom,omitempty"`  // a disc in a drive, read-only

	Node *Node `json:"node,omitempty"` // a device file at Path: what device it is

	// Unshifted has the instance see the ids that the host has, which are nobody's in
	// a container with ids of its own.
	Unshifted bool `json:"unshifted,omitempty"`

	// Priority is that of a disk among those that a machine tries to boot, where it
	// boots by itself: higher ones first. The root disk has 1. Discs are tried with 0,
	// too, and other disks not.
	Priority int `json:"priority,omitempty"`
}

// Node is a device of the host, and how a container sees its file.
type Node struct {
	Block bool   `json:"block,omitempty"` // or else a character device
	Major uint32 `json:"major"`
	Minor uint32 `json:"minor"`
	Mode  uint32 `json:"mode"` // permissions
	UID   uint32 `json:"uid"`  // in the container, like GID
	GID   uint32 `json:"gid"`
}

// Rule is the device as cgroups name it (lxc.cgroup.devices in lxc.container.conf(5)),
// with all that may be done with it.
func (n Node) Rule() string {
	kind := "c"
	if n.Block {
		kind = "b"
	}
	return fmt.Sprintf("%s %d:%d rwm", kind, n.Major, n.Minor)
}

// Tmpfs is the source of a disk that is a file system in memory (tmpfs(5)). It is empty
// at each start.
const Tmpfs = "tmpfs:"

// String names it for messages.
func (a Attached) String() string {
	switch {
	case a.Node != nil:
		return fmt.Sprintf("device %q", a.Source)
	case a.Source == "":
		return fmt.Sprintf("volume %q", a.Volume)
	case a.Source == Tmpfs:
		return fmt.Sprintf("memory %q", a.Device)
	default:
		return fmt.Sprintf("directory %q", a.Source)
	}
}

// Mount is a shared directory, or memory, that a guest mounts by itself.
type Mount struct {
	Tag      string `json:"tag"`  // by which the guest finds it
	Type     string `json:"type"` // as mount(8) knows it: virtiofs, tmpfs
	Path     string `json:"path"`
	ReadOnly bool   `json:"readonly,omitempty"`
	Size     int64  `json:"size,omitempty"` // tmpfs: bytes; 0: half of the memory
}
