package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// snapshot is what is known of a snapshot. Its metadata files are in the directory
// ID; without that directory it counts as deleted, which on a full file system is
// easier than writing a record.
type snapshot struct {
	ID string `json:"id"`
	storage.Snapshot
	Layers []string `json:"layers"`
}

// snapshotFile is the content of a file of one snapshot. The name of the file tells
// that of the snapshot.
type snapshotFile struct {
	Version int `json:"version"`
	snapshot
}

// fileSuffix ends the names of such files. No directory of a snapshot has it.
const fileSuffix = ".json"

// fileOf is the file of a snapshot, relative to the directory of its volume.
func fileOf(name string) string { return path.Join(snapshotsDir, name+fileSuffix) }

// index gives the place of a snapshot in the record, or -1.
func (r *record) index(name string) int {
	return slices.IndexFunc(r.Snapshots, func(s snapshot) bool { return s.Name == name })
}

// find gives a snapshot of the volume in a directory of the pool, which has the
// record rec.
func (p *Pool) find(dir string, rec *record, name string) (snapshot, error) {
	missing := fault.New(fault.NotFound, "there is no snapshot %q", name)
	if i := rec.index(name); i >= 0 {
		return rec.Snapshots[i], nil
	}
	if storage.CheckName("snapshot", name) != nil {
		return snapshot{}, missing
	}
	s, err := p.readSnapshot(dir, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !p.hasSnapshot(dir, s.ID) {
		return snapshot{}, missing
	}
	return s, err
}

// hasSnapshot tells whether the directory of a snapshot is there.
func (p *Pool) hasSnapshot(dir, id string) bool {
	var st unix.Stat_t
	return pooldir.ValidID(id) && unix.Fstatat(int(p.root.File.Fd()), path.Join(dir, snapshotsDir, id), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// readSnapshot reads the file of a snapshot.
func (p *Pool) readSnapshot(dir, name string) (snapshot, error) {
	file := path.Join(dir, fileOf(name))
	var f snapshotFile
	if err := p.root.ReadRecord(file, &f); err != nil {
		return snapshot{}, err
	}
	if f.Version > formatVersion {
		return snapshot{}, fault.New(fault.Unsupported, "%q was written by a newer brig in format %d", file, f.Version)
	}
	for _, id := range append([]string{f.ID}, f.Layers...) {
		if !pooldir.ValidID(id) || len(f.Layers) == 0 {
			return snapshot{}, fault.New(fault.Unavailable, "the record %q is damaged: it names %q", file, id)
		}
	}
	f.Name = name
	return f.snapshot, nil
}

// snapshots gives all snapshots of the volume in a directory of the pool, which has
// the record rec, oldest first. Rec has to be read before: a snapshot gets its file
// before it leaves the record.
func (p *Pool) snapshots(dir string, rec *record) ([]snapshot, error) {
	names, err := pooldir.Names(p.root, path.Join(dir, snapshotsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "the snapshots of %q cannot be read: %w", dir, err)
	}
	there := make(map[string]bool, len(names))
	for _, name := range names {
		there[name] = true
	}
	slices.Sort(names)
	var all []snapshot
	for _, name := range names {
		name, isFile := strings.CutSuffix(name, fileSuffix)
		if !isFile || rec.index(name) >= 0 {
			continue
		}
		s, err := p.readSnapshot(dir, name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // it was deleted or renamed meanwhile
		}
		if err != nil {
			return nil, err
		}
		if there[s.ID] {
			all = append(all, s)
		}
	}
	all = append(all, rec.Snapshots...)
	slices.SortStableFunc(all, func(a, b snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, nil
}

// keep makes a snapshot of the new one in the change's directory, in the record rec
// of the volume. The record holds the newest only; what it held before gets files,
// so that a snapshot costs the same however many there are.
func (c *change) keep(h *locked, rec record, s snapshot) error {
	if err := h.dir.Mkdir(snapshotsDir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := c.writeFiles(h, rec.Snapshots); err != nil {
		return err
	}
	if err := c.pool.root.Rename(c.dir.Path(newSnapshot), h.dir.Path(snapshotsDir, s.ID)); err != nil {
		return err
	}
	c.pool.step("snapshot in place")
	if err := pooldir.Sync(h.dir, snapshotsDir); err != nil {
		return err
	}
	rec.Snapshots = []snapshot{s}
	return c.save(h, rec)
}

// writeFiles gives snapshots files of their own, or other ones. Their names are
// durable after a sync of the directory.
func (c *change) writeFiles(h *locked, list []snapshot) error {
	for _, s := range list {
		b, err := json.Marshal(snapshotFile{formatVersion, s})
		if err != nil {
			return err
		}
		if err := pooldir.Write(c.dir, newFile, append(b, '\n')); err != nil {
			return err
		}
		if err := pooldir.Move(c.dir, newFile, h.dir, fileOf(s.Name)); err != nil {
			return err
		}
		c.pool.step("snapshot's file written")
	}
	return nil
}

// moveSnapshots lets the snapshots that stand on the layers from stand on those in
// to, which show the same, in rec and in their files.
func (c *change) moveSnapshots(h *locked, rec *record, from, to []string) error {
	all, err := c.pool.snapshots(h.dir.Path(), rec)
	if err != nil {
		return err
	}
	var files []snapshot
	for _, s := range all {
		if !slices.Equal(s.Layers, from) {
			continue
		}
		s.Layers = to
		if i := rec.index(s.Name); i >= 0 {
			rec.Snapshots[i] = s
		} else {
			files = append(files, s)
		}
	}
	if len(files) == 0 {
		return nil
	}
	if err := c.writeFiles(h, files); err != nil {
		return fmt.Errorf("moving snapshots to other layers: %w", err)
	}
	return pooldir.Sync(h.dir, snapshotsDir)
}
