package pooldir

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/flock"
	"brig/storage"
)

// Held is a directory of a pool that is locked until it is closed, or the program
// ends.
type Held struct {
	*os.Root
	File *os.File // the same directory, with the lock
	name string
}

// Close unlocks the directory.
func (h *Held) Close() error { return errors.Join(h.File.Close(), h.Root.Close()) }

// ID is the directory's own name.
func (h *Held) ID() string { return path.Base(h.name) }

// Path is a path in the directory, relative to the pool.
func (h *Held) Path(parts ...string) string {
	return path.Join(append([]string{h.name}, parts...)...)
}

// Hold locks the directory that has the name when it gets the lock: for a change
// (LOCK_EX), or so that nobody changes it (LOCK_SH). A missing one is
// fs.ErrNotExist.
func (d *Dir) Hold(ctx context.Context, name string, how int) (*Held, error) {
	for {
		h, err := d.open(name)
		if err != nil {
			return nil, err
		}
		if err := flock.Hold(ctx, h.File, how); err != nil {
			h.Close()
			return nil, err
		}
		// It may have been renamed or removed while this waited.
		mine, err := h.File.Stat()
		if err != nil {
			h.Close()
			return nil, err
		}
		if there, err := d.Lstat(name); err == nil && os.SameFile(mine, there) {
			return h, nil
		}
		h.Close()
	}
}

func (d *Dir) open(name string) (*Held, error) {
	root, err := d.OpenRoot(name)
	if err != nil {
		return nil, err
	}
	f, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, err
	}
	return &Held{Root: root, File: f, name: name}, nil
}

// HoldVolume locks the directory of a volume. A missing one is not-found.
func (d *Dir) HoldVolume(ctx context.Context, key storage.Key, how int) (*Held, error) {
	h, err := d.Hold(ctx, key.String(), how)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, d.Missing(key)
	}
	return h, err
}

// Stage makes a directory of its own for a change in progress. The lock on it tells
// Dead that its owner lives.
func (d *Dir) Stage(ctx context.Context) (*Held, error) {
	for {
		name := path.Join(Staging, NewID())
		if err := d.Mkdir(name, 0o700); err != nil {
			return nil, Damaged(err)
		}
		h, err := d.Hold(ctx, name, unix.LOCK_EX)
		if !errors.Is(err, fs.ErrNotExist) {
			return h, err
		}
		// Sweep came between.
	}
}

// NewVolume is the directory of a new volume in that of a change.
const NewVolume = "volume"

// MakeVolume makes the directory of a new volume, and opens that of its metadata
// files.
func (h *Held) MakeVolume() (meta *os.Root, err error) {
	for _, name := range []string{NewVolume, path.Join(NewVolume, MetaDir)} {
		if err := h.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	return h.OpenRoot(path.Join(NewVolume, MetaDir))
}

// Dead gives the directories of changes whose owners died, locked.
func (d *Dir) Dead() []*Held {
	names, err := Names(d, Staging)
	if err != nil {
		return nil
	}
	var dead []*Held
	for _, name := range names {
		h, err := d.open(path.Join(Staging, name))
		if err != nil {
			continue
		}
		if locked, _ := flock.TryHold(h.File, unix.LOCK_EX); locked {
			dead = append(dead, h)
			continue
		}
		h.Close()
	}
	return dead
}

// ThrowAway moves a directory to the trash and gives its name there. One that is
// missing is gone already. It is one of those in the pool's own directories, and never one
// of these themselves.
func (d *Dir) ThrowAway(name string) (id string, err error) {
	if path.Dir(name) == "." {
		return "", fmt.Errorf("cannot throw %q away, where much is kept", name)
	}
	id = NewID()
	return id, IgnoreMissing(d.Rename(name, path.Join(Trash, id)))
}

// Trashed names what is in the trash.
func (d *Dir) Trashed() []string {
	names, err := Names(d, Trash)
	if err != nil {
		return nil
	}
	return names
}

// Pending tells whether there is anything for Sweep. Every change has a directory
// while it runs, so one that died is seen here, whatever it left elsewhere.
func (d *Dir) Pending() bool {
	if len(d.Trashed()) > 0 {
		return true
	}
	dead := d.Dead()
	for _, h := range dead {
		h.Close()
	}
	return len(dead) > 0
}
