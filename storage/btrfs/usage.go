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
	"brig/storage/pooldir"
)

// Usage measures a volume without quota groups and without asking the kernel who
// shares what. It reads the items of the volume's subvolumes, each leaf of the
// history once. Every extent and inode knows the transaction that wrote it, and
// every clone in the pool the transaction up to which its data come from its
// source, so what was written before the last that others share counts as shared.
// A file that a guest copied by reference out of another volume cannot be.
//
// What a snapshot takes is told from how long each extent stayed, which lineage.go
// finds out with a few look-ups for each.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer storage.Fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return storage.Usage{}, err
	}
	m := &meter{ctx: ctx, extents: map[uint64]*extent{}, buf: make([]byte, searchHead+manyItems)}
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
	states, err := p.history(v.key, data)
	if err != nil {
		return storage.Usage{}, err
	}
	l := newLineage(data, states)
	for i, s := range states {
		m.state, m.lineage = i, l
		if err := m.subvolume(data, s.id, s.known); err != nil {
			return storage.Usage{}, err
		}
	}
	if err := l.measure(ctx, m); err != nil {
		return storage.Usage{}, err
	}
	m.usage.Snapshots = l.snapshots(m.usage)
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
	for _, class := range pooldir.Classes() {
		names, err := p.withFile(string(class), volumeFile)
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

// history gives the states of a volume: its data, and then its snapshots by when
// they were made.
func (p *Pool) history(key storage.Key, data *os.File) ([]*state, error) {
	info, err := infoOf(data)
	if err != nil {
		return nil, err
	}
	states := []*state{{subvolInfo: info}}
	names, err := p.withFile(path.Join(key.String(), snapshotsDir), snapshotFile)
	if errors.Is(err, fs.ErrNotExist) {
		return states, nil
	}
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		f, err := p.root.OpenFile(dataPath(storage.Source{Key: key, Snapshot: name}), unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
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
		s := &state{subvolInfo: info, name: name}
		if rec, err := p.readSnapshot(snapshotPath(key, name)); err == nil {
			s.created = rec.CreatedAt
		}
		states = append(states, s)
	}
	slices.SortFunc(states[1:], func(a, b *state) int {
		return cmp.Or(cmp.Compare(a.otransid, b.otransid), cmp.Compare(a.id, b.id))
	})
	return states, nil
}

// meter adds up what is in subvolumes.
type meter struct {
	ctx     context.Context
	shared  uint64             // what was written up to this transaction is shared
	extents map[uint64]*extent // those counted
	buf     []byte
	usage   storage.Usage

	lineage *lineage
	state   int // that is being counted
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
		if m.lineage.states[m.state].id == id {
			m.lineage.leaf(m.state, it)
		}
		if it.kind == extentData {
			return m.extent(it, id)
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
func (m *meter) extent(it item, subvolume uint64) error {
	e, err := parseExtent(it.data)
	if err != nil {
		return err
	}
	if e.inline {
		m.add(int64(len(it.data))+itemHeader, e.written)
		return nil
	}
	m.add(extentItem+itemHeader, e.written)
	if e.start == 0 {
		return nil // a hole
	}
	known := m.extents[e.start]
	if known == nil {
		known = &extent{start: e.start, size: e.size, exclusive: e.written > m.shared}
		m.extents[e.start] = known
		m.add(e.size, e.written)
	}
	if m.lineage.states[m.state].id == subvolume {
		m.lineage.saw(known, m.state, place{it.object, it.offset, e.length})
	}
	return nil
}

// extentItem is the size of the item of an extent that is not inline.
const extentItem = 53

// parsed is what is read of the item of an extent.
type parsed struct {
	inline  bool
	written uint64 // the transaction that wrote it
	start   uint64 // on disk; 0: a hole
	size    int64  // on disk
	length  uint64 // of the part that is in the file here
}

func parseExtent(b []byte) (e parsed, err error) {
	const inline = 0
	if len(b) < 21 || b[20] != inline && len(b) < extentItem {
		return e, fault.New(fault.Unavailable, "the file system is damaged: an extent is cut off")
	}
	e.written = binary.LittleEndian.Uint64(b)
	if b[20] == inline {
		e.inline = true
		return e, nil
	}
	e.start, e.size = binary.LittleEndian.Uint64(b[21:]), int64(binary.LittleEndian.Uint64(b[29:]))
	e.length = binary.LittleEndian.Uint64(b[45:])
	return e, nil
}
