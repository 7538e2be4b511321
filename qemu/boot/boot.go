// Package boot keeps the kernels that virtual machines are booted with, and
// makes their initramfs.
//
// A kernel is used in this order: the one in the machine's own image
// (FromTree), if it has one; else the newest in the store, which somebody
// imported or brig fetched; else the newest of the host's own in /boot whose
// modules are in /lib/modules; else the host's apt fetches Debian's kernel for
// virtual machines into the store (Ensure). A kernel counts only if it can reach
// a virtio disk.
package boot

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/durable"
	"brig/instance/fault"
)

// Progress is told in a few words what takes time. It may be nil.
type Progress func(what string)

func (p Progress) say(format string, args ...any) {
	if p != nil {
		p(fmt.Sprintf(format, args...))
	}
}

// The sources of a kernel.
const (
	SourceHost   = "host"   // in /boot; not in the store
	SourceImport = "import" // imported by somebody
	SourceFetch  = "fetch"  // fetched by brig
	SourceImage  = "image"  // of an instance image; used for that image only
)

// Info is what is known of a kernel.
type Info struct {
	Name       string    `json:"name"`
	Version    string    `json:"version"`
	Source     string    `json:"source"`
	ImportedAt time.Time `json:"imported_at,omitzero"`
	Image      string    `json:"-"` // host path of vmlinuz
	Modules    string    `json:"-"` // host path of the modules; empty: none
	Size       int64     `json:"-"` // bytes of vmlinuz
	Default    bool      `json:"-"` // what Ensure gives
}

// Kernel is the kernel as a machine needs it.
func (i Info) Kernel() instance.Kernel {
	return instance.Kernel{Name: i.Name, Image: i.Image, Modules: i.Modules, Version: i.Version}
}

// Store is the folder with the kernels. Its methods may be used by many
// processes at once.
type Store struct {
	dir  string // state directory of the kernels
	host string // root of the host's own kernels
}

// New uses dir, which is made when something is put into it.
func New(dir string) *Store { return &Store{dir: dir, host: "/"} }

// The files of a kernel in the store, and what begins with a dot beside them.
const (
	imageFile   = "vmlinuz"
	modulesDir  = "modules"
	infoFile    = "kernel.json"
	lockFile    = ".lock"
	stagingName = ".new-"
	cacheDir    = ".initramfs"
	maxInfo     = 64 << 10
)

// validName tells whether s has the form of a kernel's name: at most 128 letters,
// digits and ._+~-, a letter or digit first. (A regular expression would be
// compiled at the start of every command.)
func validName(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z':
		case i > 0 && strings.IndexByte("._+~-", c) >= 0:
		default:
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// List names the kernels of the store and of the host, newest version first.
func (s *Store) List() ([]Info, error) {
	list, err := s.stored()
	if err != nil {
		return nil, err
	}
	for _, info := range s.images() {
		if usable(info) {
			list = append(list, info)
		}
	}
	slices.SortStableFunc(list, newestFirst)
	chosen, _, err := s.choose()
	for i := range list {
		list[i].Default = list[i].Name == chosen.Name
		if st, err := os.Stat(list[i].Image); err == nil {
			list[i].Size = st.Size()
		}
	}
	return list, err
}

func newestFirst(a, b Info) int {
	return cmp.Or(compareVersions(b.Version, a.Version), cmp.Compare(a.Name, b.Name))
}

// stored lists the kernels in the store, newest first.
func (s *Store) stored() ([]Info, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list kernels: %w", err)
	}
	var list []Info
	for _, e := range entries {
		if !validName(e.Name()) {
			continue
		}
		info, err := s.Info(e.Name())
		if err != nil {
			return nil, err
		}
		list = append(list, info)
	}
	slices.SortFunc(list, newestFirst)
	return list, nil
}

// images lists the kernel images of the host, newest first, usable or not.
func (s *Store) images() []Info {
	paths, _ := filepath.Glob(filepath.Join(s.host, "boot", "vmlinuz-*"))
	var list []Info
	for _, image := range paths {
		if version, err := imageVersion(image); err == nil {
			list = append(list, Info{
				Name: "host-" + version, Version: version, Source: SourceHost, Image: image,
				Modules: filepath.Join(s.host, "lib", "modules", version),
			})
		}
	}
	slices.SortFunc(list, newestFirst)
	return list
}

// usable tells whether a kernel of the host can boot virtual machines.
func usable(info Info) bool {
	m, err := readModules(os.DirFS(info.Modules))
	return err == nil && m.check() == nil
}

// Info describes a kernel of the store. An unknown one is not-found.
func (s *Store) Info(name string) (Info, error) {
	if !validName(name) {
		return Info{}, fault.New(fault.Invalid, "cannot use the kernel name %q: want letters, digits and . _ + ~ - only", name)
	}
	dir := filepath.Join(s.dir, name)
	f, err := os.Open(filepath.Join(dir, infoFile))
	if errors.Is(err, fs.ErrNotExist) {
		return Info{}, fault.New(fault.NotFound, "cannot find kernel %q; see the list of kernels", name)
	}
	if err != nil {
		return Info{}, fmt.Errorf("cannot read kernel %q: %w", name, err)
	}
	defer f.Close()
	var info Info
	if err := json.NewDecoder(io.LimitReader(f, maxInfo)).Decode(&info); err != nil {
		return Info{}, fmt.Errorf("cannot read kernel %q: %w", name, err)
	}
	info.Name, info.Image = name, filepath.Join(dir, imageFile)
	if modules := filepath.Join(dir, modulesDir); isDir(modules) {
		info.Modules = modules
	}
	return info, nil
}

// Ensure gives the kernel for machines whose image has none, and fetches it if
// there is none yet. It is unavailable when that fails.
func (s *Store) Ensure(ctx context.Context, p Progress) (instance.Kernel, error) {
	if info, ok, err := s.choose(); ok || err != nil {
		return info.Kernel(), err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return instance.Kernel{}, err
	}
	defer unlock()
	// Another process may have fetched it while this one waited.
	if info, ok, err := s.choose(); ok || err != nil {
		return info.Kernel(), err
	}
	info, err := s.fetch(ctx, metaPackages, ImportOptions{Progress: p})
	if err != nil {
		return instance.Kernel{}, fault.New(fault.Unavailable,
			"cannot get a kernel for virtual machines: %w; import one with: brig kernel import FILE.deb|DIRECTORY", err)
	}
	return info.Kernel(), nil
}

// choose picks by the rule in the package comment.
func (s *Store) choose() (Info, bool, error) {
	list, err := s.stored()
	if err != nil {
		return Info{}, false, err
	}
	for _, info := range list {
		if info.Source != SourceImage {
			return info, true, nil
		}
	}
	for _, info := range s.images() {
		if usable(info) {
			return info, true, nil
		}
	}
	return Info{}, false, nil
}

// Delete removes a kernel from the store. Running machines do not need it any
// more.
func (s *Store) Delete(ctx context.Context, name string) error {
	if _, err := s.Info(name); err != nil {
		return err
	}
	unlock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	gone := filepath.Join(s.dir, stagingName+"gone-"+name)
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("cannot delete kernel %q: %w", name, err)
	}
	if err := os.Rename(filepath.Join(s.dir, name), gone); err != nil {
		return fmt.Errorf("cannot delete kernel %q: %w", name, err)
	}
	return os.RemoveAll(gone)
}

// lockEvery is how long a busy lock is left before it is tried again.
const lockEvery = 50 * time.Millisecond

// lock keeps others from changing the store, and removes what a dead process
// left in it. It waits until ctx ends.
func (s *Store) lock(ctx context.Context) (unlock func(), err error) {
	if err := durable.MkdirAll(s.dir, 0o755); err != nil {
		return nil, fmt.Errorf("cannot make the folder of kernels: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock the kernels: %w", err)
	}
	tick := time.NewTicker(lockEvery)
	defer tick.Stop()
	for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("cannot lock the kernels, which another process is changing: %w", ctx.Err())
		case <-tick.C:
		}
	}
	left, err := filepath.Glob(filepath.Join(s.dir, stagingName+"*"))
	for _, dir := range left {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot clean up the kernels: %w", err)
	}
	return func() { f.Close() }, nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
