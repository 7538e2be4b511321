package zfs

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

// recordFile is in a volume's directory in the pool's own dataset.
const recordFile = "volume.json"

// record is the content of volume.json, the truth about a volume. A dataset that
// no record names is none of a volume's.
type record struct {
	Version   int             `json:"version"`
	Class     storage.Class   `json:"class"`
	Content   storage.Content `json:"content"`
	Format    string          `json:"format,omitempty"` // of a disk
	Limit     int64           `json:"limit,omitempty"`  // bytes; 0: none
	Data      string          `json:"data"`             // the dataset's name in its class
	Base      string          `json:"base,omitempty"`   // an image's snapshot that clones start from
	Snapshots []snapshot      `json:"snapshots,omitempty"`
}

// snapshot is one snapshot in a record. After its volume went back to another one,
// it is in a dataset that the volume used before.
type snapshot struct {
	ID   string `json:"id"`
	Data string `json:"data"`
	storage.Snapshot
}

// dataset is the object that holds the volume's data.
func (r *record) dataset() string { return path.Join(string(r.Class), r.Data) }

// in gives the datasets that hold the volume's data and snapshots.
func (r *record) datasets() []string {
	all := []string{r.dataset()}
	for _, s := range r.Snapshots {
		all = append(all, path.Join(string(r.Class), s.Data))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// object is the object of a snapshot.
func (r *record) object(s *snapshot) string {
	return path.Join(string(r.Class), s.Data) + "@" + s.ID
}

// objects gives all that the record names.
func (r *record) objects() []string {
	all := r.datasets()
	for i := range r.Snapshots {
		all = append(all, r.object(&r.Snapshots[i]))
	}
	if r.Base != "" {
		all = append(all, r.dataset()+"@"+r.Base)
	}
	return all
}

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

// read reads the record of the volume in a directory of the pool's own dataset.
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
	ids := []string{rec.Data}
	if rec.Base != "" {
		ids = append(ids, rec.Base)
	}
	for _, s := range rec.Snapshots {
		ids = append(ids, s.ID, s.Data)
	}
	for _, id := range ids {
		if !pooldir.ValidID(id) || !slices.Contains(pooldir.Classes(), rec.Class) {
			return damaged("it names %q of class %q", id, rec.Class)
		}
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
