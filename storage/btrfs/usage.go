package btrfs

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// Usage measures a volume without quota groups and without asking the kernel who
// shares what. It reads the items of the volume's subvolumes, each leaf of the
// history once. Every extent and inode knows the transaction that wrote it, and
// every clone in the pool the transaction up to which its data come from its
// source, so what was written before the last that others share counts as shared.
// A file that a guest copied by reference out of another volume cannot be.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err := first(err, ctx.Err()); err != nil {
		return storage.Usage{}, err
	}
	m := &meter{ctx: ctx, extents: map[uint64]bool{}, buf: make([]byte, searchHead+manyItems)}
	if m.shared, err = p.sharedUpTo(ctx, rec); err != nil {
		return storage.Usage{}, err
	}
	data, err := p.openData(v.source())
	if err != nil {
		return storage.Usage{}, err
	}
	defer data.Close()
	if err := unix.Syncfs(int(data.Fd())); err != nil {
		return storage.Usage{}, err
	}
	history, err := p.history(v.key, data)
	if err != nil {
		return storage.Usage{}, err
	}
	for i, s := range history {
		if err := m.subvolume(data, s.id, known(history, i)); err != nil {
			return storage.Usage{}, err
		}
	}
	return m.usage, nil
}

// sharedUpTo gives the last transaction of which other volumes may hold what it
// wrote to the volume with this record.
func (p *Pool) sharedUpTo(ctx context.Context, rec record) (uint64, error) {
	own := map[string]uint64{rec.ID: ^uint64(0)}
	for _, o := range rec.Origins {
		own[o.ID] = o.UpTo
	}
	shared := uint64(0)
	for _, class := range classes {
		names, err := withFile(p.root, string(class), volumeFile)
		if err != nil {
			return 0, err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return 0, err
			}
			// One that is damaged or was deleted meanwhile is not counted.
			other, err := p.load(storage.Key{Class: class, Name: name})
			if err != nil || other.ID == rec.ID {
				continue
			}
			for _, o := range append(other.Origins, origin{ID: other.ID, UpTo: ^uint64(0)}) {
				if upTo, ok := own[o.ID]; ok {
					shared = max(shared, min(upTo, o.UpTo))
				}
			}
		}
	}
	return shared, nil
}

// history gives the subvolumes of a volume: its data and its snapshots, by when
// they were made.
func (p *Pool) history(key storage.Key, data *os.File) ([]*subvolInfo, error) {
	info, err := infoOf(data)
	if err != nil {
		return nil, err
	}
	history := []*subvolInfo{info}
	dir, err := p.root.OpenRoot(path.Join(key.String(), snapshotsDir))
	if err != nil {
		return history, ignoreMissing(err)
	}
	defer dir.Close()
	names, err := withFile(dir, ".", snapshotFile)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f, err := dir.OpenFile(path.Join(name, dataName), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := infoOf(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		history = append(history, info)
	}
	slices.SortFunc(history[1:], func(a, b *subvolInfo) int {
		return cmp.Or(cmp.Compare(a.otransid, b.otransid), cmp.Compare(a.id, b.id))
	})
	return history, nil
}

// known gives the last transaction that wrote leaves of history[i] which others in
// the history have as well: an earlier snapshot of the same subvolume, or what it
// is a snapshot of itself.
func known(history []*subvolInfo, i int) uint64 {
	s, upTo := history[i], uint64(0)
	source := s.parentUUID // whose state s shows
	if i == 0 {
		source = s.uuid
	}
	for j, other := range history {
		switch {
		case j == 0 || j == i:
		case other.parentUUID == source && (i == 0 || j < i):
			upTo = max(upTo, other.otransid)
		case i == 0 && other.uuid == s.parentUUID:
			upTo = max(upTo, s.otransid)
		}
	}
	return upTo
}

// meter adds up what is in subvolumes.
type meter struct {
	ctx     context.Context
	shared  uint64          // what was written up to this transaction is shared
	extents map[uint64]bool // those counted
	buf     []byte
	usage   storage.Usage
}

// The least that a subvolume takes up: one node.
const nodeSize = 16 << 10

func (m *meter) add(bytes int64, transid uint64) {
	m.usage.Used += bytes
	if transid > m.shared {
		m.usage.Exclusive += bytes
	}
}

// subvolume counts a subvolume and those that a guest made in it, in leaves that
// were written after a transaction.
func (m *meter) subvolume(f *os.File, id, after uint64) error {
	m.add(nodeSize, ^uint64(0))
	inode, written := uint64(0), uint64(0)
	key := searchKey{tree: id, minObject: rootInode, maxObject: ^uint64(0), maxType: 255, maxOffset: ^uint64(0), minTransid: after + 1}
	err := searchWith(f, key, m.buf, func(it item) error {
		if it.kind == inodeItem && len(it.data) >= 16 {
			inode, written = it.object, binary.LittleEndian.Uint64(it.data[8:])
		}
		if it.kind == extentData {
			return m.extent(it.data)
		}
		if it.object != inode {
			inode, written = it.object, ^uint64(0) // its item is in a leaf that was counted
		}
		m.add(int64(len(it.data))+itemHeader, written)
		return m.ctx.Err()
	})
	if err != nil {
		return err
	}
	subvolumes, err := subvolumesIn(f, id)
	if err != nil {
		return err
	}
	for _, n := range subvolumes {
		if err := m.subvolume(f, n.id, 0); err != nil {
			return err
		}
	}
	return nil
}

// itemHeader is what an item takes in a leaf beside its data.
const itemHeader = 25

// extent counts the extent of a file. One may be in many files.
func (m *meter) extent(b []byte) error {
	const inline, fixed = 0, 53
	if len(b) < 21 || b[20] != inline && len(b) < fixed {
		return fault.New(fault.Unavailable, "the file system is damaged: an extent is cut off")
	}
	written := binary.LittleEndian.Uint64(b)
	if b[20] == inline {
		m.add(int64(len(b))+itemHeader, written)
		return nil
	}
	m.add(fixed+itemHeader, written)
	start, size := binary.LittleEndian.Uint64(b[21:]), int64(binary.LittleEndian.Uint64(b[29:]))
	if start != 0 && !m.extents[start] {
		m.extents[start] = true
		m.add(size, written)
	}
	return nil
}
