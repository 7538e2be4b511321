// Package overlay is the pool driver for any ext4 or xfs host. Data lives in
// layers: a Tree's are stacked by overlayfs, a Disk's are qcow2 files that stand
// on each other. A volume is a small record that names its layers, so that clone,
// snapshot and restore write one record and make one empty layer, whatever the
// volume holds, and replacing the record is the one moment at which a change
// becomes real. DESIGN.md tells what is on disk and why it survives crashes.
package overlay

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/owner"
	"brig/storage/pooldir"
)

// What is in a pool's directory beside the directories of the volume classes.
const (
	poolFile  = "pool.json"
	layersDir = "layers"
)

// formatVersion is the layout that this driver writes. A pool or volume with a
// larger one was made by a newer brig and is left alone. In format 1, no snapshot
// had a file.
const formatVersion = 2

// Options change a pool. The zero value is a pool named "default".
type Options struct {
	Name string

	// Existing keeps Open from making a pool where there is none.
	Existing bool

	// Step, if set, is called after each step that changes the pool on disk, with
	// the step's name. Tests kill the program there.
	Step func(step string)
}

// Pool is a pool in a directory. It holds no state beside its open directory, so
// any number of them, in any number of programs, may use one directory.
type Pool struct {
	dir  string
	root *pooldir.Dir
	name string
	must bool // be there
	step func(string)
}

var _ storage.Pool = (*Pool)(nil)

// header is the content of pool.json.
type header struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	UUID    string `json:"uuid"`
}

// Open opens the pool in dir, and makes it if there is none yet: in a directory
// that is missing or empty.
func Open(dir string, o Options) (_ *Pool, err error) {
	defer storage.Fail(&err, "cannot open the pool in %q", dir)
	if o.Name == "" {
		o.Name = "default"
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	p := &Pool{dir: dir, name: o.Name, must: o.Existing, step: o.Step}
	if p.root, err = pooldir.OpenFolder(dir, !o.Existing); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		p.root.Close()
		return nil, err
	}
	return p, nil
}

// check reads pool.json, or makes the pool.
func (p *Pool) check() error {
	var h header
	err := p.root.ReadRecord(poolFile, &h)
	if errors.Is(err, fs.ErrNotExist) {
		if p.must {
			return fault.New(fault.Unavailable, "there is no pool in it: is a disk missing that has to be mounted there?")
		}
		return p.create()
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err)
	}
	if h.Driver != "overlay" || h.Version > formatVersion {
		return fault.New(fault.Unsupported, "it is a pool of driver %q in format %d, which this brig does not know", h.Driver, h.Version)
	}
	return nil
}

// create makes the pool in a directory that holds nothing else. Two programs may
// do so at once; the one that comes second finds what the first made.
func (p *Pool) create() error {
	known := parts()
	names, err := pooldir.Names(p.root, ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(known, name) && !isPoolFile(name) && name != "lost+found" {
			return fault.New(fault.WrongState, "there is %q in it, and no pool: give an empty directory", name)
		}
	}
	if err := p.checkFileSystem(); err != nil {
		return err
	}
	if err := os.Chmod(p.dir, 0o700); err != nil {
		return err
	}
	for _, name := range known {
		if err := p.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	// The header says that they are there, so they are there first, also after a power cut.
	if err := pooldir.Sync(p.root, "."); err != nil {
		return err
	}
	p.step("pool directories")
	return p.writeHeader()
}

// parts are the folders of a pool.
func parts() []string {
	names := []string{layersDir, pooldir.Staging, pooldir.Trash}
	for _, c := range pooldir.Classes() {
		names = append(names, string(c))
	}
	return names
}

// isPoolFile tells whether a file beside them is one of the pool's.
func isPoolFile(name string) bool { return strings.HasPrefix(name, poolFile) || owner.Mine(name) }

// writeHeader writes pool.json unless another program has done so meanwhile.
func (p *Pool) writeHeader() error {
	b, err := json.Marshal(header{Version: formatVersion, Driver: "overlay", UUID: pooldir.NewID() + pooldir.NewID()})
	if err != nil {
		return err
	}
	temporary := poolFile + "." + pooldir.NewID()
	if err := pooldir.Write(p.root, temporary, append(b, '\n')); err != nil {
		return err
	}
	p.step("pool header")
	err = p.root.Link(temporary, poolFile)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, p.root.Remove(temporary), pooldir.Sync(p.root, "."))
}

// checkFileSystem refuses file systems on which overlayfs cannot write.
func (p *Pool) checkFileSystem() error {
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return err
	}
	switch st.Type {
	case unix.OVERLAYFS_SUPER_MAGIC, unix.NFS_SUPER_MAGIC, unix.V9FS_MAGIC, unix.FUSE_SUPER_MAGIC, unix.SMB2_SUPER_MAGIC:
		return fault.New(fault.Unsupported, "its file system cannot hold the layers of an overlay: use ext4, xfs or btrfs")
	}
	return nil
}

// Info describes the pool.
func (p *Pool) Info(ctx context.Context) (_ storage.Info, err error) {
	defer storage.Fail(&err, "cannot tell about pool %q", p.name)
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return storage.Info{}, fault.Wrap(fault.Unavailable, err)
	}
	return storage.Info{
		Name:   p.name,
		Driver: "overlay",
		Source: p.dir,
		Total:  int64(st.Blocks) * st.Bsize,
		Free:   int64(st.Bavail) * st.Bsize,
		Limits: "a disk has its own size; trees share all that is free",
		Capabilities: storage.Capabilities{
			Contents:     []storage.Content{storage.Tree, storage.Disk},
			InstantClone: true,
		},
	}, ctx.Err()
}

// List names the volumes of a class.
func (p *Pool) List(ctx context.Context, class storage.Class) (_ []string, err error) {
	defer storage.Fail(&err, "cannot list the volumes %q of pool %q", class, p.name)
	return p.root.List(ctx, class)
}

// Open gives a volume.
func (p *Pool) Open(ctx context.Context, key storage.Key) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot open volume %q", key)
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
		return nil, err
	}
	rec, err := p.load(key)
	if err != nil {
		return nil, err
	}
	return &volume{pool: p, key: key, last: rec}, nil
}

// Rename gives a volume another name.
func (p *Pool) Rename(ctx context.Context, key storage.Key, name string) (err error) {
	defer storage.Fail(&err, "cannot rename volume %q to %q", key, name)
	to := storage.Key{Class: key.Class, Name: name}
	if err := cmp.Or(key.Check(), to.Check(), ctx.Err()); err != nil {
		return err
	}
	h, err := p.lockVolume(ctx, key)
	if err != nil {
		return err
	}
	defer h.dir.Close()
	release, err := p.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := p.move(key.String(), to); err != nil {
		return err
	}
	p.step("renamed")
	return nil
}

// move makes the directory at from the volume to, if there is none yet.
func (p *Pool) move(from string, to storage.Key) error {
	pool, err := p.root.Open(".")
	if err != nil {
		return err
	}
	defer pool.Close()
	fd := int(pool.Fd())
	err = unix.Renameat2(fd, from, fd, to.String(), unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fault.New(fault.AlreadyExists, "there is a volume %q already", to)
	case err != nil:
		return fmt.Errorf("rename: %w", err)
	}
	return pooldir.Sync(p.root, string(to.Class))
}

// Delete removes a volume from sight.
func (p *Pool) Delete(ctx context.Context, key storage.Key) (err error) {
	defer storage.Fail(&err, "cannot delete volume %q", key)
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
		return err
	}
	h, err := p.lockVolume(ctx, key)
	switch _, there := p.root.Lstat(key.String()); {
	case fault.Is(err, fault.Unavailable) && there == nil:
		// Its record is damaged. This is how one gets rid of it.
	case err != nil:
		return err
	default:
		defer h.dir.Close()
		if err := p.idle(&h.rec); err != nil {
			return err
		}
	}
	if err := p.discard(key.String()); err != nil {
		return err
	}
	p.step("deleted")
	return pooldir.Sync(p.root, string(key.Class))
}

// gonePrefix marks what is deleted but could not be moved to the trash, because
// the trash has no room for one more name on a full file system.
const gonePrefix = ".gone-"

// discard takes the directory at path out of sight at once. It is one of those in the
// directories of the pool, never one of these themselves.
func (p *Pool) discard(path string) error {
	if filepath.Dir(path) == "." {
		return fmt.Errorf("cannot throw %q away, where much is kept", path)
	}
	err := p.root.Rename(path, filepath.Join(pooldir.Trash, pooldir.NewID()))
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		err = p.root.Rename(path, filepath.Join(filepath.Dir(path), gonePrefix+pooldir.NewID()))
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
