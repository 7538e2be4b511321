package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

var (
	_ storage.Adopter  = (*volume)(nil)
	_ storage.Streamer = (*volume)(nil)
)

// The arguments of the ioctls of this file.
type (
	fsInfo struct {
		_    [2]uint64
		fsid uuid
		_    [1024 - 32]byte
	}
	sendArgs struct {
		fd      int64
		clones  uint64
		sources *uint64
		parent  uint64
		flags   uint64
		version uint32
		_       [28]byte
	}
	receivedArgs struct {
		uuid              uuid
		stransid          uint64
		rtransid          uint64
		sentAt, receiveAt timespec
		flags             uint64
		_                 [16]uint64
	}
)

const (
	iocFsInfo      = dirRead | 1024<<16 | magic | 31
	iocSetReceived = dirRead | dirWrite | 200<<16 | magic | 37
	iocSend        = dirWrite | 72<<16 | magic | 38
)

// CanAdopt tells whether the other volume is on the same file system, where a
// snapshot of it can be anywhere.
func (v *volume) CanAdopt(from storage.Volume) bool {
	other, ok := from.(*volume)
	if !ok || other.rec.Content != v.rec.Content {
		return false
	}
	if other.pool == v.pool {
		return true
	}
	mine, err1 := v.pool.fsid()
	its, err2 := other.pool.fsid()
	return err1 == nil && err2 == nil && mine == its
}

// fsid tells which file system the pool is on.
func (p *Pool) fsid() (uuid, error) {
	dir, err := p.root.Open(".")
	if err != nil {
		return uuid{}, err
	}
	defer dir.Close()
	info := &fsInfo{}
	err = ioctl(dir, "asking for the file system", iocFsInfo, unsafe.Pointer(info))
	return info.fsid, err
}

// Adopt makes a snapshot of the other volume's snapshot.
func (v *volume) Adopt(ctx context.Context, from storage.Volume, snapshot string, as storage.Snapshot, edit func(dir *os.Root) error) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q over as %q of volume %q", snapshot, from.Key(), as.Name, v.key)
	if !v.CanAdopt(from) {
		return fault.New(fault.Unsupported, "it is on another file system")
	}
	other := from.(*volume)
	source, err := other.pool.openData(storage.Source{Key: other.key, Snapshot: snapshot})
	if err != nil {
		return err
	}
	defer source.Close()
	return v.keep(ctx, as, func(c *change) error {
		if other.pool == v.pool && other.key != v.key {
			if err := v.comesFrom(other, source); err != nil {
				return err
			}
		}
		if err := c.take(source, newSnapshot, edit == nil); err != nil || edit == nil {
			return err
		}
		return c.edited(path.Join(newSnapshot, dataName), edit)
	})
}

// comesFrom notes that the volume holds data that another one wrote, for Usage.
func (v *volume) comesFrom(other *volume, source *os.File) error {
	info, err := infoOf(source)
	if err != nil {
		return err
	}
	rec, err := v.pool.load(v.key)
	if err != nil {
		return err
	}
	parent, err := v.pool.load(other.key)
	if err != nil {
		return err
	}
	known := slices.Clone(rec.Origins)
	for _, o := range append([]origin{{ID: parent.ID, UpTo: info.otransid}}, parent.Origins...) {
		if o.ID == rec.ID {
			continue
		}
		o.UpTo = min(o.UpTo, info.otransid)
		if i := slices.IndexFunc(known, func(k origin) bool { return k.ID == o.ID }); i < 0 {
			known = append(known, o)
		} else {
			known[i].UpTo = max(known[i].UpTo, o.UpTo)
		}
	}
	if slices.Equal(known, rec.Origins) {
		return nil
	}
	rec.Origins = known
	if err := v.pool.replaceFile(path.Join(v.key.String(), volumeFile), rec); err != nil {
		return err
	}
	v.pool.step("origin noted")
	return nil
}

// edited has the metadata files in a new subvolume changed, and makes it read-only.
func (c *change) edited(name string, edit func(dir *os.Root) error) error {
	dir, err := c.dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := edit(dir); err != nil {
		return err
	}
	if err := c.flush(name); err != nil {
		return err
	}
	data, err := openSubvolume(c.dir.Root, name)
	if err != nil {
		return err
	}
	defer data.Close()
	return setReadOnly(data, true)
}

// keep adds a snapshot to the volume whose subvolume, which is read-only then, make
// puts beside its record.
func (v *volume) keep(ctx context.Context, as storage.Snapshot, make func(c *change) error) (err error) {
	if err := cmp.Or(storage.CheckName("snapshot", as.Name), ctx.Err()); err != nil {
		return err
	}
	p := v.pool
	switch _, err := p.loadSnapshot(v.key, as.Name); {
	case err == nil:
		return fault.New(fault.AlreadyExists, "there is a snapshot %q already", as.Name)
	case !fault.Is(err, fault.NotFound):
		return err
	}
	if _, err := p.load(v.key); err != nil {
		return err
	}
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { c.end(err != nil) }()
	if err := c.dir.Mkdir(newSnapshot, 0o700); err != nil {
		return err
	}
	if err := make(c); err != nil {
		return err
	}
	as.CreatedAt, as.ExpiresAt = as.CreatedAt.Round(0), as.ExpiresAt.Round(0)
	rec := snapshotRecord{Version: formatVersion, Snapshot: as}
	if err := writeFile(c.dir.Root, path.Join(newSnapshot, snapshotFile), rec); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.root.Mkdir(path.Join(v.key.String(), snapshotsDir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.move(c.dir.Path(newSnapshot), snapshotPath(v.key, as.Name)); err != nil {
		return err
	}
	p.step("snapshot in place")
	return c.commit()
}

// isReadOnly tells whether the subvolume whose top is f cannot be written.
func isReadOnly(f *os.File) (bool, error) {
	var flags uint64
	err := ioctl(f, "asking for the flags of a subvolume", iocGetFlags, unsafe.Pointer(&flags))
	return flags&subvolReadOnly != 0, err
}

// StreamFormat is that of the kernel's send, version 1.
func (v *volume) StreamFormat() string { return "btrfs" }

// Send has the kernel write the stream.
func (v *volume) Send(ctx context.Context, snapshot, base string, w *os.File) (err error) {
	defer storage.Fail(&err, "cannot send snapshot %q of volume %q", snapshot, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", snapshot), ctx.Err()); err != nil {
		return err
	}
	data, err := v.pool.openData(storage.Source{Key: v.key, Snapshot: snapshot})
	if err != nil {
		return err
	}
	defer data.Close()
	args := &sendArgs{fd: int64(w.Fd())}
	if base != "" {
		parent, err := v.pool.openData(storage.Source{Key: v.key, Snapshot: base})
		if err != nil {
			return err
		}
		defer parent.Close()
		info, err := infoOf(parent)
		if err != nil {
			return err
		}
		// What moved from one file to another is taken from there.
		args.parent, args.clones, args.sources = info.id, 1, &info.id
	}
	err = ioctl(data, "sending", iocSend, unsafe.Pointer(args))
	runtime.KeepAlive(w)
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// Receive writes what the stream says into a new subvolume, which carries the uuid
// of the one that was sent, as that of btrfs receive does.
func (v *volume) Receive(ctx context.Context, base string, r *os.File, as storage.Snapshot) (err error) {
	defer storage.Fail(&err, "cannot receive snapshot %q of volume %q", as.Name, v.key)
	var parent *os.File
	if base != "" {
		if parent, err = v.pool.openData(storage.Source{Key: v.key, Snapshot: base}); err != nil {
			return err
		}
		defer parent.Close()
	}
	return v.keep(ctx, as, func(c *change) error { return c.receive(ctx, parent, r, v.rec.Content) })
}

// receive fills the subvolume of the new snapshot from a stream.
func (c *change) receive(ctx context.Context, parent *os.File, r *os.File, content storage.Content) error {
	in, err := newStream(ctx, r)
	if err != nil {
		return err
	}
	head, err := in.subvolume()
	if err != nil {
		return err
	}
	if err := c.receiveInto(parent, head); err != nil {
		return err
	}
	name := path.Join(newSnapshot, dataName)
	data, err := openSubvolume(c.dir.Root, name)
	if err != nil {
		return err
	}
	defer data.Close()
	into := &receiver{top: int(data.Fd()), self: head.uuid, base: head.parent}
	if parent != nil {
		into.parent = int(parent.Fd())
	}
	if err := into.apply(in); err != nil {
		return err
	}
	c.pool.step("stream received")
	root, err := c.dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := pooldir.CheckFilled(root, content); err != nil {
		return err
	}
	if err := unix.Syncfs(int(data.Fd())); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	mark := &receivedArgs{uuid: head.uuid, stransid: head.transid}
	if err := ioctl(data, "marking what was received", iocSetReceived, unsafe.Pointer(mark)); err != nil {
		return err
	}
	return setReadOnly(data, true)
}

// receiveInto makes the subvolume that a stream is written to: an empty one, or one
// with the data of the parent, if that is what the stream is about.
func (c *change) receiveInto(parent *os.File, head subvolumeHead) error {
	if (parent != nil) != (head.parent != (uuid{})) {
		return fault.New(fault.WrongState, "it is a stream for another base")
	}
	if parent == nil {
		dir, err := c.open(newSnapshot)
		if err != nil {
			return err
		}
		defer dir.Close()
		return createSubvolume(dir, dataName)
	}
	info, err := infoOf(parent)
	if err != nil {
		return err
	}
	if info.received != head.parent && info.uuid != head.parent {
		return fault.New(fault.WrongState, "it is a stream for the subvolume %v, and the base is %v, which came from %v", head.parent, info.uuid, info.received)
	}
	if fixed, err := isReadOnly(parent); err != nil || !fixed {
		return cmp.Or(err, fault.New(fault.WrongState, "the base can be written, and may have been"))
	}
	return c.take(parent, newSnapshot, false)
}
