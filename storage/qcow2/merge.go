package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// Entries of L1 and L2 tables.
const (
	entryCopied     = 1 << 63
	entryCompressed = 1 << 62
	entryZero       = 1
	entryOffset     = 0x00fffffffffffe00
)

// Merge writes into the empty file to one disk that shows, over backing, what the
// files of layers (top first) show over it: nobody changes them meanwhile, and all
// were made by Create. The blocks of data are shared where the file system can do
// that. The header is written last and the file synced before and after, so that
// one that is cut off is no disk. Layers that cannot be merged are unsupported.
func Merge(ctx context.Context, to *os.File, layers []*os.File, backing, format string) error {
	m := merger{ctx: ctx, to: to}
	for _, f := range layers {
		if err := m.add(f); err != nil {
			return err
		}
	}
	if len(m.layers) == 0 {
		return fault.New(fault.Invalid, "cannot merge no disks")
	}
	top := m.layers[0].header
	m.size, m.cluster = top.Size, int64(1)<<top.ClusterBits
	for _, l := range m.layers {
		// A layer below that shows more would show through where the top has ended.
		if l.header.ClusterBits != newClusterBits || l.header.extendedL2 || l.header.Snapshots > 0 || l.header.Size > m.size {
			return fault.New(fault.Unsupported, "cannot merge disks: one of them was not made by brig")
		}
	}
	if err := m.write(backing, format); err != nil {
		return fmt.Errorf("cannot merge disks: %w", err)
	}
	return nil
}

// layer is one of the files that are merged.
type layer struct {
	file   *os.File
	length int64
	header Header
	l1     []uint64
	l2     []byte // the table in use; nil: there is none
}

// merger writes the new file, from its start to its end.
type merger struct {
	ctx     context.Context
	to      *os.File
	layers  []*layer
	size    int64 // of the disk
	cluster int64
	used    int64 // clusters of the new file
	span    span  // what is to be copied next
}

// span is a run of clusters that lie one after the other in both files.
type span struct {
	from     *os.File
	src, dst int64
	size     int64
}

func (m *merger) add(f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := Read(f, st.Size())
	if err != nil {
		return err
	}
	l := &layer{file: f, length: st.Size(), header: h}
	b := make([]byte, h.l1Entries*8)
	if _, err := f.ReadAt(b, h.l1Offset); err != nil {
		return fmt.Errorf("cannot read the L1 table: %w", err)
	}
	for ; len(b) > 0; b = b[8:] {
		l.l1 = append(l.l1, binary.BigEndian.Uint64(b))
	}
	m.layers = append(m.layers, l)
	return nil
}

// write writes all of the new file: a place for the header, the L1 table, the L2
// tables with their data, and the reference counts.
func (m *merger) write(backing, format string) error {
	entries := int64(l1Entries(uint64(m.size), newClusterBits, false))
	m.used = 1
	l1Offset := m.allocate((entries*8 + m.cluster - 1) / m.cluster)
	l1 := make([]byte, entries*8)
	for i := range entries {
		at, err := m.table(i)
		if err != nil {
			return err
		}
		binary.BigEndian.PutUint64(l1[i*8:], at)
	}
	if err := m.copySpan(); err != nil {
		return err
	}
	if _, err := m.to.WriteAt(l1, l1Offset); err != nil {
		return err
	}
	f := fixed{
		Magic: magic, Version: 3, ClusterBits: newClusterBits, Size: uint64(m.size),
		L1Entries: uint32(entries), L1Offset: uint64(l1Offset), RefcountOrder: 4, HeaderLength: headerBytesV3,
	}
	if err := m.counts(&f); err != nil {
		return err
	}
	head, err := f.encode(backing, format)
	if err != nil {
		return err
	}
	if err := m.to.Sync(); err != nil {
		return err
	}
	if _, err := m.to.WriteAt(head, 0); err != nil {
		return err
	}
	return m.to.Sync()
}

// allocate gives where the next n clusters of the new file are.
func (m *merger) allocate(n int64) int64 {
	at := m.used * m.cluster
	m.used += n
	return at
}

// table merges the L2 tables of one L1 entry and copies their data. It gives the
// new entry.
func (m *merger) table(index int64) (uint64, error) {
	any := false
	for _, l := range m.layers {
		if err := l.load(index, m.cluster); err != nil {
			return 0, err
		}
		any = any || l.l2 != nil
	}
	if !any {
		return 0, nil
	}
	at := m.allocate(1)
	table := make([]byte, m.cluster)
	for i := int64(0); i < m.cluster; i += 8 {
		guest := (index*m.cluster/8 + i/8) * m.cluster
		if guest >= m.size {
			break
		}
		entry, err := m.take(i, guest)
		if err != nil {
			return 0, err
		}
		binary.BigEndian.PutUint64(table[i:], entry)
	}
	if _, err := m.to.WriteAt(table, at); err != nil {
		return 0, err
	}
	return uint64(at) | entryCopied, nil
}

// load reads the L2 table of an L1 entry.
func (l *layer) load(index, cluster int64) error {
	l.l2 = nil
	if index >= int64(len(l.l1)) {
		return nil
	}
	offset := int64(l.l1[index] & entryOffset)
	if offset == 0 {
		return nil
	}
	if offset%cluster != 0 || offset > l.length-cluster {
		return refuse("an L2 table is not inside the file")
	}
	l.l2 = make([]byte, cluster)
	_, err := l.file.ReadAt(l.l2, offset)
	return err
}

// take has the cluster at guest copied from the topmost layer that has it, and
// gives its new entry: that at position i of the L2 tables.
func (m *merger) take(i, guest int64) (uint64, error) {
	for _, l := range m.layers {
		if l.l2 == nil || guest >= l.header.Size {
			continue
		}
		entry := binary.BigEndian.Uint64(l.l2[i:])
		offset := int64(entry & entryOffset)
		switch {
		case entry == 0:
			continue
		case entry&entryCompressed != 0:
			return 0, fault.New(fault.Unsupported, "one of them is compressed")
		case entry&entryZero != 0:
			return entryZero, nil
		case offset == 0 || offset%m.cluster != 0 || offset > l.length:
			return 0, refuse("a cluster is not inside the file")
		}
		// What is behind the end of a smaller layer shows as zeros.
		n := min(m.cluster, l.length-offset, l.header.Size-guest)
		at := m.allocate(1)
		return uint64(at) | entryCopied, m.copy(l.file, offset, at, n)
	}
	return 0, nil
}

// copy copies a cluster, together with those before and after it.
func (m *merger) copy(from *os.File, src, dst, n int64) error {
	s := &m.span
	// L2 tables lie between the data, so spans end there by themselves.
	if s.from == from && s.src+s.size == src && s.dst+s.size == dst {
		s.size += n
		return nil
	}
	if err := m.copySpan(); err != nil {
		return err
	}
	*s = span{from: from, src: src, dst: dst, size: n}
	return nil
}

// copyPart bounds what is copied between two looks at the context.
const copyPart = 16 << 20

// copySpan copies what was collected.
func (m *merger) copySpan() error {
	s := m.span
	m.span = span{}
	for s.size > 0 {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		src, dst := s.src, s.dst
		n, err := unix.CopyFileRange(int(s.from.Fd()), &src, int(m.to.Fd()), &dst, int(min(s.size, copyPart)), 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) {
			var copied int64
			copied, err = io.Copy(io.NewOffsetWriter(m.to, s.dst), io.NewSectionReader(s.from, s.src, min(s.size, copyPart)))
			n = int(copied)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		s.src, s.dst, s.size = s.src+int64(n), s.dst+int64(n), s.size-int64(n)
	}
	return nil
}

// counts writes the reference counts: every cluster is used once.
func (m *merger) counts(f *fixed) error {
	each := m.cluster / 2 // counts in a block
	blocks, table := int64(1), int64(1)
	for {
		all := m.used + blocks + table
		needBlocks := (all + each - 1) / each
		needTable := (needBlocks*8 + m.cluster - 1) / m.cluster
		if needBlocks <= blocks && needTable <= table {
			break
		}
		blocks, table = needBlocks, needTable
	}
	f.RefTableOffset, f.RefTableClusters = uint64(m.allocate(table)), uint32(table)
	at := m.allocate(blocks)
	entries := make([]byte, table*m.cluster)
	for i := range blocks {
		binary.BigEndian.PutUint64(entries[i*8:], uint64(at+i*m.cluster))
		block := make([]byte, m.cluster)
		for j := range min(each, m.used-i*each) {
			binary.BigEndian.PutUint16(block[j*2:], 1)
		}
		if _, err := m.to.WriteAt(block, at+i*m.cluster); err != nil {
			return err
		}
	}
	if _, err := m.to.WriteAt(entries, int64(f.RefTableOffset)); err != nil {
		return err
	}
	return m.to.Truncate(m.used * m.cluster)
}
