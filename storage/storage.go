// Package storage is the contract of pools and their volumes. A volume is a
// directory that holds everything an instance or an image is: its metadata
// files, and a root file system (Tree) or a disk (Disk). A pool driver knows
// only volumes; what they mean is the manager's business. Drivers live in the
// packages below and are proved by storagetest.
package storage

import (
	"context"
	"os"
	"time"

	"brig/instance/fault"
)

// Class groups the volumes of a pool. Names are unique in a class.
type Class string

// The classes of volumes.
const (
	Images    Class = "images"    // read-only once created; what instances are cloned from
	Instances Class = "instances" // writable
	// Custom volumes are writable and attached to instances, to several at once: a
	// Tree that was created as one, or cloned from one, is one directory (Root.Upper
	// alone), and stays the same while it is in use.
	Custom Class = "custom"
)

// Key names a volume of a pool.
type Key struct {
	Class Class
	Name  string // [a-zA-Z0-9][a-zA-Z0-9._-]*, at most 128 bytes
}

func (k Key) String() string { return string(k.Class) + "/" + k.Name }

// Check gives an invalid error unless the class exists and the name is allowed.
// Every method of a Pool that takes a key does this first.
func (k Key) Check() error {
	switch k.Class {
	case Images, Instances, Custom:
	default:
		return fault.New(fault.Invalid, "cannot use the volume class %q: there are images, instances and custom", k.Class)
	}
	return CheckName("volume", k.Name)
}

// maxName bounds the names of volumes and snapshots in bytes.
const maxName = 128

// CheckName gives an invalid error unless name is allowed for a volume or a
// snapshot. What says in the error which of them it is.
func CheckName(what, name string) error {
	if name == "" || len(name) > maxName {
		return fault.New(fault.Invalid, "cannot use the %s name %q: it needs 1 to %d bytes", what, name, maxName)
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return fault.New(fault.Invalid, "cannot use the %s name %q: letters and digits are allowed, and after the first of them also dots, dashes and underscores", what, name)
		}
	}
	return nil
}

// Content is what a volume holds beside its metadata files.
type Content string

// The contents.
const (
	Tree Content = "filesystem" // a root file system as directories
	Disk Content = "block"      // a disk image
)

// RootName is the directory of a Tree's files in a staging directory.
const RootName = "rootfs"

// DiskRaw and DiskQcow2 are the names a disk may have in a staging directory.
const (
	DiskRaw   = "disk.raw"
	DiskQcow2 = "disk.qcow2"
)

// Pool keeps volumes. All methods may be called at once from many goroutines
// and processes; the manager holds the lock of the instance or image a call
// changes, so two calls never change one volume at the same time, while clones
// of one source may run side by side with each other.
//
// Every method that changes something is safe to repeat after a crash at any
// point, and leaves either the old or the new state visible, never a mixture.
// Its cost does not depend on how much data a volume holds, except for Create's
// fill and where a capability is missing. Errors: not-found for a missing
// volume or snapshot, already-exists for a taken name, exhausted when space is
// gone, unsupported for a missing capability, unavailable when the pool itself
// is gone or unreadable, invalid for a bad name.
type Pool interface {
	// Info describes the pool. It works on a full or read-only pool.
	Info(ctx context.Context) (Info, error)

	// List names the volumes of a class, sorted, without opening them.
	List(ctx context.Context, class Class) ([]string, error)

	// Open gives a volume, which stays valid until the volume is renamed or
	// deleted. It is cheap.
	Open(ctx context.Context, key Key) (Volume, error)

	// Create makes a volume from what fill puts into the empty staging
	// directory it is given: metadata files, and rootfs/ (Tree) or disk.raw or
	// disk.qcow2 (Disk). The volume becomes visible, durably, after fill
	// returned nil; on any error or crash nothing of it stays.
	Create(ctx context.Context, key Key, content Content, fill func(dir *os.Root) error) (Volume, error)

	// Clone makes a writable volume, which no image is, that starts with the data of from, which
	// may be deleted later without harm. edit, which may be nil, changes the metadata files
	// in the new volume's metadata directory before it becomes visible; the metadata files of the source are
	// copied first. The source is not in use, or is a snapshot, or o.Live makes
	// it consistent.
	Clone(ctx context.Context, from Source, key Key, o CloneOptions) (Volume, error)

	// Rename gives a volume that is not in use another name in its class.
	Rename(ctx context.Context, key Key, name string) error

	// Delete removes a volume and its snapshots from sight at once, even on a
	// full pool. Data that clones still share stays as long as they need it;
	// the rest is freed by Sweep. A missing volume is not-found.
	Delete(ctx context.Context, key Key) error

	// Sweep frees what deleted volumes, dropped snapshots and dead creators
	// left. It may take long, runs beside everything else, and can be stopped
	// at any time. Pending tells cheaply whether there is anything to do.
	Sweep(ctx context.Context) error
	Pending() bool
}

// Volume is one volume. It does no mounting: it says what to mount.
type Volume interface {
	Key() Key
	Content() Content

	// Dir opens the directory with the metadata files (instance.json and its
	// like, never more than a few small files). Callers change files there only
	// by writing a new file and renaming it. The caller closes it.
	Dir() (*os.Root, error)

	// Root says where the volume's data is.
	Root() Root

	// Snapshot keeps the present state, metadata files included, under name. A
	// disk that a running machine writes to needs o.Live: wrong-state otherwise.
	Snapshot(ctx context.Context, name string, o SnapshotOptions) error

	// Snapshots lists the snapshots, oldest first.
	Snapshots(ctx context.Context) ([]Snapshot, error)

	// SnapshotDir opens a snapshot's metadata files, read-only.
	SnapshotDir(ctx context.Context, name string) (*os.Root, error)

	// SnapshotRoot says where a snapshot's data is, for looking at: the directories
	// and files it names are not to be written to, and stay until the snapshot is
	// deleted, or it or the volume renamed. A Tree has its topmost directory in Lower, or in Upper without Lower
	// where it is one directory.
	SnapshotRoot(ctx context.Context, name string) (Root, error)

	// Restore brings the data back to a snapshot; all snapshots, also newer
	// ones, stay. Metadata files are left as they are: the manager decides what
	// of the snapshot's files comes back. The volume is not in use.
	Restore(ctx context.Context, name string) error

	// DeleteSnapshot drops a snapshot; no other snapshot or clone is harmed.
	DeleteSnapshot(ctx context.Context, name string) error

	// RenameSnapshot gives a snapshot another name.
	RenameSnapshot(ctx context.Context, name, to string) error

	// Usage measures the volume. It may be expensive.
	Usage(ctx context.Context) (Usage, error)
}

// MetaReader is implemented by volumes that can read a metadata file without
// opening their directory, which counts where a thousand volumes are looked at.
type MetaReader interface {
	// ReadMeta gives what is in a regular file, or an error if that is more than
	// most bytes.
	ReadMeta(name string, most int64) ([]byte, error)
}

// Mounter is a Volume whose data have to be mounted before they are used. Root does
// that too, and cannot tell why it failed.
type Mounter interface {
	// Mount makes what Root says be there. Data that somebody destroyed behind
	// brig's back, or whose key is not loaded, are unavailable.
	Mount(ctx context.Context) error
}

// Limiter is a Volume whose size can be limited. Not every volume of a driver
// that has it can be: SetLimit gives unsupported, and why, for the others.
type Limiter interface {
	// SetLimit keeps the volume from growing beyond max bytes, counted as the
	// pool's Info.Limits says. Zero lifts the limit. The volume may be in use, and
	// may be larger already: then it cannot grow.
	SetLimit(ctx context.Context, max int64) error

	// Limit gives the limit and what counts against it.
	Limit(ctx context.Context) (Limit, error)
}

// Limit of a volume in bytes.
type Limit struct {
	Max  int64 // 0: there is none
	Used int64 // 0 where nothing counts without a limit
}

// Grower is a Volume whose disk only its driver can make larger, because it is no
// file.
type Grower interface {
	// Grow makes the disk at least size bytes large, with zeros at its end. Its
	// snapshots stay as large as they are, and restoring one brings its size back.
	// Errors: invalid if the disk is larger already, for what is cut off a disk is
	// lost; wrong-state while a machine uses it; unsupported for a Tree.
	Grow(ctx context.Context, size int64) error
}

// Adopter is a Volume that can keep a state of another volume as a snapshot of its
// own for less than copying its files: by sharing data in one pool, or by copying
// what the other volume's pool has and its own lacks.
type Adopter interface {
	// CanAdopt tells whether it can take snapshots of this volume, of its pool or
	// of another.
	CanAdopt(from Volume) bool

	// Adopt keeps what a snapshot of from holds, metadata files included, as the
	// snapshot that as describes. The volume's present data stays. Edit, which may
	// be nil, changes the metadata files before the snapshot becomes visible.
	// Errors are those of Snapshot, and unsupported where the two have come to
	// differ in a way that does not allow it.
	Adopt(ctx context.Context, from Volume, snapshot string, as Snapshot, edit func(dir *os.Root) error) error
}

// Streamer is a Volume whose file system can write a snapshot as a stream, or how
// it differs from another snapshot, and read such streams.
type Streamer interface {
	// StreamFormat names the format. Volumes can be sent to those that have the
	// same.
	StreamFormat() string

	// Send writes a snapshot with its metadata files, or what makes it different
	// from another snapshot of the volume, base. The file may be the end of a pipe.
	// It is wrong-state if the one cannot be told from the other.
	Send(ctx context.Context, snapshot, base string, w *os.File) error

	// Receive reads a stream and keeps what is in it as the snapshot that as
	// describes, based on the volume's snapshot base if that was sent. The volume's
	// present data stays. It is wrong-state if base is not what the stream needs,
	// and invalid if the stream is damaged; then nothing of it stays.
	Receive(ctx context.Context, base string, r *os.File, as Snapshot) error
}

// Shortener is a Volume whose data lies in a chain of layers, which gets longer
// with each snapshot, and slower to read.
type Shortener interface {
	// Long tells cheaply whether the chain should be shortened.
	Long() bool

	// Shorten merges layers into one, in addition to those that snapshots and clones
	// need, if the chain is long. It copies data, and may take as long as that does;
	// the volume may be used, snapshotted, started and stopped meanwhile. For the
	// moment in which the volume moves to the new chain it calls enter, which keeps
	// others from changing or starting it until leave is called, and gives what it
	// takes when a running instance uses it (nil: none does). Nothing is lost when
	// it fails or is killed. Errors: exhausted when space is short, busy when it
	// cannot be done as long as the volume is in use.
	Shorten(ctx context.Context, enter func(context.Context) (live *Live, leave func(), err error)) error
}

// SetLimit limits the size of any volume: unsupported where its driver cannot.
func SetLimit(ctx context.Context, v Volume, max int64) error {
	if l, ok := v.(Limiter); ok {
		return l.SetLimit(ctx, max)
	}
	if max == 0 {
		return nil
	}
	return fault.New(fault.Unsupported, "cannot limit the size of volume %q: its pool cannot limit volumes", v.Key())
}

// LimitOf gives the limit of any volume: none where its driver cannot limit it.
func LimitOf(ctx context.Context, v Volume) (Limit, error) {
	if l, ok := v.(Limiter); ok {
		return l.Limit(ctx)
	}
	return Limit{}, nil
}

// Root is where a volume's data is: the overlay layers or the one directory of
// a Tree, with file ids as the guest sees them, or the file of a Disk.
type Root struct {
	Lower      []string // read-only layers, top first; overlay only
	Upper      string   // writable directory; without Lower, the whole tree
	Work       string   // overlay's work directory, on Upper's file system
	DiskPath   string
	DiskFormat string // qcow2 or raw, never probed
	DiskDir    string // holds all files that the disk stands on; empty: it stands on none

	// Aside is a directory for what an overlay cannot hold: the layers of overlays that
	// programs inside make. It is the volume's, is renamed and deleted with it, and is
	// in no snapshot or clone; it need not be there yet. Empty: the tree holds all.
	Aside string

	// DiskData tells which parts of a disk on a device may hold anything but zeros, in
	// order, as of what was written until then. Nil: the holes of its file tell.
	DiskData func(ctx context.Context) ([]Extent, error)
}

// Extent is a part of a disk, from byte Start up to byte End. Of two disks in one
// pool, what is at the same At is the same: both share it.
type Extent struct{ Start, End, At int64 }

// Source is what to clone: a volume, or one of its snapshots.
type Source struct {
	Key
	Snapshot string // empty: the volume as it is now
}

func (s Source) String() string {
	if s.Snapshot == "" {
		return s.Key.String()
	}
	return s.Key.String() + "/" + s.Snapshot
}

// CloneOptions change a clone. The zero value clones a volume that is not in
// use.
type CloneOptions struct {
	Edit func(dir *os.Root) error
	Live *Live
}

// SnapshotOptions describe a snapshot. The zero value takes one of a volume
// that is not in use.
type SnapshotOptions struct {
	Description string
	CreatedAt   time.Time // zero: now
	ExpiresAt   time.Time // zero: never
	Auto        bool      // taken by a schedule, not by a person
	Live        *Live     // non-nil: the volume is in use by a running instance
}

// Live lets a driver make a consistent copy of a volume in use.
type Live struct {
	// Freeze stops the writers of a Tree until thaw is called; the driver calls
	// thaw as early as it can, and always. Trees need it.
	Freeze func(ctx context.Context) (thaw func() error, err error)

	// SwitchDisk makes the running machine go on in the given qcow2 file, whose
	// backing file is the disk as it is now. It is called with the volume
	// locked: it must not call the volume. Disks need it.
	SwitchDisk func(ctx context.Context, path string) error

	// RebaseDisk makes the running machine read what the disk at path, which it
	// writes to, does not hold from the qcow2 file backing instead, which shows the
	// same as what is below the disk now, and say so in the disk's header. It is
	// called with the volume locked, and may be called again when it is not known
	// what came of it. Shortener needs it.
	RebaseDisk func(ctx context.Context, path, backing string) error
}

// Snapshot is one snapshot of a volume.
type Snapshot struct {
	Name        string    `json:"name"`
	Description string    `json:"description,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	ExpiresAt   time.Time `json:"expires_at,omitzero"`
	Auto        bool      `json:"auto,omitempty"`
}

// Record is how a pool was made: all that is needed to open it again.
type Record struct {
	Name        string            `json:"name"`
	Driver      string            `json:"driver"`
	Description string            `json:"description"`
	Config      map[string]string `json:"config"` // source, size, and what else the driver knows
	CreatedAt   time.Time         `json:"created_at"`

	// New lets opening make the pool where there is none. Without it, a pool that
	// is not where it was is unavailable: its disk may be missing.
	New bool `json:"-"`
}

// Owner is a brig that uses a pool. Two that use one at the same time would change
// it under each other's hands.
type Owner struct {
	ID   string `json:"id"`   // of the brig, for ever
	Pool string `json:"pool"` // what it calls the pool
	Host string `json:"host"` // the name of its host, for people
	Dir  string `json:"dir"`  // where it keeps its state, for people
}

// Owned is implemented by pools that keep a note of whose they are.
type Owned interface {
	// Owner gives what SetOwner noted last; the zero Owner if nobody has. It works
	// on a full or read-only pool.
	Owner(ctx context.Context) (Owner, error)
	SetOwner(ctx context.Context, o Owner) error
}

// Resizer is a Pool whose size is its own affair.
type Resizer interface {
	// Resize makes the pool hold max bytes in all. It may be in use. Where there is
	// no room for what is in it, it is exhausted, and all is as before. Stopped
	// anywhere, it can be repeated, and so can one with the size before.
	Resize(ctx context.Context, max int64) error
}

// Usage of a volume in bytes, as the file system counts it. What is not exclusive
// is shared with other volumes.
type Usage struct {
	Used      int64           // reachable from the volume and its snapshots
	Exclusive int64           // freed if it were deleted, with its snapshots
	Snapshots []SnapshotUsage // oldest first
}

// SnapshotUsage is what one snapshot takes, in bytes.
type SnapshotUsage struct {
	Name      string
	Used      int64 // reachable from it
	Exclusive int64 // freed if it alone were deleted
}

// Info describes a pool.
type Info struct {
	Name         string
	Driver       string
	Source       string // path, device or dataset
	Total        int64  // bytes
	Free         int64  // bytes
	Limits       string // how the limits of volumes are kept, or why they cannot be; for people
	Capabilities Capabilities
}

// Capabilities tell what a pool can do, for callers that have a choice.
type Capabilities struct {
	Contents      []Content
	InstantClone  bool // cost independent of size
	LiveSnapshots bool // of running instances without copying their changes
	FixedIDs      bool // trees cannot be mounted with shifted ids: only privileged containers run on them
}
