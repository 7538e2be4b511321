// Package btrfs is the pool driver for btrfs. A volume is a subvolume with the
// metadata files beside rootfs/ or the disk; images are read-only subvolumes,
// instances snapshots of them, and what a snapshot of a volume costs is one ioctl.
// Nothing here runs btrfs-progs but the making of a file system. Quota groups stay
// off until the first limit is set, and then are simple ones. A disk is a raw file
// that is copied on write and checksummed. DESIGN.md tells what is on disk, why
// death at any point does no harm, and has the figures behind these choices.
package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
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
	poolFile    = "pool.json"
	reserveFile = "reserve"
)

// formatVersion is the layout that this driver writes. A pool or volume with a
// larger one was made by a newer brig and is left alone.
const formatVersion = 1

// Options change a pool. The zero value is a pool named "default".
type Options struct {
	Name string

	// Existing keeps Open from making a pool where there is none.
	Existing bool

	// Step, if set, is called after each step that changes the pool on disk, with
	// the step's name. Tests kill the program there.
	Step func(step string)

	medium string // the device or file that the pool has for itself
	at     string // where that is mounted
}

// Pool is a pool in a directory on btrfs. It holds no state beside its open
// directory, so any number of them, in any number of programs, may use one.
type Pool struct {
	dir    string
	root   *pooldir.Dir
	name   string
	medium string
	at     string // where the medium is mounted
	must   bool   // be there
	step   func(string)
}

var _ storage.Pool = (*Pool)(nil)

// header is the content of pool.json.
type header struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	UUID    string `json:"uuid"`
}

// Open opens the pool in dir, which is on btrfs, and makes it if there is none
// yet: in a directory that is missing or empty. The caller closes it.
func Open(dir string, o Options) (_ *Pool, err error) {
	defer storage.Fail(&err, "cannot open the pool in %q", dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, err
	}
	p := &Pool{dir: dir, name: o.Name, medium: o.medium, at: o.at, must: o.Existing, step: o.Step}
	if p.name == "" {
		p.name = "default"
	}
	if p.step == nil {
		p.step = func(string) {}
	}
	if p.root, err = pooldir.OpenFolder(dir, !o.Existing); err != nil {
		return nil, err
	}
	if err := p.check(); err != nil {
		p.root.Close()
		return nil, err
	}
	return p, nil
}

// Close lets go of the pool's directory.
func (p *Pool) Close() error { return p.root.Close() }

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
	if h.Driver != "btrfs" || h.Version > formatVersion {
		return fault.New(fault.Unsupported, "it is a pool of driver %q in format %d, which this brig does not know", h.Driver, h.Version)
	}
	return p.checkFileSystem()
}

// checkFileSystem refuses what is not btrfs.
func (p *Pool) checkFileSystem() error {
	st, err := p.statfs()
	if err != nil {
		return err
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return fault.New(fault.Unsupported, "its file system is not btrfs: give a directory on btrfs, a block device, or a size for a file")
	}
	return nil
}

// create makes the pool in a directory that holds nothing else. Two programs may
// do so at once; the one that comes second finds what the first made.
func (p *Pool) create() error {
	known := []string{pooldir.Staging, pooldir.Trash}
	for _, c := range pooldir.Classes() {
		known = append(known, string(c))
	}
	names, err := pooldir.Names(p.root, ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if !slices.Contains(known, name) && name != reserveFile && !strings.HasPrefix(name, poolFile) && !owner.Mine(name) {
			return fault.New(fault.WrongState, "there is %q in it, and no pool: give an empty directory", name)
		}
	}
	if err := p.checkFileSystem(); err != nil {
		return err
	}
	if err := p.root.Chmod(".", 0o700); err != nil {
		return err
	}
	for _, name := range known {
		if err := p.root.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	p.step("pool directories")
	if err := p.makeReserve(); err != nil {
		return err
	}
	return p.writeHeader()
}

// writeHeader writes pool.json unless another program has done so meanwhile.
func (p *Pool) writeHeader() error {
	temporary := poolFile + "." + pooldir.NewID()
	if err := writeFile(p.root.Root, temporary, header{Version: formatVersion, Driver: "btrfs", UUID: pooldir.NewID() + pooldir.NewID()}); err != nil {
		return err
	}
	p.step("pool header")
	err := p.root.Link(temporary, poolFile)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, p.root.Remove(temporary), p.syncAll())
}

// Info describes the pool.
func (p *Pool) Info(ctx context.Context) (_ storage.Info, err error) {
	defer storage.Fail(&err, "cannot tell about pool %q", p.name)
	st, err := p.statfs()
	if err != nil {
		return storage.Info{}, err
	}
	limits, err := p.limits()
	if err != nil {
		return storage.Info{}, err
	}
	return storage.Info{
		Name:   p.name,
		Driver: "btrfs",
		Source: cmp.Or(p.medium, p.dir),
		Total:  int64(st.Blocks) * st.Bsize,
		Free:   int64(st.Bavail) * st.Bsize,
		Limits: limits,
		Capabilities: storage.Capabilities{
			Contents:      []storage.Content{storage.Tree, storage.Disk},
			InstantClone:  true,
			LiveSnapshots: true,
		},
	}, ctx.Err()
}

// List names the volumes of a class: the directories that have a record.
func (p *Pool) List(ctx context.Context, class storage.Class) (_ []string, err error) {
	defer storage.Fail(&err, "cannot list the volumes %q of pool %q", class, p.name)
	if err := (storage.Key{Class: class, Name: "x"}).Check(); err != nil {
		return nil, err
	}
	names, err := p.withFile(string(class), volumeFile)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	return names, ctx.Err()
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
	return &volume{pool: p, key: key, rec: rec}, nil
}

// Rename gives a volume another name.
func (p *Pool) Rename(ctx context.Context, key storage.Key, name string) (err error) {
	defer storage.Fail(&err, "cannot rename volume %q to %q", key, name)
	to := storage.Key{Class: key.Class, Name: name}
	if err := cmp.Or(key.Check(), to.Check(), ctx.Err()); err != nil {
		return err
	}
	v, err := p.load(key)
	if err != nil {
		return err
	}
	if err := p.idle(key, v.Content); err != nil {
		return err
	}
	if err := p.move(key.String(), to.String()); err != nil {
		return err
	}
	p.step("renamed")
	return pooldir.Sync(p.root, string(key.Class))
}

// move renames from to to, if there is nothing yet. What is left there of
// something deleted is taken away.
func (p *Pool) move(from, to string) error {
	dir, err := p.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	fd := int(dir.Fd())
	err = unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EEXIST) && from != to {
		if gone, _ := p.half(to); gone {
			if err := pooldir.IgnoreMissing(p.discard(to)); err != nil {
				return err
			}
			err = unix.Renameat2(fd, from, fd, to, unix.RENAME_NOREPLACE)
		}
	}
	switch {
	case errors.Is(err, unix.EEXIST):
		return fault.New(fault.AlreadyExists, "there is %q already", path.Base(to))
	case errors.Is(err, fs.ErrNotExist):
		return fault.New(fault.NotFound, "there is no %q", from)
	case err != nil:
		return fmt.Errorf("rename: %w", err)
	}
	return nil
}

// Delete removes a volume from sight.
func (p *Pool) Delete(ctx context.Context, key storage.Key) (err error) {
	defer storage.Fail(&err, "cannot delete volume %q", key)
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
		return err
	}
	switch rec, err := p.load(key); {
	case fault.Is(err, fault.Unavailable) && p.has(key.String()):
		// Its record is damaged. This is how one gets rid of it.
	case err != nil:
		return err
	default:
		if err := p.idle(key, rec.Content); err != nil {
			return err
		}
	}
	if err := p.drop(key.String(), volumeFile); err != nil {
		return err
	}
	p.step("deleted")
	return pooldir.Sync(p.root, string(key.Class))
}

// has tells whether there is something with this name.
func (p *Pool) has(name string) bool {
	_, err := p.root.Lstat(name)
	return err == nil
}

// syncAll makes everything in the file system durable.
func (p *Pool) syncAll() error {
	d, err := p.root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return syncAll(d)
}

func (p *Pool) path(parts ...string) string {
	return filepath.Join(append([]string{p.dir}, parts...)...)
}
