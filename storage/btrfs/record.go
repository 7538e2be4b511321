package btrfs

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// What is in the directories of volumes and of their snapshots.
const (
	volumeFile   = "volume.json"   // a volume without it is deleted
	snapshotFile = "snapshot.json" // a snapshot without it is deleted
	dataName     = "data"          // the subvolume
	snapshotsDir = "snapshots"
)

// maxRecord bounds what is read of a record.
const maxRecord = 1 << 20

// record is the content of volume.json.
type record struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	Content storage.Content `json:"content"`
	Origins []origin        `json:"origins,omitempty"` // what it was cloned from, and that from, and so on
	Group   uint64          `json:"group,omitempty"`   // the quota group that counts it
}

// origin is a volume that data came from: what was written there up to a
// transaction of the file system.
type origin struct {
	ID   string `json:"id"`
	UpTo uint64 `json:"up_to"`
}

// snapshotRecord is the content of snapshot.json.
type snapshotRecord struct {
	Version int `json:"version"`
	storage.Snapshot
}

// load reads the record of a volume. A missing volume is not-found.
func (p *Pool) load(key storage.Key) (rec record, err error) {
	err = p.root.ReadRecord(path.Join(key.String(), volumeFile), &rec)
	if errors.Is(err, fs.ErrNotExist) {
		if !p.has(string(key.Class)) {
			return rec, fault.New(fault.Unavailable, "the pool is gone")
		}
		return rec, fault.New(fault.NotFound, "there is no volume %q", key)
	}
	if err != nil {
		return rec, err
	}
	if rec.Version > formatVersion {
		return rec, fault.New(fault.Unsupported, "it was written by a newer brig in format %d", rec.Version)
	}
	if rec.Content != storage.Tree && rec.Content != storage.Disk {
		return rec, fault.New(fault.Unavailable, "its record is damaged: it says that it holds %q", rec.Content)
	}
	return rec, nil
}

// loadSnapshot reads the record of a snapshot.
func (p *Pool) loadSnapshot(key storage.Key, name string) (snapshotRecord, error) {
	rec, err := p.readSnapshot(snapshotPath(key, name))
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := p.load(key); err != nil {
			return rec, err
		}
		return rec, fault.New(fault.NotFound, "there is no snapshot %q", name)
	}
	return rec, err
}

// readSnapshot reads the record of the snapshot in a directory, which has its
// name.
func (p *Pool) readSnapshot(dir string) (rec snapshotRecord, err error) {
	name := path.Base(dir)
	err = p.root.ReadRecord(path.Join(dir, snapshotFile), &rec)
	rec.Name = name
	if err == nil && rec.Version > formatVersion {
		err = fault.New(fault.Unsupported, "snapshot %q was written by a newer brig in format %d", name, rec.Version)
	}
	return rec, err
}

func snapshotPath(key storage.Key, name string) string {
	return path.Join(key.String(), snapshotsDir, name)
}

func dataPath(from storage.Source) string {
	if from.Snapshot == "" {
		return path.Join(from.Key.String(), dataName)
	}
	return path.Join(snapshotPath(from.Key, from.Snapshot), dataName)
}

// openData opens the subvolume of a volume or snapshot.
func (p *Pool) openData(from storage.Source) (*os.File, error) {
	err := error(nil)
	if from.Snapshot != "" {
		_, err = p.loadSnapshot(from.Key, from.Snapshot)
	} else {
		_, err = p.load(from.Key)
	}
	if err != nil {
		return nil, err
	}
	f, err := openSubvolume(p.root.Root, dataPath(from))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.Unavailable, "its data are gone: somebody deleted the subvolume %q; delete what is left of it", p.path(dataPath(from)))
	}
	return f, err
}

// openSubvolume opens the top of a subvolume.
func openSubvolume(root *os.Root, name string) (*os.File, error) {
	f, err := root.OpenFile(name, unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if yes, err := isSubvolume(f); !yes || err != nil {
		f.Close()
		return nil, errors.Join(err, fault.New(fault.Unavailable, "%q is not a subvolume: it was moved or copied there", name))
	}
	return f, nil
}

func isSubvolume(f *os.File) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Ino == rootInode, err
}

// writeFile writes a new record. It is durable after the next commit.
func writeFile(dir *os.Root, name string, content any) error {
	b, err := json.Marshal(content)
	if err != nil {
		return err
	}
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, writeOut(f), f.Close())
}

// replaceFile replaces a record, durably.
func (p *Pool) replaceFile(name string, content any) error {
	temporary := path.Join(path.Dir(name), ".new."+pooldir.NewID())
	if err := writeFile(p.root.Root, temporary, content); err != nil {
		return errors.Join(err, pooldir.IgnoreMissing(p.root.Remove(temporary)))
	}
	f, err := p.root.Open(temporary)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := p.root.Rename(temporary, name); err != nil {
		return err
	}
	return pooldir.Sync(p.root, path.Dir(name))
}

// withFile names the directories in dir that hold the file named file, sorted.
func (p *Pool) withFile(dir, file string) ([]string, error) {
	d, err := p.root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	names := slices.DeleteFunc(entries, func(name string) bool {
		var st unix.Stat_t
		return strings.HasPrefix(name, ".") || unix.Fstatat(int(d.Fd()), path.Join(name, file), &st, unix.AT_SYMLINK_NOFOLLOW) != nil
	})
	slices.Sort(names)
	return names, nil
}
