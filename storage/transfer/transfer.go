// Package transfer copies a volume with its snapshots to another pool, or within
// one, and brings such copies up to date. Where the volumes can, a state is taken
// over or sent as their drivers do that (storage.Adopter, storage.Streamer); where
// they cannot, the oldest is written into a new volume, and every later one over
// it, with a snapshot in between, so that what does not differ is shared there.
//
// What is proved: of a state that was copied by its files, the digest of the tree,
// or all of the disk; of one that was sent, the checksums in the stream, and the
// digest of the last; of layers that were copied, each. When a copy is refreshed,
// what was changed is read back and compared, with the attributes of all files; a
// digest of everything would cost what the refresh saves, and is taken on request.
// What was changed is told by the difference to a snapshot of the source, which
// no program in it can hide, and not by sizes and times. DESIGN.md tells more.
package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// Request says what to copy where.
type Request struct {
	Source   storage.Volume
	Snapshot string        // copy this snapshot alone, as the state of the new volume
	Alone    bool          // leave the snapshots behind
	Live     *storage.Live // the source is in use; nil: it is not

	// Skip, which may be nil, tells which snapshots to leave behind.
	Skip func(s storage.Snapshot) bool

	Pool storage.Pool // where to
	Same bool         // that is the pool of the source
	Key  storage.Key  // what the new volume is called, also while it is half done

	// Mark is a snapshot of the source that the copy is made of if it cannot be
	// made of the source itself. Without a name there is none, and a copy is made by
	// files. With Keep it is made and stays, in the source and in the copy, for
	// Refresh to know what both have in common.
	Mark Mark
	Keep bool

	// Base is a snapshot that whoever reads an export has. Only states that came after it
	// are exported, and of those what differs. Empty: all.
	Base string

	// Edit, which may be nil, changes the metadata files of a state in the new
	// volume. Snapshot is its name there, empty for what the volume itself holds.
	// Snapshots that are sent keep the files that they have.
	Edit func(dir *os.Root, snapshot string) error

	// Dir is an existing folder with no pool in it. Trees are mounted there where
	// nobody else sees it, and nothing changes in it.
	Dir string
}

// Mark is a snapshot for the sake of copies.
type Mark struct {
	Name        string
	Description string
}

func (m Mark) options(live *storage.Live) storage.SnapshotOptions {
	return storage.SnapshotOptions{Description: m.Description, CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Live: live}
}

// state is one state of a volume: as it is now, or a snapshot.
type state struct {
	snapshot string            // of the source; empty: as it is now
	keep     *storage.Snapshot // what it is in the copy; nil: what the copy holds in the end
}

// Copy makes the new volume. After an error nothing of it stays.
func Copy(ctx context.Context, r Request) (err error) {
	defer func() { err = classified(err) }()
	marked := false
	// What the copy is made of has to hold still, also for those that only read it.
	if r.Snapshot == "" && r.Mark.Name != "" && (r.Keep || !r.Same && (r.Live != nil || r.mayBeFast())) {
		err := r.Source.Snapshot(ctx, r.Mark.Name, r.Mark.options(r.Live))
		switch {
		case err == nil:
			marked = true
		case fault.Is(err, fault.Exhausted) && r.Live == nil && !r.Keep:
			// A full pool is what copies are made to get away from: read the source as
			// it is, which holds still by itself.
			r.Mark = Mark{}
		default:
			return err
		}
	}
	defer func() {
		if marked && (err != nil || !r.Keep) {
			gone := r.Source.DeleteSnapshot(context.WithoutCancel(ctx), r.Mark.Name)
			if gone != nil && !fault.Is(gone, fault.NotFound) {
				err = errors.Join(err, gone)
			}
		}
	}()
	states, err := r.states(ctx, marked)
	if err != nil {
		return err
	}
	err = r.copy(ctx, states)
	if err == nil {
		return nil
	}
	if gone := r.Pool.Delete(context.WithoutCancel(ctx), r.Key); gone != nil && !fault.Is(gone, fault.NotFound) {
		err = errors.Join(err, fmt.Errorf("what was copied is still there: %w", gone))
	}
	return err
}

// classified says that a pool is full where a copy by files found that out.
func classified(err error) error {
	if fault.Of(err) == fault.Internal && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return fault.Wrap(fault.Exhausted, err)
	}
	return err
}

// copy makes the new volume in the quickest way there is.
func (r *Request) copy(ctx context.Context, states []state) error {
	if r.Same {
		return r.cloned(ctx, states)
	}
	if r.mayBeFast() {
		err := r.fast(ctx, states)
		if !errors.Is(err, errSlow) {
			return err
		}
		if err := r.Pool.Delete(ctx, r.Key); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	info, err := r.Pool.Info(ctx)
	if err != nil {
		return err
	}
	// A pool that takes snapshots of files is better off with a raw disk.
	c := contents(r.Source, r.Dir, info.Capabilities.LiveSnapshots)
	made, err := r.create(ctx, c, states[0])
	if err != nil {
		return err
	}
	return r.fill(ctx, c, made, states)
}

// states lists what to copy, oldest first. What the new volume is to be comes
// last.
func (r *Request) states(ctx context.Context, marked bool) ([]state, error) {
	if r.Snapshot != "" {
		return []state{{snapshot: r.Snapshot}}, nil
	}
	last := state{}
	list, err := r.Source.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	var states, mark []state
	for _, s := range list {
		switch {
		case marked && s.Name == r.Mark.Name:
			mark = []state{{snapshot: s.Name, keep: &s}}
			last.snapshot = s.Name
		case !r.Alone && (r.Skip == nil || !r.Skip(s)):
			states = append(states, state{snapshot: s.Name, keep: &s})
		}
	}
	if r.Keep {
		states = append(states, mark...)
	}
	return append(states, last), nil
}

// content knows how to copy one content.
type content interface {
	// write puts the data of from into the staging directory of a new volume.
	write(ctx context.Context, from storage.Root, dir *os.Root) error
	// apply makes the data of to the same as that of from. If base is there, to
	// holds what it shows, which is an earlier state of the volume of from.
	apply(ctx context.Context, base *storage.Root, from, to storage.Root) error
	// changed compares what apply has written with that base.
	changed(ctx context.Context, base *storage.Root, from, to storage.Root) error
	// prove compares all data of the two.
	prove(ctx context.Context, from, to storage.Root) error
	// size is how much space the data of from needs.
	size(ctx context.Context, from storage.Root) (int64, error)
}

// contents tells how to copy what a volume holds. New disks are raw, or as the
// source has them.
func contents(v storage.Volume, dir string, raw bool) content {
	if v.Content() == storage.Disk {
		return disk{raw}
	}
	return tree{dir: dir}
}

// root says where the data of a state of a volume is.
func root(ctx context.Context, v storage.Volume, snapshot string) (storage.Root, error) {
	if snapshot != "" {
		return v.SnapshotRoot(ctx, snapshot)
	}
	if m, ok := v.(storage.Mounter); ok {
		if err := m.Mount(ctx); err != nil {
			return storage.Root{}, err
		}
	}
	return v.Root(), nil
}

// create makes the new volume with the first state.
func (r *Request) create(ctx context.Context, c content, s state) (storage.Volume, error) {
	from, err := root(ctx, r.Source, s.snapshot)
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
		base := state{}
		if i > 0 {
			base = states[i-1]
		}
		if err := r.step(ctx, c, made, base, s, i == 0); err != nil {
			return s.wrap(err)
		}
	}
	return nil
}

// wrap says which state an error is about.
func (s state) wrap(err error) error {
	if err == nil || s.keep == nil {
		return err
	}
	return fmt.Errorf("snapshot %q: %w", s.snapshot, err)
}

// step brings the new volume from the state base, which it has, to another, unless
// it was made with that.
func (r *Request) step(ctx context.Context, c content, made storage.Volume, base, s state, there bool) error {
	from, err := root(ctx, r.Source, s.snapshot)
	if err != nil {
		return err
	}
	to, err := root(ctx, made, "")
	if err != nil {
		return err
	}
	if !there && base.snapshot != s.snapshot {
		before, err := root(ctx, r.Source, base.snapshot)
		if err != nil {
			return err
		}
		if err := fit(ctx, made, from); err != nil {
			return err
		}
		if err := c.apply(ctx, &before, from, to); err != nil {
			return err
		}
	}
	if !there {
		if err := r.replaceMetadata(ctx, made, s); err != nil {
			return err
		}
	}
	if there || base.snapshot != s.snapshot {
		if err := c.prove(ctx, from, to); err != nil {
			return err
		}
	}
	if s.keep == nil {
		return nil
	}
	return made.Snapshot(ctx, s.keep.Name, options(*s.keep))
}

// options describe a snapshot again.
func options(s storage.Snapshot) storage.SnapshotOptions {
	return storage.SnapshotOptions{Description: s.Description, CreatedAt: s.CreatedAt, ExpiresAt: s.ExpiresAt, Auto: s.Auto}
}

// Need says how many bytes the copy takes at most in the new pool, as far as can
// be told without copying.
func Need(ctx context.Context, r Request) (int64, error) {
	if r.Same {
		return 0, nil
	}
	states, err := r.states(ctx, false)
	if err != nil {
		return 0, err
	}
	if r.Live != nil || len(states) > 1 && r.Source.Content() == storage.Tree {
		usage, err := r.Source.Usage(ctx)
		return usage.Used, err
	}
	var total int64
	for _, s := range states {
		from, err := root(ctx, r.Source, s.snapshot)
		if err != nil {
			return 0, err
		}
		if qcow2.OnDevice(from.DiskPath) {
			// Only its driver knows how much of it was ever written.
			usage, err := r.Source.Usage(ctx)
			return usage.Used, err
		}
		n, err := contents(r.Source, r.Dir, false).size(ctx, from)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}
