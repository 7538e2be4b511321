package manager

import (
	"io"
	"net/netip"
	"time"

	"brig/instance"
	"brig/profiles"
	"brig/storage"
)

// CreateRequest is what a user wants of a new instance.
type CreateRequest struct {
	Name        string // empty: a generated one
	Project     string // of that; empty: the default one
	Image       string // as the user wrote it
	Empty       bool   // a virtual machine with an empty disk instead, for an installer
	Type        instance.Type
	Config      map[string]string
	Devices     map[string]map[string]string
	Profiles    []string // nil: the default profile
	Pool        string   // empty: the default one
	Description string
	Ephemeral   bool
	Command     []string // given after --; replaces the image's command
	NoNetwork   bool
}

// StartOptions tell when a start is done. The zero value waits until the
// machine's init runs.
type StartOptions struct {
	Wait    string        // "ready": until commands can be run in it, too
	Timeout time.Duration // of that wait; 0: the default
}

// StopOptions tell how to stop. The zero value asks the guest, waits 30 seconds
// and then forces it.
type StopOptions struct {
	Force   bool          // do not ask
	Timeout time.Duration // how long the guest may take; 0: the default; negative: never force it
}

// DeleteOptions tell what may be deleted.
type DeleteOptions struct {
	Force bool // also a running instance
	Now   bool // for good, without keeping it in the trash
}

// CopyRequest names what to copy and what the copy is called.
type CopyRequest struct {
	Source   string
	Snapshot string // empty: the instance as it is now
	Name     string // empty: a generated one
	Project  string // of that; empty: the default one

	Profiles     []string // nil: those of the source
	Pool         string   // empty: that of the source, or where the copy to be refreshed is
	InstanceOnly bool     // leave the snapshots behind
	KeepIdentity bool     // it has the machine id and the SSH host keys of its source
	Refresh      bool     // bring a copy that is there up to date
	Verify       bool     // with Refresh: compare all data in the end
}

// MoveRequest names what to move and where.
type MoveRequest struct {
	Source       string
	Name         string // empty: as it is called
	Pool         string // empty: where it is
	InstanceOnly bool   // drop the snapshots
}

// SnapshotRequest describes a snapshot to be taken.
type SnapshotRequest struct {
	Description string
	ExpiresAt   time.Time // zero: never
	Auto        bool      // taken by a schedule, which may drop it again

	alone bool // without its volumes
}

// RestoreOptions tell what a restore brings back beside the instance itself.
type RestoreOptions struct {
	Volumes bool // also the custom volumes that it has, as they were then
}

// ConfigChange is what is to become of configuration keys.
type ConfigChange struct {
	Set   map[string]string
	Unset []string
}

// DiffRequest names two states of an instance to compare.
type DiffRequest struct {
	Name string
	From string // a snapshot; empty: the newest
	To   string // a snapshot; empty: the instance as it is now
}

// FileRequest says which file of an instance or snapshot to copy to the host.
type FileRequest struct {
	Name      string
	Path      string    // in the instance, or SNAPSHOT/PATH
	Target    string    // on the host: a file, or a directory to put it into
	Output    io.Writer // instead of Target
	Recursive bool      // directories, too
	Parents   bool      // make the directories that Target is in
}

// Ownership is who is to own files; nil: whoever does on the host, or root.
type Ownership struct {
	UID, GID *uint32
	Mode     *uint32 // nil: as on the host
}

// PushRequest says which files of the host to copy where.
type PushRequest struct {
	Name    string
	Path    string    // in the instance: a file, or a directory to put them into
	Sources []string  // on the host
	Input   io.Reader // instead of Sources: what a file is to hold
	Ownership
	Recursive bool // directories, too
	Parents   bool // make the directories that Path is in
}

// DirectoryRequest describes a directory to be made in an instance.
type DirectoryRequest struct {
	Name, Path string
	Ownership
	Parents bool // also those it is in; one that is there already will do
}

// RemoveRequest names what to delete in an instance.
type RemoveRequest struct {
	Name, Path string
	Recursive  bool // directories with what is in them
	Force      bool // those, and what is not there is no error
}

// PullOptions narrow down what is pulled.
type PullOptions struct {
	VM           bool   // make the disk for virtual machines, too
	Alias        string // a local name for the image
	Architecture string // as uname -m says; empty: the host's
	AutoUpdate   bool   // follow the remote from now on
}

// ImportOptions say how an imported image is called, and what the file does not
// tell.
type ImportOptions struct {
	Alias        string
	Architecture string // as uname -m says; empty: what is found in it
	Rootfs       string // the second file of a split image; empty: it is whole
}

// GetOptions say what of an instance to show.
type GetOptions struct {
	Usage bool // what it takes on disk
}

// View is an instance with how it is now.
type View struct {
	Spec  *instance.Spec // never nil; Name is set even if instance.json cannot be read
	State instance.State
	Pool  string

	SnapshotCount int // List only

	// What follows is for Get only, and what a machine uses only while it runs.
	Snapshots []instance.Snapshot // oldest first
	Usage     *storage.Usage
	Config    map[string]profiles.Value  // what counts, with where it comes from
	Devices   map[string]profiles.Device // the same; masked ones are not in it
	Pending   []string                   // what counts after the next start: keys, and devices as "device NAME"
	Note      string                     // what brig does of the cloud-init.* keys itself; empty: nothing
	NICs      []NICState
	Use       instance.Use
	RootLimit int64 // how large its root can become, in bytes; 0: no limit of its own
}

// NICState is a network interface of a running instance.
type NICState struct {
	Name      string // in the guest: eth0
	HostName  string // on the host
	MAC       string
	MTU       int
	Up        bool
	Addresses []netip.Prefix

	BytesReceived, BytesSent     int64 // as the guest sees it
	PacketsReceived, PacketsSent int64
}
