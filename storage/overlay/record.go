package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// What is in a volume's directory.
const (
	recordFile   = "volume.json"
	snapshotsDir = "snapshots"
	asideDir     = "aside"
)

// record is the content of volume.json. It is the truth about a volume: a layer
// or snapshot directory that no record names is waste.
type record struct {
	Version   int             `json:"version"`
	Content   storage.Content `json:"content"`
	Flat      bool            `json:"flat,omitempty"`      // the active layer is the whole tree
	Active    string          `json:"active,omitempty"`    // the layer that is written; images have none
	Next      string          `json:"next,omitempty"`      // a disk that a running machine was told to go on in
	Layers    []string        `json:"layers"`              // frozen ones, top first
	Merged    []string        `json:"merged,omitempty"`    // others that show the same, which a disk may stand on instead: its header says
	Snapshots []snapshot      `json:"snapshots,omitempty"` // that have no file: the newest; in format 1 all
}

// all gives every layer that r names.
func (r *record) all() []string {
	all := slices.Concat(r.Layers, r.Merged)
	for _, id := range []string{r.Active, r.Next} {
		if id != "" {
			all = append(all, id)
		}
	}
	for _, s := range r.Snapshots {
		all = append(all, s.Layers...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// clone gives a copy that shares nothing.
func (r *record) clone() record {
	c := *r
	c.Layers = slices.Clone(r.Layers)
	c.Snapshots = slices.Clone(r.Snapshots)
	return c
}

// load reads the record of a volume. A missing volume is not-found.
func (p *Pool) load(key storage.Key) (record, error) {
	rec, err := p.read(key.String())
	if errors.Is(err, fs.ErrNotExist) {
		return rec, p.root.Missing(key)
	}
	return rec, err
}

// read reads the record of the volume in the directory dir of the pool.
func (p *Pool) read(dir string) (rec record, err error) {
	if err := p.root.ReadRecord(path.Join(dir, recordFile), &rec); err != nil {
		return rec, err
	}
	if rec.Version > formatVersion {
		return rec, fault.New(fault.Unsupported, "%q was written by a newer brig in format %d", dir, rec.Version)
	}
	for _, id := range rec.all() {
		if !pooldir.ValidID(id) {
			return rec, fault.New(fault.Unavailable, "the record of %q is damaged: it names a layer %q", dir, id)
		}
	}
	if len(rec.Layers) == 0 && (!rec.Flat || rec.Active == "") {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: it names no layer", dir)
	}
	rec.Snapshots = slices.DeleteFunc(rec.Snapshots, func(s snapshot) bool { return !p.hasSnapshot(dir, s.ID) })
	return rec, nil
}

// readAll is read with all snapshots in the record, which is not to be saved.
func (p *Pool) readAll(dir string) (record, error) {
	rec, err := p.read(dir)
	if err == nil {
		rec.Snapshots, err = p.snapshots(dir, &rec)
	}
	return rec, err
}

// locked is a volume that is being changed.
type locked struct {
	dir *pooldir.Held
	rec record
}

// lockVolume locks a volume against other changes, and reads it. The manager
// keeps changes of one volume apart, but not two clones of one source, and a
// clone may have to change its source.
func (p *Pool) lockVolume(ctx context.Context, key storage.Key) (*locked, error) {
	dir, err := p.root.HoldVolume(ctx, key, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	h := &locked{dir: dir}
	if h.rec, err = p.load(key); err == nil {
		err = p.settle(ctx, h)
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return h, nil
}

// save makes rec the record of the volume, durably. It is the moment at which a
// change happens.
func (c *change) save(h *locked, rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	if err := pooldir.Write(c.dir, recordFile, b); err != nil {
		return err
	}
	c.pool.step("record written")
	if err := pooldir.Move(c.dir, recordFile, h.dir, recordFile); err != nil {
		return err
	}
	h.rec, c.unnamed = rec, false
	if err := pooldir.Sync(h.dir, "."); err != nil {
		return err
	}
	c.pool.step("record saved")
	return nil
}

// save saves a record as a change of its own.
func (p *Pool) save(ctx context.Context, h *locked, rec record) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	return c.save(h, rec)
}

func encode(rec record) ([]byte, error) {
	rec.Version = formatVersion
	b, err := json.Marshal(rec)
	return append(b, '\n'), err
}

// share keeps Sweep from collecting layers until release is called. Whoever
// names a layer in a record, or moves a record, holds it.
func (p *Pool) share(ctx context.Context) (release func(), err error) {
	return p.lockLayers(ctx, unix.LOCK_SH)
}

func (p *Pool) lockLayers(ctx context.Context, how int) (release func(), err error) {
	layers, err := p.root.Hold(ctx, layersDir, how)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err)
	}
	return func() { layers.Close() }, nil
}
