// Package transfer copies a volume with its snapshots from one pool to another,
// whatever drivers they have, through the storage contract alone: the oldest
// state is written into a new volume, and every later one over it, with a
// snapshot in between, so that trees share in the new pool what does not differ.
// Each state is proved to hold the same data before it is kept. What it mounts is
// in a mount namespace of a thread of its own.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// Request says what to copy where.
type Request struct {
	Source   storage.Volume // not in use, unless Snapshot is set
	Snapshot string         // copy this snapshot alone, as the state of the new volume
	Alone    bool           // leave the snapshots behind

	Pool storage.Pool // where to
	Key  storage.Key  // what the new volume is called, also while it is half done

	// Edit, which may be nil, changes the metadata files of a state in the new
	// volume. Snapshot is its name there, empty for what the volume itself holds.
	Edit func(dir *os.Root, snapshot string) error

	// Dir is an existing folder with no pool in it. Trees are mounted there where
	// nobody else sees it, and nothing changes in it.
	Dir string
}

// state is one state of a volume: as it is now, or a snapshot.
type state struct {
	snapshot string // of the source; empty: as it is now
	keep     *storage.Snapshot
}

// Copy makes the new volume. After an error nothing of it stays.
func Copy(ctx context.Context, r Request) error {
	states, err := r.states(ctx)
	if err != nil {
		return err
	}
	c := contents(r)
	made, err := r.create(ctx, c, states[0])
	if err != nil {
		return err
	}
	err = r.fill(ctx, c, made, states)
	if err == nil {
		return nil
	}
	if gone := r.Pool.Delete(context.WithoutCancel(ctx), r.Key); gone != nil {
		err = errors.Join(err, fmt.Errorf("what was copied is still there: %w", gone))
	}
	return err
}

// states lists what to copy, oldest first. What the new volume is to be comes
// last.
func (r *Request) states(ctx context.Context) ([]state, error) {
	if r.Snapshot != "" {
		return []state{{snapshot: r.Snapshot}}, nil
	}
	if r.Alone {
		return []state{{}}, nil
	}
	list, err := r.Source.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var states []state
	for _, s := range list {
		states = append(states, state{snapshot: s.Name, keep: &s})
	}
	return append(states, state{}), nil
}

// content knows how to copy one content.
type content interface {
	// write puts the data of from into the staging directory of a new volume.
	write(ctx context.Context, from storage.Root, dir *os.Root) error
	// apply makes the data of to the same as that of from.
	apply(ctx context.Context, from, to storage.Root) error
	// prove compares the data of the two.
	prove(ctx context.Context, from, to storage.Root) error
	// size is how much space the data of from needs.
	size(ctx context.Context, from storage.Root) (int64, error)
}

func contents(r Request) content {
	if r.Source.Content() == storage.Disk {
		return disk{}
	}
	return tree{dir: r.Dir}
}

// root says where the data of a state of the source is.
func (r *Request) root(ctx context.Context, snapshot string) (storage.Root, error) {
	if snapshot == "" {
		return r.Source.Root(), nil
	}
	return r.Source.SnapshotRoot(ctx, snapshot)
}

// create makes the new volume with the first state.
func (r *Request) create(ctx context.Context, c content, s state) (storage.Volume, error) {
	from, err := r.root(ctx, s.snapshot)
	if err != nil {
		return nil, err
	}
	return r.Pool.Create(ctx, r.Key, r.Source.Content(), func(dir *os.Root) error {
		if err := r.metadata(ctx, dir, s); err != nil {
			return err
		}
		return c.write(ctx, from, dir)
	})
}

// fill proves the first state, and writes, proves and keeps all others.
func (r *Request) fill(ctx context.Context, c content, made storage.Volume, states []state) error {
	for i, s := range states {
		if err := r.step(ctx, c, made, s, i == 0); err != nil {
			if s.snapshot == "" {
				return err
			}
			return fmt.Errorf("snapshot %q: %w", s.snapshot, err)
		}
	}
	return nil
}

// step brings the new volume to a state, unless it was made with it.
func (r *Request) step(ctx context.Context, c content, made storage.Volume, s state, there bool) error {
	from, err := r.root(ctx, s.snapshot)
	if err != nil {
		return err
	}
	if !there {
		if err := c.apply(ctx, from, made.Root()); err != nil {
			return err
		}
		if err := r.replaceMetadata(ctx, made, s); err != nil {
			return err
		}
	}
	if err := c.prove(ctx, from, made.Root()); err != nil {
		return err
	}
	if s.keep == nil {
		return nil
	}
	return made.Snapshot(ctx, s.keep.Name, storage.SnapshotOptions{
		Description: s.keep.Description, CreatedAt: s.keep.CreatedAt, ExpiresAt: s.keep.ExpiresAt, Auto: s.keep.Auto,
	})
}

// openMetadata opens the metadata files of a state of the source.
func (r *Request) openMetadata(ctx context.Context, snapshot string) (*os.Root, error) {
	if snapshot == "" {
		return r.Source.Dir()
	}
	return r.Source.SnapshotDir(ctx, snapshot)
}

// metadata copies the metadata files of a state to dir.
func (r *Request) metadata(ctx context.Context, dir *os.Root, s state) error {
	from, err := r.openMetadata(ctx, s.snapshot)
	if err != nil {
		return err
	}
	defer from.Close()
	names, err := filesIn(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyFile(from, dir, name); err != nil {
			return fmt.Errorf("metadata file %q: %w", name, err)
		}
	}
	if r.Edit == nil {
		return nil
	}
	if s.keep == nil {
		return r.Edit(dir, "")
	}
	return r.Edit(dir, s.keep.Name)
}

// replaceMetadata puts the metadata files of a state in the place of those that
// the new volume has.
func (r *Request) replaceMetadata(ctx context.Context, made storage.Volume, s state) error {
	dir, err := made.Dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := filesIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	return r.metadata(ctx, dir, s)
}

// Bounds of the metadata files of a volume.
const (
	maxFiles    = 64
	maxFileSize = 128 << 20
)

// filesIn names the regular files in a directory of metadata.
func filesIn(dir *os.Root) ([]string, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxFiles {
		return nil, fault.New(fault.Invalid, "there are more than %d metadata files", maxFiles)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func copyFile(from, to *os.Root, name string) (err error) {
	r, err := from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFileSize {
		return fault.New(fault.Invalid, "it is not a file of at most %d bytes", maxFileSize)
	}
	w, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode()&fs.ModePerm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := io.Copy(w, io.LimitReader(r, maxFileSize)); err != nil {
		return err
	}
	return w.Sync()
}

// Need says how many bytes the copy takes at most in the new pool, as far as can
// be told without copying.
func Need(ctx context.Context, r Request) (int64, error) {
	states, err := r.states(ctx)
	if err != nil {
		return 0, err
	}
	if len(states) > 1 && r.Source.Content() == storage.Tree {
		usage, err := r.Source.Usage(ctx)
		return usage.Used, err
	}
	var total int64
	for _, s := range states {
		from, err := r.root(ctx, s.snapshot)
		if err != nil {
			return 0, err
		}
		n, err := contents(r).size(ctx, from)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
