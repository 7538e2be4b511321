package transfer

import (
	"context"
	"errors"
	"io"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/treecopy"
)

// Base names the state that an increment builds on, which a file before it has: a
// snapshot and the sum of its data, by which it is known for sure.
type Base struct {
	Snapshot string `json:"snapshot"`
	Sum      string `json:"sum"`
}

// Told is a state that a file holds.
type Told struct {
	Snapshot string // empty: what the volume holds
	Sum      string
}

// BaseOf describes a snapshot of a volume as the base of an increment. It reads all of
// it. Dir is as in Request.
func BaseOf(ctx context.Context, v storage.Volume, snapshot, dir string) (Base, error) {
	at, err := root(ctx, v, snapshot)
	if err != nil {
		return Base{}, err
	}
	sum, err := sumOf(ctx, v.Content(), dir, at)
	return Base{snapshot, sum}, err
}

// Scan reads what Export wrote to its end, and makes nothing of it: it tells which
// states are in it. What is in the file may be anything.
func Scan(ctx context.Context, c storage.Content, from *backup.Reader) ([]Told, error) {
	var all []Told
	buf := make([]byte, pieceSize)
	for {
		var head stateRecord
		if err := from.Record(&head); err != nil {
			return nil, ended(err)
		}
		if head.Files < 0 || head.Files > maxFiles || len(all) > maxSnapshots {
			return nil, fault.New(fault.Invalid, "it has more than %d snapshots, or a snapshot with more than %d files", maxSnapshots, maxFiles)
		}
		for range head.Files {
			var m metaRecord
			if err := from.Record(&m); err != nil {
				return nil, ended(err)
			}
			if m.Size < 0 || m.Size > maxFileSize {
				return nil, fault.New(fault.Invalid, "it has a file %q of %d bytes beside the data", m.Name, m.Size)
			}
			if err := from.Copy(io.Discard, m.Size); err != nil {
				return nil, err
			}
		}
		var err error
		if c == storage.Disk {
			err = passDisk(ctx, from, buf)
		} else {
			err = treecopy.Pass(ctx, from)
		}
		if err != nil {
			return nil, err
		}
		var sum sumRecord
		if err := from.Record(&sum); err != nil {
			return nil, ended(err)
		}
		all = append(all, Told{nameOf(head), sum.Sum})
		if head.Snapshot == nil {
			return all, from.End()
		}
	}
}

// passDisk reads the parts of a disk.
func passDisk(ctx context.Context, from *backup.Reader, buf []byte) error {
	for {
		var p partRecord
		if err := errors.Join(ctx.Err(), from.Record(&p)); err != nil {
			return ended(err)
		}
		switch {
		case p == partRecord{}:
			return nil
		case p.Size <= 0 || p.Size > pieceSize:
			return fault.New(fault.Invalid, "the disk has a part of %d bytes at %d", p.Size, p.At)
		case p.Zero:
			continue
		}
		if err := from.Full(buf[:p.Size]); err != nil {
			return err
		}
	}
}

// Increment is a file that Export wrote with a base.
type Increment struct {
	Base Base
	From *backup.Reader
}

// apply brings a volume that was imported to the states of an increment. A state that it
// has under the name of one of them is an older one, and goes.
func (r *ImportRequest) apply(ctx context.Context, n Increment) error {
	v, err := r.Pool.Open(ctx, r.Key)
	if err == nil {
		err = v.Restore(ctx, n.Base.Snapshot)
	}
	if err == nil {
		v, err = r.Pool.Open(ctx, r.Key)
	}
	if err != nil {
		return err
	}
	told := map[string]bool{n.Base.Snapshot: true}
	for i := 1; ; i++ {
		var head stateRecord
		if err := n.From.Record(&head); err != nil {
			return ended(err)
		}
		if err := r.check(head, i); err != nil {
			return err
		}
		if name := nameOf(head); head.Snapshot != nil {
			if told[name] {
				return fault.New(fault.Invalid, "it has the snapshot %q twice, or that is what it builds on", name)
			}
			told[name] = true
			if err := v.DeleteSnapshot(ctx, name); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		if err := r.next(ctx, v, head, n.From); err != nil {
			return state{snapshot: nameOf(head), keep: head.Snapshot}.wrap(err)
		}
		if head.Snapshot == nil {
			return n.From.End()
		}
	}
}
