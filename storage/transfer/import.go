package transfer

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/mount"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

// ImportRequest says what to make of an exported volume.
type ImportRequest struct {
	Pool    storage.Pool
	Key     storage.Key // what the new volume is called, also while it is half done
	Content storage.Content

	// Edit changes the metadata files of a state before it is kept. Snapshot is its
	// name, empty for what the volume itself holds.
	Edit func(dir *os.Root, snapshot string) error

	// CheckName tells whether a snapshot can have a name.
	CheckName func(name string) error

	Dir string // as in Request
}

// maxSnapshots bounds the states of a file, and maxDisk the size of a disk.
const (
	maxSnapshots = 10000
	maxDisk      = 1 << 50
)

// Import makes a volume of what Export wrote, and reads the file to its end, and after
// it the increments to it in their order. What is in the files may be anything. After an
// error nothing of the volume stays.
func Import(ctx context.Context, r ImportRequest, from *backup.Reader, increments ...Increment) (err error) {
	defer func() {
		if err = classified(err); err == nil {
			return
		}
		if gone := r.Pool.Delete(context.WithoutCancel(ctx), r.Key); gone != nil && !fault.Is(gone, fault.NotFound) {
			err = errors.Join(err, gone)
		}
	}()
	if err := r.whole(ctx, from); err != nil {
		return err
	}
	for _, n := range increments {
		if err := r.apply(ctx, n); err != nil {
			return err
		}
	}
	return nil
}

// whole makes the volume of a file that has no base.
func (r *ImportRequest) whole(ctx context.Context, from *backup.Reader) error {
	var v storage.Volume
	for i := 0; ; i++ {
		var head stateRecord
		if err := from.Record(&head); err != nil {
			return ended(err)
		}
		if err := r.check(head, i); err != nil {
			return err
		}
		var err error
		if v == nil {
			v, err = r.first(ctx, head, from)
		} else {
			err = r.next(ctx, v, head, from)
		}
		if err != nil {
			return state{snapshot: nameOf(head), keep: head.Snapshot}.wrap(err)
		}
		if head.Snapshot == nil {
			return from.End()
		}
	}
}

// ended says that a file that ends well ends too early.
func ended(err error) error {
	if errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "it does not say all that the instance holds")
	}
	return err
}

func nameOf(s stateRecord) string {
	if s.Snapshot == nil {
		return ""
	}
	return s.Snapshot.Name
}

func (r *ImportRequest) check(s stateRecord, i int) error {
	if s.Snapshot != nil {
		if err := r.CheckName(s.Snapshot.Name); err != nil {
			return err
		}
	}
	switch {
	case i > maxSnapshots || s.Files < 0 || s.Files > maxFiles:
		return fault.New(fault.Invalid, "it has more than %d snapshots, or a snapshot with more than %d files", maxSnapshots, maxFiles)
	case r.Content == storage.Disk && (s.Disk <= 0 || s.Disk > maxDisk || s.Disk%512 != 0):
		return fault.New(fault.Invalid, "it has a disk of %d bytes", s.Disk)
	case r.Content == storage.Tree && s.Disk != 0:
		return fault.New(fault.Invalid, "it says that it holds files, and has a disk")
	}
	return nil
}

// first makes the volume.
func (r *ImportRequest) first(ctx context.Context, s stateRecord, from *backup.Reader) (storage.Volume, error) {
	v, err := r.Pool.Create(ctx, r.Key, r.Content, func(dir *os.Root) error {
		if err := r.metadata(dir, s, from); err != nil {
			return err
		}
		if r.Content == storage.Tree {
			if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
				return err
			}
			return treecopy.Receive(ctx, filepath.Join(dir.Name(), storage.RootName), from)
		}
		f, err := dir.OpenFile(storage.DiskRaw, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		err = f.Truncate(s.Disk)
		if err == nil {
			err = receiveDisk(ctx, &rawImage{f, s.Disk, true, false}, from)
		}
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return nil, err
	}
	return v, r.finish(ctx, v, s, from)
}

// next brings the volume to the next state.
func (r *ImportRequest) next(ctx context.Context, v storage.Volume, s stateRecord, from *backup.Reader) error {
	dir, err := v.Dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := removeFiles(dir); err != nil {
		return err
	}
	if err := r.metadata(dir, s, from); err != nil {
		return err
	}
	to, err := root(ctx, v, "")
	if err != nil {
		return err
	}
	if r.Content == storage.Tree {
		err = tree{dir: r.Dir}.mounted(func(at string) error {
			if err := treecopy.Receive(ctx, at, from); err != nil {
				return err
			}
			return syncAll(at)
		}, mount.Spec{Lower: to.Lower, Upper: to.Upper, Work: to.Work})
	} else {
		err = r.nextDisk(ctx, v, to, s, from)
	}
	if err != nil {
		return err
	}
	return r.finish(ctx, v, s, from)
}

func (r *ImportRequest) nextDisk(ctx context.Context, v storage.Volume, to storage.Root, s stateRecord, from *backup.Reader) (err error) {
	if err := resizeTo(ctx, v, to, s.Disk); err != nil {
		return err
	}
	disk, err := openImage(ctx, to, true)
	if err != nil {
		return err
	}
	return errors.Join(receiveDisk(ctx, disk, from), disk.Close())
}

// resizeTo gives the disk of a volume a size that another had.
func resizeTo(ctx context.Context, v storage.Volume, to storage.Root, want int64) error {
	have, err := chain(to)
	if err != nil || have[0].Size == want {
		return err
	}
	if g, ok := v.(storage.Grower); ok {
		if have[0].Size < want {
			return g.Grow(ctx, want)
		}
		return clearFrom(ctx, to, want)
	}
	switch {
	case qcow2.OnDevice(to.DiskPath):
		return clearFrom(ctx, to, want)
	case to.DiskFormat == qcow2.Raw:
		return os.Truncate(to.DiskPath, want)
	case have[0].Size < want:
		return qcow2.Grow(ctx, to.DiskPath, want)
	}
	return shrink(ctx, to, want)
}

// receiveDisk takes the parts of a disk.
func receiveDisk(ctx context.Context, disk image, from *backup.Reader) error {
	buf := make([]byte, pieceSize)
	for {
		var p partRecord
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := from.Record(&p); err != nil {
			return ended(err)
		}
		switch {
		case p == partRecord{}:
			return nil
		case p.Size <= 0 || p.Size > pieceSize || p.At < 0 || p.At > disk.size()-p.Size:
			return fault.New(fault.Invalid, "the disk has a part of %d bytes at %d", p.Size, p.At)
		}
		if p.Zero {
			if err := disk.zero(p.At, p.Size); err != nil {
				return err
			}
			continue
		}
		if err := from.Full(buf[:p.Size]); err != nil {
			return err
		}
		if _, err := disk.WriteAt(buf[:p.Size], p.At); err != nil {
			return err
		}
	}
}

// finish proves that a state is what it was, and keeps it.
func (r *ImportRequest) finish(ctx context.Context, v storage.Volume, s stateRecord, from *backup.Reader) error {
	var want sumRecord
	if err := from.Record(&want); err != nil {
		return ended(err)
	}
	at, err := root(ctx, v, "")
	if err != nil {
		return err
	}
	got, err := sumOf(ctx, r.Content, r.Dir, at)
	if err != nil {
		return err
	}
	if got != want.Sum {
		return fault.New(fault.Invalid, "what was written is not what was exported: it sums up to %s and not to %s", got, want.Sum)
	}
	if s.Snapshot == nil {
		return nil
	}
	return v.Snapshot(ctx, s.Snapshot.Name, options(*s.Snapshot))
}

func sumOf(ctx context.Context, c storage.Content, dir string, at storage.Root) (sum string, err error) {
	if c == storage.Disk {
		disk, err := openImage(ctx, at, false)
		if err != nil {
			return "", err
		}
		sum, err = diskSum(ctx, at, disk)
		return sum, errors.Join(err, disk.Close())
	}
	err = tree{dir: dir}.mounted(func(at string) error {
		all, err := treecopy.Digest(ctx, at)
		sum = hex.EncodeToString(all[:])
		return err
	}, look(at))
	return sum, err
}

// metadata takes the metadata files of a state.
func (r *ImportRequest) metadata(dir *os.Root, s stateRecord, from *backup.Reader) error {
	for range s.Files {
		var m metaRecord
		if err := from.Record(&m); err != nil {
			return ended(err)
		}
		if !plainName(m.Name) || m.Size < 0 || m.Size > maxFileSize {
			return fault.New(fault.Invalid, "it has a file %q of %d bytes beside the data", m.Name, m.Size)
		}
		f, err := dir.OpenFile(m.Name, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		if errors.Is(err, fs.ErrExist) {
			return fault.New(fault.Invalid, "it has the file %q twice", m.Name)
		}
		if err != nil {
			return err
		}
		err = from.Copy(f, m.Size)
		if err == nil {
			err = f.Sync()
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return r.Edit(dir, nameOf(s))
}

// plainName tells whether a metadata file can have a name.
func plainName(name string) bool {
	return storage.CheckName("file", name) == nil && name != storage.DiskRaw && name != storage.DiskQcow2 && name != storage.RootName
}
