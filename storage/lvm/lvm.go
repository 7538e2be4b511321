// Package lvm is the pool driver for thin volumes of LVM. A volume is a logical
// volume of its own: with an ext4 on it for a tree, raw for a disk. Clones, snapshots
// and what a volume goes back to are thin snapshots, none of which needs another one.
// Which logical volume is which volume's is said by small records in a file system
// that the pool has beside the thin pool, so that it has room when that has none; the
// replacement of a record is the one moment at which a change becomes real. Tags
// tell it again, to whoever looks with lvs. DESIGN.md tells what is where, why it
// survives crashes and a full pool, and what was measured.
package lvm

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// What is on a pool's own volume beside the directories of the volume classes.
const (
	poolFile     = "pool.json"
	snapshotsDir = "snapshots" // metadata files of snapshots, by the ids of these
)

// Directories below Options.Dir.
const (
	ownMount    = "pool"    // where the pool's own volume is mounted
	volumeMount = "volumes" // and the others, by their ids
	usedDir     = "used"    // when a volume was last asked for, by its id
)

// formatVersion is the layout that this driver writes. A pool with a larger one
// was made by a newer brig and is left alone.
const formatVersion = 1

// Options say which pool to open. All but Name, File and Step are needed.
type Options struct {
	Name string // empty: default
	VG   string // the volume group
	Thin string // the thin pool in it
	ID   string // of the pool that Make made there: the names of its logical volumes begin with it
	Dir  string // where volumes are mounted while they are needed; lost with a reboot
	File string // that the volume group is in, if it is in one of the pool's own

	// Step, if set, is called after each step that changes the pool on disk, with
	// the step's name. Tests kill the program there.
	Step func(step string)
}

// check refuses names that could mean something else to the commands.
func (o Options) check() error {
	if !isPoolName(o.ID) {
		return fault.New(fault.Invalid, "%q is no pool's id", o.ID)
	}
	return cmp.Or(checkLVMName("volume group", o.VG), checkLVMName("thin pool", o.Thin))
}

// Pool is a pool in a thin pool. What it holds in memory is an open directory and the
// last measurement, so any number of them, in any number of programs of one host, may
// use one pool.
type Pool struct {
	name     string
	vg, thin string
	id       string
	dir      string
	file     string
	root     *pooldir.Dir // of the pool's own volume
	step     func(string)

	mu       sync.Mutex
	measured *measure // guarded by mu
}

var _ storage.Pool = (*Pool)(nil)

// header is the content of pool.json.
type header struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	ID      string `json:"id"`
	Thin    string `json:"thin"` // the thin pool
}

func newPool(o Options) (p *Pool, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = "default"
	}
	if o.Step == nil {
		o.Step = func(string) {}
	}
	if o.Dir, err = filepath.Abs(o.Dir); err != nil {
		return nil, err
	}
	return &Pool{name: o.Name, vg: o.VG, thin: o.Thin, id: o.ID, dir: o.Dir, file: o.File, step: o.Step}, nil
}

// Open opens a pool that Make made. If its own volume is mounted already, no program
// is run for that.
func Open(ctx context.Context, o Options) (_ *Pool, err error) {
	defer storage.Fail(&err, "cannot open the pool %q in volume group %q", o.ID, o.VG)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	p, err := newPool(o)
	if err != nil {
		return nil, err
	}
	if err := p.mountOwn(ctx); err != nil {
		return nil, err
	}
	if _, err := p.header(); err != nil {
		p.Close()
		return nil, err
	}
	if _, err := p.fill(); fault.Is(err, fault.Unavailable) {
		// If that does not help, what needs the thin pool says so; the rest works.
		lvm(ctx, "lvchange", "-ay", "--", p.vg+"/"+p.thin)
	}
	return p, nil
}

// mountOwn makes sure that the pool's own volume is mounted, and opens it.
func (p *Pool) mountOwn(ctx context.Context) (err error) {
	root, err := p.mountAt(ctx, ownVolume, filepath.Join(p.dir, ownMount), 0)
	if fault.Is(err, fault.NotFound) {
		return p.lost(ctx, err)
	}
	if err != nil {
		return err
	}
	p.root, err = pooldir.Open(root)
	return err
}

// lost says where a pool is that is not where it was.
func (p *Pool) lost(ctx context.Context, err error) error {
	found, e := lvs(ctx, "@"+tagPool+p.id, "")
	if e == nil && len(found) > 0 && found[0].VG != p.vg {
		return fault.New(fault.Unavailable, "it is in volume group %q now: give that its old name with vgrename", found[0].VG)
	}
	return fault.New(fault.Unavailable, "%w; if its disk is on this host, see pvs and vgs", err)
}

// Close lets go of the pool. The volumes that were opened from it are of no more
// use.
func (p *Pool) Close() error { return p.root.Close() }

// header reads pool.json.
func (p *Pool) header() (h header, err error) {
	err = p.root.ReadRecord(poolFile, &h)
	if errors.Is(err, fs.ErrNotExist) {
		return h, fault.New(fault.WrongState, "the volume %q is not one of brig's: it has no %s", p.full(ownVolume), poolFile)
	}
	if err != nil {
		return h, fault.Wrap(fault.Unavailable, err)
	}
	if h.Driver != driverName || h.Version > formatVersion {
		return h, fault.New(fault.Unsupported, "it is a pool of driver %q in format %d, which this brig does not know", h.Driver, h.Version)
	}
	return h, nil
}

// driverName is what the driver is called.
const driverName = "lvm"

// Info describes the pool. What is kept for machines that run when all else is full
// counts as none of it.
func (p *Pool) Info(ctx context.Context) (_ storage.Info, err error) {
	defer storage.Fail(&err, "cannot tell about pool %q", p.name)
	if err := ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	f, err := p.settled()
	if err != nil {
		return storage.Info{}, err
	}
	return storage.Info{
		Name:         p.name,
		Driver:       driverName,
		Source:       p.vg + "/" + p.thin,
		Total:        f.total*f.chunk - f.reserve(),
		Free:         f.free(),
		Limits:       limits,
		Capabilities: capabilities(),
	}, nil
}

func capabilities() storage.Capabilities {
	return storage.Capabilities{
		Contents:      []storage.Content{storage.Tree, storage.Disk},
		InstantClone:  true,
		LiveSnapshots: true,
	}
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

// Rename gives a volume another name. Its logical volumes keep theirs; the tag that
// shows the volume's name follows.
func (p *Pool) Rename(ctx context.Context, key storage.Key, name string) (err error) {
	defer storage.Fail(&err, "cannot rename volume %q to %q", key, name)
	to := storage.Key{Class: key.Class, Name: name}
	if err := cmp.Or(key.Check(), to.Check(), ctx.Err()); err != nil {
		return err
	}
	h, err := p.lockVolume(ctx, key, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer h.dir.Close()
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	if err := p.move(ctx, key.String(), to); err != nil {
		return err
	}
	p.step("renamed")
	p.label(ctx, h.rec.Data, key, to)
	return nil
}

// label changes the tag of a volume's name. The record is what counts, so a failure
// is not told.
func (p *Pool) label(ctx context.Context, id string, from, to storage.Key) {
	_, err := lvm(ctx, "lvchange", "-An", "--deltag", tagVolume+from.String(), "--addtag", tagVolume+to.String(), "--", p.full(id))
	if err == nil {
		p.step("labelled")
	}
}

// move makes the directory at from the volume to, if there is none yet. The
// directory of a volume is never empty, so it cannot take the place of another.
func (p *Pool) move(ctx context.Context, from string, to storage.Key) error {
	if from == to.String() {
		return fault.New(fault.AlreadyExists, "it has this name")
	}
	release, err := p.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	err = p.root.Rename(from, to.String())
	switch {
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOTEMPTY):
		return fault.New(fault.AlreadyExists, "there is a volume %q already", to)
	case err != nil:
		return err
	}
	return pooldir.Sync(p.root, string(to.Class))
}

// Delete removes a volume from sight: its record goes to the trash, which tells
// Sweep what to destroy.
func (p *Pool) Delete(ctx context.Context, key storage.Key) (err error) {
	defer storage.Fail(&err, "cannot delete volume %q", key)
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
		return err
	}
	h, err := p.lockVolume(ctx, key, unix.LOCK_EX)
	switch _, there := p.root.Lstat(key.String()); {
	case fault.Is(err, fault.Unavailable) && there == nil:
		return p.deleteDamaged(ctx, key)
	case err != nil:
		return err
	}
	defer h.dir.Close()
	if err := p.idle(&h.rec); err != nil {
		return err
	}
	if err := p.root.Rename(key.String(), path.Join(pooldir.Trash, pooldir.NewID())); err != nil {
		return err
	}
	p.step("deleted")
	for _, id := range h.rec.ids() {
		p.unmount(id)
	}
	return pooldir.Sync(p.root, string(key.Class))
}

// deleteDamaged deletes a volume whose record cannot be read, which is how one
// gets rid of it. Its logical volumes are found by their tags.
func (p *Pool) deleteDamaged(ctx context.Context, key storage.Key) error {
	ids, err := p.labelled(ctx, key)
	if err != nil {
		return err
	}
	c, err := p.begin(ctx, ids...)
	if err != nil {
		return err
	}
	defer c.end()
	if err := p.root.Rename(key.String(), c.dir.Path("damaged")); err != nil {
		return err
	}
	c.done, c.wasteful = true, true
	return pooldir.Sync(p.root, string(key.Class))
}
