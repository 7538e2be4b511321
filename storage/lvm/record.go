package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// recordFile is in a volume's directory on the pool's own volume.
const recordFile = "volume.json"

// record is the content of volume.json, the truth about a volume. A logical volume
// that no record names is none of a volume's.
type record struct {
	Version   int             `json:"version"`
	Class     storage.Class   `json:"class"`
	Content   storage.Content `json:"content"`
	Limit     int64           `json:"limit,omitempty"` // bytes; 0: none
	Data      string          `json:"data"`            // the id of the logical volume
	Snapshots []snapshot      `json:"snapshots,omitempty"`
}

// snapshot is one snapshot in a record: a logical volume, and a directory of
// metadata files with the same name.
type snapshot struct {
	ID string `json:"id"`
	storage.Snapshot
}

// ids gives all logical volumes that the record names.
func (r *record) ids() []string {
	all := []string{r.Data}
	for _, s := range r.Snapshots {
		all = append(all, s.ID)
	}
	return all
}

// readOnly tells whether nobody writes to the volume any more.
func (r *record) readOnly() bool { return r.Class == storage.Images }

// clone gives a copy that shares nothing.
func (r *record) clone() record {
	c := *r
	c.Snapshots = slices.Clone(r.Snapshots)
	return c
}

// find gives the index of a snapshot.
func (r *record) find(name string) (int, error) {
	i := slices.IndexFunc(r.Snapshots, func(s snapshot) bool { return s.Name == name })
	if i < 0 {
		return 0, fault.New(fault.NotFound, "there is no snapshot %q", name)
	}
	return i, nil
}

// load reads the record of a volume. A missing volume is not-found.
func (p *Pool) load(key storage.Key) (record, error) {
	rec, err := p.read(key.String())
	if errors.Is(err, fs.ErrNotExist) {
		return rec, p.root.Missing(key)
	}
	return rec, err
}

// read reads the record of the volume in a directory of the pool's own volume.
func (p *Pool) read(dir string) (rec record, err error) {
	damaged := func(format string, args ...any) (record, error) {
		return rec, fault.New(fault.Unavailable, "the record of %q is damaged: %w", dir, fmt.Errorf(format, args...))
	}
	if err := p.root.ReadRecord(path.Join(dir, recordFile), &rec); err != nil {
		return rec, err
	}
	if rec.Version > formatVersion {
		return rec, fault.New(fault.Unsupported, "%q was written by a newer brig in format %d", dir, rec.Version)
	}
	for _, id := range rec.ids() {
		if !pooldir.ValidID(id) || !slices.Contains(pooldir.Classes(), rec.Class) {
			return damaged("it names %q of class %q", id, rec.Class)
		}
	}
	if rec.Content != storage.Tree && rec.Content != storage.Disk {
		return damaged("it says that it holds %q", rec.Content)
	}
	return rec, nil
}

// locked is a volume that is held, with its record.
type locked struct {
	dir *pooldir.Held
	rec record
}

// lockVolume holds a volume: for a change (LOCK_EX), or so that nobody changes it
// while it is cloned (LOCK_SH), and reads its record.
func (p *Pool) lockVolume(ctx context.Context, key storage.Key, how int) (*locked, error) {
	dir, err := p.root.HoldVolume(ctx, key, how)
	if err != nil {
		return nil, err
	}
	rec, err := p.load(key)
	if err != nil {
		dir.Close()
		return nil, err
	}
	return &locked{dir, rec}, nil
}

// encode gives the text of a record.
func encode(rec record) ([]byte, error) {
	rec.Version = formatVersion
	b, err := json.Marshal(rec)
	return append(b, '\n'), err
}

// share keeps Sweep from reading the records until release is called. Whoever
// moves one holds it, so that no record is missed on its way.
func (p *Pool) share(ctx context.Context) (release func(), err error) {
	h, err := p.root.Hold(ctx, ".", unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	return func() { h.Close() }, nil
}
