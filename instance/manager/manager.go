// Package manager holds brig's use cases, one file each: what happens between a
// user's wish and the drivers. It takes the locks, writes the intents, and knows
// the contracts of instances, storage and images, but no concrete driver.
package manager

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/network"
	"brig/instance/project"
	"brig/instance/store"
	"brig/instance/store/profilestore"
	"brig/instance/store/projectstore"
	"brig/storage"
)

// Config is what a Manager works with. The composition file of the CLI fills it.
type Config struct {
	Dirs    store.Dirs
	BrigDir string // value of BRIG_DIR; empty: the default folders
	Helpers instance.Helpers

	Drivers  []instance.Driver
	Pools    Pools
	Images   *images.Store
	Source   func(images.Ref) (images.Source, error) // not-found for an unknown remote
	Exporter images.Exporter
	Backups  func(ctx context.Context, r io.Reader) (ForeignBackup, error) // files of other programs
	Files    images.FileExporter
	Disks    DiskMaker
	Kernels  Kernels
	Network  *network.Network
	Looker   Looker

	FileMounts FileMounts // nil: files cannot be mounted

	Sweep func() error                // frees deleted data in a process of its own
	Care  func() error                // runs CareForImages in a process of its own; nil: nobody does
	Again func(id, name string) error // runs Manager.Again in a process of its own; nil: nobody does
	Clock func() time.Time            // what schedules and expiry go by; nil: the host's, in its time zone

	// Sleep waits for the delays between starts at boot; nil: as the host counts.
	Sleep func(ctx context.Context, d time.Duration) error

	// Uptime tells the kernel's id of this boot and how long ago it was, asleep or
	// not. Nil: the host's.
	Uptime func() (boot string, up time.Duration, err error)

	Progress   images.Progress
	Notice     func(text string) // something the user should know, one line
	Failpoints Failpoints
}

// DiskMaker makes the disk of a virtual machine from a tree.
type DiskMaker interface {
	// Make writes an ext4 file system of size bytes with the files of tree to
	// the new sparse file dst. The same tree and fingerprint give the same disk.
	Make(ctx context.Context, tree, dst, fingerprint string, size int64) error

	// Copy makes the new sparse raw file dst of the disk src, which is in a format
	// of storage.Root.
	Copy(ctx context.Context, src, format, dst string) error
}

// Kernels are the kernels that virtual machines boot directly.
type Kernels interface {
	List(ctx context.Context) ([]KernelInfo, error)
	Import(ctx context.Context, source string, p images.Progress) (KernelInfo, error)
	// For chooses the kernel for the file tree of an image: its own, else one
	// that brig manages, fetched on first use. Tree may be nil.
	For(ctx context.Context, tree *os.Root, fingerprint string, p images.Progress) (*instance.Kernel, error)
}

// Looker shows the files in volumes and snapshots, read-only, with owners as the
// guest sees them, without running anything of the guest.
type Looker interface {
	// Open gives the root directory of the files. It ends with done, and with this
	// process.
	Open(ctx context.Context, root storage.Root) (dir *os.File, done func() error, err error)

	// Change gives the root directory of the files of a volume that nothing uses, to
	// change them: what the directory shows ends when it is closed. The file system
	// on a disk is not to be changed by the host: it gives unsupported.
	Change(ctx context.Context, root storage.Root) (dir *os.File, err error)

	// Check tells what is wrong with a disk that nobody writes to: with its format,
	// and with the file system on it.
	Check(ctx context.Context, root storage.Root) (wrong []string, err error)

	// Mount shows them at a directory of the host, until Unmount. Subject says what
	// they are.
	Mount(ctx context.Context, root storage.Root, target, subject string) error
	Unmount(ctx context.Context, target string) error

	// Mounted tells where a subject is mounted, or one that begins with it if it ends
	// in a slash; empty: nowhere.
	Mounted(subject string) (target string, err error)

	// Tidy ends what belongs to mounts that were taken away by other means.
	Tidy(ctx context.Context) error
}

// KernelInfo is a line of kernel list.
type KernelInfo struct {
	Name    string    `json:"name"`
	Version string    `json:"version"`
	Source  string    `json:"source"` // host, package or file it came from
	Default bool      `json:"default"`
	Size    int64     `json:"size"` // bytes
	Created time.Time `json:"created_at"`
}

// Manager runs the use cases. It is safe for concurrent use, also by several
// processes.
type Manager struct {
	cfg     Config
	drivers map[instance.Type]instance.Driver
	locks   *store.Locks // of instances
	pulls   *store.Locks // of images: waiting for another's pull is worth while
	tries   *store.Locks // of either: for what can be left to another
	intents *store.Intents

	projects projectstore.Store
	profiles *profileStores
}

// How long a command waits for another that changes the same thing.
const (
	lockWait = 10 * time.Second
	pullWait = 24 * time.Hour
)

// New makes a Manager. It does nothing yet.
func New(cfg Config) *Manager {
	m := &Manager{
		cfg:     cfg,
		drivers: map[instance.Type]instance.Driver{},
		locks:   store.NewLocks(filepath.Join(cfg.Dirs.Run, "locks"), lockWait),
		pulls:   store.NewLocks(filepath.Join(cfg.Dirs.Run, "locks"), pullWait),
		tries:   store.NewLocks(filepath.Join(cfg.Dirs.Run, "locks"), 0),
		intents: store.NewIntents(filepath.Join(cfg.Dirs.State, "intents")),

		projects: projectstore.New(filepath.Join(cfg.Dirs.State, "projects")),
	}
	m.profiles = &profileStores{known: map[string]profilestore.Store{}, dir: func(in string) string {
		if in == project.Default {
			return filepath.Join(cfg.Dirs.State, "profiles")
		}
		return m.projects.Profiles(in)
	}}
	for _, d := range cfg.Drivers {
		m.drivers[d.Type()] = d
	}
	if m.cfg.Progress == nil {
		m.cfg.Progress = images.Discard
	}
	if m.cfg.Clock == nil {
		m.cfg.Clock = time.Now
	}
	if m.cfg.Sleep == nil {
		m.cfg.Sleep = sleep
	}
	if m.cfg.Uptime == nil {
		m.cfg.Uptime = hostUptime
	}
	if m.cfg.Notice == nil {
		m.cfg.Notice = func(string) {}
	}
	return m
}

// sleep waits for d or the end of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// driver gives the driver of a form.
func (m *Manager) driver(t instance.Type) (instance.Driver, error) {
	d, ok := m.drivers[t]
	if !ok {
		return nil, fault.New(fault.Unsupported, "cannot run a %s: this brig has no driver for it", t)
	}
	return d, nil
}
