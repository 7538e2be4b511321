package transfer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/treecopy"
)

// An exported volume is, after what its caller has to say of it, one stateRecord after
// another, oldest first. Metadata files follow each (metaRecord, and their content),
// then the data: of a tree what treecopy.Send tells, of a disk parts (partRecord, and
// their content), both as what differs from the state before; then a sumRecord.

type stateRecord struct {
	Snapshot *storage.Snapshot `json:"snapshot,omitempty"` // nil: what the volume holds; the last one
	Files    int               `json:"files"`              // of metadata
	Disk     int64             `json:"disk,omitempty"`     // bytes
}

type metaRecord struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
}

type partRecord struct {
	At   int64 `json:"at"`
	Size int64 `json:"size"`           // 0: there are no more
	Zero bool  `json:"zero,omitempty"` // nothing follows
}

type sumRecord struct {
	Sum string `json:"sum"` // of all data of the state
}

// Export writes a volume with its snapshots: the source, Snapshot, Alone, Skip and Dir
// of a request, Base, and Mark, which is what to take for what the source holds now. Leave,
// which may be nil, names metadata files of the last state that stay behind.
func Export(ctx context.Context, r Request, leave func(name string) bool, to *backup.Writer) error {
	states, err := r.states(ctx, r.Mark.Name != "")
	if err != nil {
		return err
	}
	var before *state
	if r.Base != "" {
		before = &state{snapshot: r.Base}
		if states, err = after(states, r.Base); err != nil {
			return err
		}
	}
	for i, s := range states {
		base := before
		if i > 0 {
			base = &states[i-1]
		}
		stays := leave
		if s.keep != nil {
			stays = nil
		}
		if err := r.export(ctx, base, s, stays, to); err != nil {
			return s.wrap(err)
		}
	}
	return nil
}

// after gives the states that came after a snapshot, all but it where they do not have
// it.
func after(states []state, base string) ([]state, error) {
	for i, s := range states {
		if s.snapshot != base {
			continue
		}
		if s.keep == nil {
			return nil, fault.New(fault.Invalid, "nothing can have changed from the snapshot %q to itself", base)
		}
		return states[i+1:], nil
	}
	return states, nil
}

func (r *Request) export(ctx context.Context, base *state, s state, leave func(string) bool, to *backup.Writer) error {
	from, err := root(ctx, r.Source, s.snapshot)
	if err != nil {
		return err
	}
	var before *storage.Root
	if base != nil {
		b, err := root(ctx, r.Source, base.snapshot)
		if err != nil {
			return err
		}
		before = &b
	}
	head := stateRecord{Snapshot: s.keep}
	if r.Source.Content() == storage.Disk {
		links, err := chain(from)
		if err != nil {
			return err
		}
		head.Disk = (links[0].Size + 511) &^ 511
	}
	if err := r.exportMetadata(ctx, head, s, leave, to); err != nil {
		return err
	}
	var sum string
	if r.Source.Content() == storage.Disk {
		sum, err = sendDisk(ctx, before, from, to)
	} else {
		sum, err = tree{dir: r.Dir}.send(ctx, before, from, to)
	}
	if err != nil {
		return err
	}
	return to.Record(sumRecord{sum})
}

// exportMetadata writes what a state is, and its metadata files.
func (r *Request) exportMetadata(ctx context.Context, head stateRecord, s state, leave func(string) bool, to *backup.Writer) error {
	dir, err := openMetadata(ctx, r.Source, s.snapshot)
	if err != nil {
		return err
	}
	defer dir.Close()
	all, err := filesIn(dir)
	if err != nil {
		return err
	}
	var names []string
	for _, name := range all {
		if leave == nil || !leave(name) {
			names = append(names, name)
		}
	}
	head.Files = len(names)
	if err := to.Record(head); err != nil {
		return err
	}
	for _, name := range names {
		if err := exportFile(dir, name, to); err != nil {
			return err
		}
	}
	return nil
}

func exportFile(dir *os.Root, name string, to *backup.Writer) error {
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := to.Record(metaRecord{name, st.Size()}); err != nil {
		return err
	}
	_, err = io.CopyN(to, f, st.Size())
	return err
}

// send tells a tree, and gives its sum.
func (t tree) send(ctx context.Context, base *storage.Root, from storage.Root, to *backup.Writer) (sum string, err error) {
	err = t.alone(func() error {
		one := func(base string) error {
			return t.at("from", look(from), func(at string) error {
				if err := treecopy.Send(ctx, base, at, to); err != nil {
					return err
				}
				all, err := treecopy.Digest(ctx, at)
				sum = hex.EncodeToString(all[:])
				return err
			})
		}
		if base == nil {
			return one("")
		}
		return t.at("base", look(*base), one)
	})
	return sum, err
}

// sendDisk tells the parts of a disk, and gives its sum.
func sendDisk(ctx context.Context, base *storage.Root, from storage.Root, to *backup.Writer) (sum string, err error) {
	var parts []place
	if base == nil {
		parts, err = written(ctx, from)
		parts = merged(parts)
	} else {
		parts, err = places(ctx, base, from, from)
	}
	if err != nil {
		return "", err
	}
	disk, err := openImage(ctx, from, false)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	buf := make([]byte, pieceSize)
	for _, p := range parts {
		for at := p.start; at < min(p.end, disk.size()); at += pieceSize {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			piece := buf[:min(pieceSize, p.end-at, disk.size()-at)]
			if _, err := disk.ReadAt(piece, at); err != nil {
				return "", err
			}
			r := partRecord{At: at, Size: int64(len(piece)), Zero: len(bytes.TrimLeft(piece, "\x00")) == 0}
			if r.Zero && base == nil {
				continue
			}
			if err := to.Record(r); err != nil {
				return "", err
			}
			if r.Zero {
				continue
			}
			if _, err := to.Write(piece); err != nil {
				return "", err
			}
		}
	}
	if err := to.Record(partRecord{}); err != nil {
		return "", err
	}
	return diskSum(ctx, from, disk)
}

// diskSum sums up a disk: the blocks of it that do not hold only zeros, and where they
// are. How large a disk is beyond that makes no difference: drivers round it up.
func diskSum(ctx context.Context, r storage.Root, disk image) (string, error) {
	parts, err := written(ctx, r)
	if err != nil {
		return "", err
	}
	const unit = 64 << 10
	all, buf, done := sha256.New(), make([]byte, unit), int64(0)
	for _, p := range merged(parts) {
		for at := max(done, p.start/unit*unit); at < min(p.end, disk.size()); at += unit {
			if err := ctx.Err(); err != nil {
				return "", err
			}
			piece := buf[:min(unit, disk.size()-at)]
			if _, err := disk.ReadAt(piece, at); err != nil {
				return "", err
			}
			done = at + unit
			piece = bytes.TrimRight(piece, "\x00")
			if len(piece) == 0 {
				continue
			}
			var where [16]byte
			binary.BigEndian.PutUint64(where[:], uint64(at))
			binary.BigEndian.PutUint64(where[8:], uint64(len(piece)))
			all.Write(where[:])
			all.Write(piece)
		}
	}
	return hex.EncodeToString(all.Sum(nil)), nil
}
