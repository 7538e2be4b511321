// Package zfs is the pool driver for ZFS. A volume is a dataset: an image's is
// made once, an instance's is a clone, a snapshot is a snapshot, and going back to
// one is a clone of it that takes the volume's place, so that newer snapshots stay
// where they are. Which dataset is which volume's is said by small records in the
// pool's own dataset, whose replacement is the one moment at which a change
// becomes real, and again by properties that `zfs list` shows. The disk of a virtual
// machine is a raw file in records of 32K: no zvol was seen to be quicker, and small
// writes after a snapshot of it take about half of what they take in records of 64K. DESIGN.md tells what is
// where, why it survives crashes, and what was measured.
package zfs

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"path"
	"path/filepath"
	"slices"

	gozfs "github.com/mistifyio/go-zfs/v4"
	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// poolFile is in a pool's own dataset, beside what package pooldir knows of.
const poolFile = "pool.json"

// Directories below Options.Dir, where datasets are mounted.
const (
	ownMount    = "pool"    // the pool's own dataset
	volumeMount = "volumes" // the volumes', by the names of their datasets
)

// formatVersion is the layout that this driver writes. A pool with a larger one
// was made by a newer brig and is left alone.
const formatVersion = 1

// Options say which pool to open. Dataset and Dir are needed.
type Options struct {
	Name    string // empty: default
	Dataset string // that Make made, such as tank/brig
	Dir     string // where its datasets are mounted while they are needed; lost with a reboot

	// Step, if set, is called after each step that changes the pool on disk, with
	// the step's name. Tests kill the program there.
	Step func(step string)
}

// Pool is a pool in a dataset. It holds no state beside an open directory, so any
// number of them, in any number of programs, may use one dataset.
type Pool struct {
	name    string
	dataset string
	dir     string
	root    *pooldir.Dir // of the pool's own dataset
	step    func(string)
	uuid    string
}

var _ storage.Pool = (*Pool)(nil)

// header is the content of pool.json.
type header struct {
	Version int    `json:"version"`
	Driver  string `json:"driver"`
	UUID    string `json:"uuid"`
}

// Open opens a pool that Make made. If its dataset is mounted already, no program
// is run for that.
func Open(ctx context.Context, o Options) (_ *Pool, err error) {
	defer storage.Fail(&err, "cannot open the pool in dataset %q", o.Dataset)
	if err := cmp.Or(checkDataset(o.Dataset), ctx.Err()); err != nil {
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
	p := &Pool{name: o.Name, dataset: o.Dataset, dir: o.Dir, step: o.Step}
	root, err := p.mountAt(ctx, p.dataset, filepath.Join(p.dir, ownMount), 0)
	if err != nil {
		if fault.Is(err, fault.NotFound) {
			return nil, fault.New(fault.Unavailable, "%w", errNoDataset)
		}
		return nil, err
	}
	if p.root, err = pooldir.Open(root); err != nil {
		return nil, err
	}
	if err := cmp.Or(p.checkHeader(), p.claim()); err != nil {
		p.Close()
		return nil, err
	}
	return p, nil
}

// errNoDataset tells that a pool's own dataset is not there.
var errNoDataset = errors.New("there is no such dataset")

// Close lets go of the pool's dataset. The volumes that were opened from it are
// of no more use.
func (p *Pool) Close() error { return p.root.Close() }

func (p *Pool) checkHeader() error {
	var h header
	err := p.root.ReadRecord(poolFile, &h)
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.WrongState, "the dataset is not one of brig's: it has no %s", poolFile)
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err)
	}
	if h.Driver != driverName || h.Version > formatVersion {
		return fault.New(fault.Unsupported, "it is a pool of driver %q in format %d, which this brig does not know", h.Driver, h.Version)
	}
	p.uuid = h.UUID
	return nil
}

// driverName is what the driver is called.
const driverName = "zfs"

// Info describes the pool.
func (p *Pool) Info(ctx context.Context) (_ storage.Info, err error) {
	defer storage.Fail(&err, "cannot tell about pool %q", p.name)
	if err := ctx.Err(); err != nil {
		return storage.Info{}, err
	}
	switch z, err := gozfs.GetZpool(p.zpool()); {
	case err != nil:
		return storage.Info{}, pooldir.Damaged(classify(err))
	case slices.Contains([]string{gozfs.ZpoolFaulted, gozfs.ZpoolUnavail, "SUSPENDED"}, z.Health):
		return storage.Info{}, fault.New(fault.Unavailable, "zpool %q is %s; see zpool status", p.zpool(), z.Health)
	}
	own, err := gozfs.GetDataset(p.dataset)
	if err != nil {
		return storage.Info{}, pooldir.Damaged(classify(err))
	}
	// What is kept for the pool's own dataset is not free for volumes.
	volumes, err := gozfs.GetDataset(p.full(string(storage.Instances)))
	if err != nil {
		return storage.Info{}, pooldir.Damaged(classify(err))
	}
	return storage.Info{
		Name:         p.name,
		Driver:       driverName,
		Source:       p.dataset,
		Total:        int64(own.Used + volumes.Avail),
		Free:         int64(volumes.Avail),
		Limits:       limits,
		Capabilities: capabilities(),
	}, ctx.Err()
}

func capabilities() storage.Capabilities {
	return storage.Capabilities{
		Contents:      []storage.Content{storage.Tree, storage.Disk},
		InstantClone:  true,
		LiveSnapshots: true,
		FixedIDs:      !canShiftIDs(moduleVersion()),
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

// Rename gives a volume another name. Its datasets keep theirs; the property that
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
	p.label(h.rec.dataset(), to)
	return nil
}

// label writes the name of a volume into the property of its dataset. The record
// is what counts, so a failure is not told.
func (p *Pool) label(dataset string, key storage.Key) {
	d := &gozfs.Dataset{Name: p.full(dataset)}
	if d.SetProperty(propVolume, key.String()) == nil {
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
	err = p.insist(func() error { return p.root.Rename(from, to.String()) })
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
	if err := p.idle(ctx, &h.rec); err != nil {
		return err
	}
	err = p.insist(func() error { return p.root.Rename(key.String(), path.Join(pooldir.Trash, pooldir.NewID())) })
	if err != nil {
		return err
	}
	p.step("deleted")
	p.unmount(h.rec.dataset())
	return pooldir.Sync(p.root, string(key.Class))
}

// deleteDamaged deletes a volume whose record cannot be read, which is how one
// gets rid of it. Its datasets are found by their properties.
func (p *Pool) deleteDamaged(ctx context.Context, key storage.Key) error {
	objects, err := p.labelled(ctx, key)
	if err != nil {
		return err
	}
	c, err := p.begin(ctx, objects...)
	if err != nil {
		return err
	}
	defer c.end()
	if err := p.root.Rename(key.String(), c.dir.Path("damaged")); err != nil {
		return err
	}
	c.wasteful = true
	return pooldir.Sync(p.root, string(key.Class))
}

// full gives the name of an object of this pool for the zfs command.
func (p *Pool) full(object string) string { return p.dataset + "/" + object }

// gone says that a volume's dataset or snapshot is not where its record says, if
// err says so. Other volumes are not concerned.
func gone(err error) error {
	if fault.Is(err, fault.NotFound) || errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.Unavailable, "somebody destroyed or renamed what holds its data: bring it back by zfs rename, or delete the volume: %w", err)
	}
	return err
}
