// Package images is the contract of images: how one is named (Ref), what is
// known of it (Image), where it comes from (Source), and the local store of
// their records and blobs (Store). Sources live in the packages below. What
// becomes of an image's files in a pool is the manager's business.
package images

import (
	"context"
	"encoding/json"
	"os"
	"time"

	"brig/instance"
)

// Kind says what an image is.
type Kind string

// The kinds.
const (
	System Kind = "system" // a full operating system with an init
	App    Kind = "app"    // an OCI image that runs by its entrypoint
	Disk   Kind = "disk"   // the disk of a virtual machine, which boots by firmware
)

// DiskFile is the raw disk that Unpack makes of a Disk image.
const DiskFile = "disk.raw"

// FirmwareProperty is the property of a Disk image that holds the firmware it
// boots by: bios or uefi.
const FirmwareProperty = "firmware"

// InitProperty is the property of a System image that holds the path of its
// init, where that is not /sbin/init.
const InitProperty = "init"

// Image is the record of an image in the store.
type Image struct {
	Fingerprint  string            `json:"fingerprint"` // sha256 in hex: of the OCI manifest, or of the tarball
	Kind         Kind              `json:"kind"`
	References   []string          `json:"references"` // canonical names it was pulled or imported under
	Aliases      []string          `json:"aliases"`    // local names
	Description  string            `json:"description"`
	Architecture string            `json:"architecture"` // x86_64, aarch64
	Size         int64             `json:"size"`         // bytes, compressed, as fetched; of what was made here, of its files
	CreatedAt    time.Time         `json:"created_at"`   // by its maker
	UploadedAt   time.Time         `json:"uploaded_at"`  // into this store
	LastUsedAt   time.Time         `json:"last_used_at"`
	CheckedAt    time.Time         `json:"checked_at,omitzero"`   // with its remote, by auto-update
	Cached       bool              `json:"cached,omitempty"`      // fetched on the way to an instance: goes when nobody uses it
	AutoUpdate   bool              `json:"auto_update,omitempty"` // follows its remote
	Properties   map[string]string `json:"properties"`
	App          *instance.App     `json:"app,omitempty"`    // of App images
	Config       json.RawMessage   `json:"config,omitempty"` // the OCI image configuration, byte for byte
	Layers       []Layer           `json:"layers,omitempty"` // bottom first
	Tree         string            `json:"tree,omitempty"`   // digest of the listing of its files as they were unpacked, a blob that may be kept
	Base         string            `json:"base,omitempty"`   // fingerprint of the image that the published instance was made from
}

// Layer is one layer of an OCI image. Sizes are bytes.
type Layer struct {
	Digest    string `json:"digest"`  // sha256:hex of the blob
	DiffID    string `json:"diff_id"` // sha256:hex of the tar
	Size      int64  `json:"size"`
	MediaType string `json:"media_type"`
}

// Source makes images available from one kind of remote.
type Source interface {
	// Resolve finds the image that ref names now. It fetches no more than a
	// manifest and a configuration. Errors: not-found, forbidden (credentials),
	// unavailable (the remote is down or answers badly), invalid (a bad name,
	// an image that breaks the specification), unsupported (no such platform).
	Resolve(ctx context.Context, ref Ref, o ResolveOptions) (Remote, error)
}

// ResolveOptions narrow down which image is meant.
type ResolveOptions struct {
	Architecture string // as uname -m says; empty: the host's
	Rootfs       string // of a file: that with the root file system or disk, if it is another
	Progress     Progress
}

// Remote is an image that was found and can be unpacked. It is used by one
// goroutine.
type Remote interface {
	// Image is the record, complete except for times of use. Fingerprint may be
	// empty if it is known only after Unpack (a distribution made on the spot).
	Image() Image

	// Unpack writes the root file system into root, which is an empty directory
	// of the caller's, or of a Disk image the one file DiskFile, and gives the
	// final record. All digests were verified when it returns nil. It leaves the
	// clean-up of root to the caller.
	Unpack(ctx context.Context, root *os.Root, p Progress) (Image, error)

	// Close frees what Resolve opened.
	Close() error
}

// Noter is a Remote that has something to say to the user once it was unpacked.
type Noter interface {
	// Note is one line; empty: there is nothing to say.
	Note() string
}

// Searcher is a Source that can list what a remote has.
type Searcher interface {
	// Search lists the images of the remote that ref names which match all words
	// of it, newest versions only. An architecture in o narrows it down; "all" is
	// any. Errors as those of Resolve.
	Search(ctx context.Context, ref Ref, o ResolveOptions) ([]Image, error)
}

// Progress shows how work advances. Implementations are safe for concurrent
// use; Discard is the silent one.
type Progress interface {
	// Task starts a named piece of work of total units (bytes if bytes is
	// true), or of unknown length when total is 0 or less.
	Task(name string, total int64, bytes bool) Task
}

// Task is one piece of work being shown.
type Task interface {
	Add(n int64)
	// Done ends it; it may be called more than once.
	Done()
}

// Discard shows nothing.
var Discard Progress = discard{}

type discard struct{}

func (discard) Task(string, int64, bool) Task { return discard{} }
func (discard) Add(int64)                     {}
func (discard) Done()                         {}
