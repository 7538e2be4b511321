// Package qcow2 reads and makes qcow2 disk files in-process: empty overlays over
// a backing file, one file from several of a chain, strict checks of headers that
// somebody else wrote, and the chain of files below a disk. It never guesses a
// format, and follows a backing file only inside the directory it is given. Every
// disk is checked before QEMU or its tools see it: CheckDisk. Each file of a chain
// costs about 2 % of the speed of reads from memory, so chains are kept at seven
// (storage/overlay/DESIGN.md has the figures). Format:
// https://www.qemu.org/docs/master/interop/qcow2.html
package qcow2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"brig/instance/fault"
)

// The formats of a disk file that brig uses.
const (
	Qcow2 = "qcow2"
	Raw   = "raw"
)

// Limits of what is accepted. They are QEMU's own, or tighter.
const (
	minClusterBits    = 9
	maxClusterBits    = 21
	maxL1Bytes        = 32 << 20
	maxRefTableBytes  = 8 << 20
	maxSnapshots      = 65536
	maxBackingName    = 1023
	maxHeaderBytes    = 64 << 10 // of the part read here: header, extensions and backing file name
	maxExtensions     = 64
	maxVirtualSize    = 1 << 56
	headerBytesV2     = 72
	headerBytesV3     = 104
	maxHeaderLengthV3 = 4096
)

const magic = 0x514649fb // "QFI\xfb"

// Magic numbers of header extensions.
const (
	extEnd           = 0
	extBackingFormat = 0xe2792aca
	extCrypto        = 0x0537be77
	extDataFile      = 0x44415441
)

// Incompatible feature bits.
const (
	featDirty       = 1 << 0
	featCorrupt     = 1 << 1
	featDataFile    = 1 << 2
	featCompression = 1 << 3
	featExtendedL2  = 1 << 4
)

// Header is what a checked header says.
type Header struct {
	Version       int
	Size          int64 // of the disk the guest sees, in bytes
	ClusterBits   int
	Backing       string // backing file as it is written; empty: none
	BackingFormat string // qcow2 or raw when there is a backing file
	Snapshots     int    // internal ones

	extendedL2 bool
	l1Entries  int64
	l1Offset   int64

	backingOffset int64 // of the backing file's name
}

// fixed is the header on disk up to header_length.
type fixed struct {
	Magic            uint32
	Version          uint32
	BackingOffset    uint64
	BackingSize      uint32
	ClusterBits      uint32
	Size             uint64
	Crypt            uint32
	L1Entries        uint32
	L1Offset         uint64
	RefTableOffset   uint64
	RefTableClusters uint32
	Snapshots        uint32
	SnapshotsOffset  uint64
	Incompatible     uint64
	Compatible       uint64
	Autoclear        uint64
	RefcountOrder    uint32
	HeaderLength     uint32
}

// Read checks the header of a qcow2 file of fileSize bytes and gives what it
// says. It refuses, as invalid, everything that QEMU would not open, and what
// could make QEMU open something else: external data files, encryption, a
// backing file without an explicit format or given as a protocol, and feature
// bits that nobody knows. Where the backing file is, is for Chain to judge.
func Read(r io.ReaderAt, fileSize int64) (Header, error) {
	buf := make([]byte, min(fileSize, maxHeaderBytes))
	if n, err := r.ReadAt(buf, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(buf)) {
		return Header{}, fault.New(fault.Invalid, "cannot read the qcow2 header: %w", err)
	}
	if len(buf) < headerBytesV2 || binary.BigEndian.Uint32(buf) != magic {
		return Header{}, refuse("it is not a qcow2 file")
	}
	var f fixed
	// A version 2 header ends where version 3 has its feature bits.
	head := make([]byte, headerBytesV3)
	copy(head, buf)
	if _, err := binary.Decode(head, binary.BigEndian, &f); err != nil {
		return Header{}, refuse("its header cannot be decoded")
	}
	switch {
	case f.Version == 2:
		f.Incompatible, f.Compatible, f.Autoclear, f.RefcountOrder, f.HeaderLength = 0, 0, 0, 4, headerBytesV2
	case f.Version != 3:
		return Header{}, refuse("it has format version %d, and 2 and 3 are known", f.Version)
	case len(buf) < headerBytesV3:
		return Header{}, refuse("its header is cut off")
	}
	if err := f.check(fileSize); err != nil {
		return Header{}, err
	}
	h := Header{
		Version:     int(f.Version),
		Size:        int64(f.Size),
		ClusterBits: int(f.ClusterBits),
		Snapshots:   int(f.Snapshots),
		extendedL2:  f.Incompatible&featExtendedL2 != 0,
		l1Entries:   int64(f.L1Entries),
		l1Offset:    int64(f.L1Offset),
	}
	return h, h.readTail(&f, buf)
}

// check judges the fixed part.
func (f *fixed) check(fileSize int64) error {
	if f.ClusterBits < minClusterBits || f.ClusterBits > maxClusterBits {
		return refuse("its clusters have 2^%d bytes", f.ClusterBits)
	}
	if known := uint64(featDirty | featCompression | featExtendedL2); f.Incompatible&^known != 0 {
		switch {
		case f.Incompatible&featDataFile != 0:
			return refuse("it keeps its data in another file")
		case f.Incompatible&featCorrupt != 0:
			return refuse("it is marked as corrupt")
		}
		return refuse("it uses unknown features %#x", f.Incompatible&^known)
	}
	if f.Incompatible&featExtendedL2 != 0 && f.ClusterBits < 14 {
		return refuse("its clusters are too small for extended L2 entries")
	}
	if f.Crypt != 0 {
		return refuse("it is encrypted")
	}
	if f.Size > maxVirtualSize {
		return refuse("it claims to hold %d bytes", f.Size)
	}
	if f.RefcountOrder > 6 {
		return refuse("its reference counts have 2^%d bits", f.RefcountOrder)
	}
	if f.HeaderLength < headerBytesV2 || f.HeaderLength > maxHeaderLengthV3 || f.HeaderLength%8 != 0 ||
		f.Version == 3 && f.HeaderLength < headerBytesV3 || int64(f.HeaderLength) > min(fileSize, 1<<f.ClusterBits) {
		return refuse("its header length %d is wrong", f.HeaderLength)
	}
	return f.checkTables(fileSize)
}

// checkTables makes sure that the tables lie inside the file and are no larger
// than they may be.
func (f *fixed) checkTables(fileSize int64) error {
	cluster := uint64(1) << f.ClusterBits
	table := func(name string, offset, size, most uint64) error {
		if size > most {
			return refuse("its %s has %d bytes, at most %d are allowed", name, size, most)
		}
		if offset%cluster != 0 || offset == 0 && size > 0 || offset > uint64(fileSize) || size > uint64(fileSize)-offset {
			return refuse("its %s at %#x with %d bytes is not inside the file", name, offset, size)
		}
		return nil
	}
	if err := table("L1 table", f.L1Offset, uint64(f.L1Entries)*8, maxL1Bytes); err != nil {
		return err
	}
	if need := l1Entries(f.Size, f.ClusterBits, f.Incompatible&featExtendedL2 != 0); uint64(f.L1Entries) < need {
		return refuse("its L1 table has %d entries, and its size needs %d", f.L1Entries, need)
	}
	if f.RefTableClusters == 0 {
		return refuse("it has no reference count table")
	}
	if err := table("reference count table", f.RefTableOffset, uint64(f.RefTableClusters)*cluster, maxRefTableBytes); err != nil {
		return err
	}
	if f.Snapshots > maxSnapshots {
		return refuse("it claims to have %d internal snapshots", f.Snapshots)
	}
	if f.Snapshots == 0 {
		return nil
	}
	// A snapshot's record has at least 40 bytes.
	return table("snapshot table", f.SnapshotsOffset, uint64(f.Snapshots)*40, maxSnapshots*1024)
}

// readTail reads the extensions and the name of the backing file, which follow
// the fixed part within the first cluster.
func (h *Header) readTail(f *fixed, buf []byte) error {
	buf = buf[:min(int64(len(buf)), 1<<f.ClusterBits)]
	if f.BackingOffset != 0 {
		if f.BackingSize == 0 || f.BackingSize > maxBackingName || f.BackingOffset < uint64(f.HeaderLength) ||
			f.BackingOffset > uint64(len(buf)) || uint64(f.BackingSize) > uint64(len(buf))-f.BackingOffset {
			return refuse("the name of its backing file is not inside its header")
		}
		h.Backing = string(buf[f.BackingOffset:][:f.BackingSize])
		h.backingOffset = int64(f.BackingOffset)
		buf = buf[:f.BackingOffset]
	}
	if err := h.readExtensions(buf[f.HeaderLength:]); err != nil {
		return err
	}
	if h.Backing == "" {
		h.BackingFormat = ""
		return nil
	}
	// QEMU takes NAME: before the first slash for a protocol, and json: for
	// options of any kind.
	if head, _, _ := strings.Cut(h.Backing, "/"); strings.Contains(head, ":") || strings.IndexByte(h.Backing, 0) >= 0 {
		return refuse("its backing file %q is not a plain path", h.Backing)
	}
	if h.BackingFormat != Qcow2 && h.BackingFormat != Raw {
		return refuse("the format %q of its backing file is not qcow2 or raw", h.BackingFormat)
	}
	return nil
}

func (h *Header) readExtensions(buf []byte) error {
	for range maxExtensions {
		if len(buf) < 8 {
			return nil
		}
		kind, size := binary.BigEndian.Uint32(buf), int64(binary.BigEndian.Uint32(buf[4:]))
		if kind == extEnd {
			return nil
		}
		padded := (size + 7) &^ 7
		if buf = buf[8:]; padded > int64(len(buf)) {
			return refuse("a header extension is not inside its header")
		}
		switch kind {
		case extBackingFormat:
			h.BackingFormat = string(bytes.TrimRight(buf[:size], "\x00"))
		case extCrypto:
			return refuse("it is encrypted")
		case extDataFile:
			return refuse("it keeps its data in another file")
		}
		buf = buf[padded:]
	}
	return refuse("it has more than %d header extensions", maxExtensions)
}

// l1Entries is the number of L1 entries that a disk of size bytes needs.
func l1Entries(size uint64, clusterBits uint32, extended bool) uint64 {
	l2Bits := clusterBits - 3
	if extended {
		l2Bits = clusterBits - 4
	}
	span := uint64(1) << (clusterBits + l2Bits)
	return (size + span - 1) / span
}

func refuse(format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use the qcow2 file: "+format, args...)
}
