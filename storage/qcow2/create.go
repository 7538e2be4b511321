package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/run"
)

// newClusterBits is the cluster size of files made here: 64 KiB, QEMU's own.
const newClusterBits = 16

// sector is the unit of a disk's size.
const sector = 512

// Create writes a qcow2 file (version 3) without data into the empty file w: a
// disk of size bytes, rounded up to whole sectors, that shows backing, a path
// relative to the new file, in the given format. Without a backing file the disk
// is empty. The caller syncs w.
func Create(w *os.File, size int64, backing, format string) error {
	if size <= 0 || size > maxVirtualSize {
		return fault.New(fault.Invalid, "cannot make a disk of %d bytes", size)
	}
	if len(backing) > maxBackingName || backing != "" && format != Qcow2 && format != Raw {
		return fault.New(fault.Invalid, "cannot make a disk over %q of format %q", backing, format)
	}
	size = (size + sector - 1) &^ (sector - 1)
	const cluster = 1 << newClusterBits
	entries := l1Entries(uint64(size), newClusterBits, false)
	if entries*8 > maxL1Bytes {
		return fault.New(fault.Invalid, "cannot make a disk of %d bytes: it is too large", size)
	}
	// Cluster 0 is the header, 1 the reference count table, 2 its only block,
	// and from 3 on there is the L1 table.
	used := 3 + (entries*8+cluster-1)/cluster
	f := fixed{
		Magic:            magic,
		Version:          3,
		ClusterBits:      newClusterBits,
		Size:             uint64(size),
		L1Entries:        uint32(entries),
		L1Offset:         3 * cluster,
		RefTableOffset:   cluster,
		RefTableClusters: 1,
		RefcountOrder:    4,
		HeaderLength:     headerBytesV3,
	}
	head, err := f.encode(backing, format)
	if err != nil {
		return err
	}
	table := binary.BigEndian.AppendUint64(nil, 2*cluster)
	var counts []byte
	for range used {
		counts = binary.BigEndian.AppendUint16(counts, 1)
	}
	if err := w.Truncate(int64(used) * cluster); err != nil {
		return fmt.Errorf("cannot make a disk: %w", err)
	}
	for offset, data := range map[int64][]byte{0: head, cluster: table, 2 * cluster: counts} {
		if _, err := w.WriteAt(data, offset); err != nil {
			return fmt.Errorf("cannot make a disk: %w", err)
		}
	}
	return nil
}

// encode gives the header with its extensions and the backing file's name.
func (f *fixed) encode(backing, format string) ([]byte, error) {
	var tail []byte
	if backing != "" {
		tail = binary.BigEndian.AppendUint32(tail, extBackingFormat)
		tail = binary.BigEndian.AppendUint32(tail, uint32(len(format)))
		tail = append(tail, format...)
		tail = append(tail, make([]byte, -len(format)&7)...)
	}
	tail = append(tail, make([]byte, 8)...) // the end of the extensions
	if backing != "" {
		f.BackingOffset = headerBytesV3 + uint64(len(tail))
		f.BackingSize = uint32(len(backing))
		tail = append(tail, backing...)
	}
	head, err := binary.Append(nil, binary.BigEndian, f)
	return append(head, tail...), err
}

// Untouched tells whether nothing was ever written to the disk in f, so that it
// shows exactly its backing file as long as their sizes are the same.
func (h Header) Untouched(f io.ReaderAt) (bool, error) {
	if h.Snapshots > 0 {
		return false, nil
	}
	l1 := make([]byte, h.l1Entries*8)
	if _, err := f.ReadAt(l1, h.l1Offset); err != nil && err != io.EOF {
		return false, fmt.Errorf("cannot read the L1 table: %w", err)
	}
	for _, b := range l1 {
		if b != 0 {
			return false, nil
		}
	}
	return true, nil
}

// Grow makes the disk at path, which nobody uses, size bytes large. Where the L1
// table has room it only changes the header; otherwise qemu-img does it. A disk
// never shrinks.
func Grow(ctx context.Context, path string, size int64) error {
	size = (size + sector - 1) &^ (sector - 1)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot grow the disk: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("cannot grow the disk: %w", err)
	}
	h, err := Read(f, st.Size())
	switch {
	case err != nil:
		return err
	case size < h.Size:
		return fault.New(fault.Invalid, "cannot shrink the disk from %d to %d bytes: the data at its end would be lost", h.Size, size)
	case size == h.Size:
		return nil
	case size > maxVirtualSize:
		return fault.New(fault.Invalid, "cannot grow the disk to %d bytes: it is too large", size)
	}
	cluster := int64(1) << h.ClusterBits
	entries := int64(l1Entries(uint64(size), uint32(h.ClusterBits), h.extendedL2))
	room := (h.l1Entries*8 + cluster - 1) / cluster * cluster
	if h.Snapshots > 0 || entries*8 > room || h.l1Offset+room > st.Size() {
		f.Close()
		_, err := run.Output(ctx, "qemu-img", "resize", "-q", "-f", Qcow2, path, strconv.FormatInt(size, 10))
		return err
	}
	return growHeader(f, h, size, entries)
}

// growHeader clears the L1 entries that are to count from now on, and then sets
// size and number in one write within one sector.
func growHeader(f *os.File, h Header, size, entries int64) error {
	if _, err := f.WriteAt(make([]byte, (entries-h.l1Entries)*8), h.l1Offset+h.l1Entries*8); err != nil {
		return fmt.Errorf("cannot grow the disk: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("cannot grow the disk: %w", err)
	}
	var b []byte
	b = binary.BigEndian.AppendUint64(b, uint64(size))
	b = binary.BigEndian.AppendUint32(b, 0) // not encrypted, as checked
	b = binary.BigEndian.AppendUint32(b, uint32(entries))
	if _, err := f.WriteAt(b, 24); err != nil {
		return fmt.Errorf("cannot grow the disk: %w", err)
	}
	return f.Sync()
}

// FormatOf tells the format of a disk file from its name, which in brig is the
// only thing that says it.
func FormatOf(name string) string {
	if strings.HasSuffix(name, ".raw") {
		return Raw
	}
	return Qcow2
}
