package diskfile

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"io"

	"brig/instance/fault"
)

// Where the parts of a VHDX are ([MS-VHDX] 2.2), and the bounds of its tables.
const (
	vhdxHeaders    = 64 << 10 // two, as far apart
	vhdxRegions    = 192 << 10
	vhdxTable      = 64 << 10
	maxVHDXEntries = 2047
	vhdxHasParent  = 1 << 1
)

// The names of regions and items, as they are on disk.
const (
	guidMetadata = "06a27c8b90479a4bb8fe575f050f886e"
	guidParams   = "3767a1ca36fa434db3b633f0aa44e76b"
	guidSize     = "2442a52f1bcd7648b2115dbed83bf4b8"
)

func checkVHDX(r io.ReaderAt, size int64) (int64, error) {
	if size < 1<<20 {
		return 0, refuseVHDX("it is cut off")
	}
	if err := checkLog(r); err != nil {
		return 0, err
	}
	off, length, err := findMetadata(r, size)
	if err != nil {
		return 0, err
	}
	items, err := readItems(r, off, length)
	if err != nil {
		return 0, err
	}
	params, virtual := items[guidParams], items[guidSize]
	if len(params) < 8 || len(virtual) < 8 {
		return 0, refuseVHDX("it does not say how large it is")
	}
	block := binary.LittleEndian.Uint32(params)
	if !powerOf2(uint64(block)) || block < 1<<20 || block > 256<<20 {
		return 0, refuseVHDX("its blocks have %d bytes", block)
	}
	if binary.LittleEndian.Uint32(params[4:])&vhdxHasParent != 0 {
		return 0, refuseVHDX("it is the difference to another disk, its parent; make one file of them: qemu-img convert -O qcow2")
	}
	n := binary.LittleEndian.Uint64(virtual)
	if n > maxSize {
		return 0, refuseVHDX("it claims to hold %d bytes", n)
	}
	return int64(n), nil
}

// checkLog refuses a file whose log has changes that are to be made first.
func checkLog(r io.ReaderAt) error {
	var last uint64
	var log []byte
	for _, off := range []int64{vhdxHeaders, 2 * vhdxHeaders} {
		h, err := at(r, off, 80)
		if err != nil {
			return err
		}
		if seq := binary.LittleEndian.Uint64(h[8:]); bytes.HasPrefix(h, []byte("head")) && (log == nil || seq > last) {
			last, log = seq, h[48:64]
		}
	}
	if log == nil {
		return refuseVHDX("its header is missing")
	}
	if !bytes.Equal(log, make([]byte, 16)) {
		return refuseVHDX("it was not closed: start and shut down its machine once, or repair it with qemu-img check -r all")
	}
	return nil
}

func findMetadata(r io.ReaderAt, size int64) (off, length int64, err error) {
	table, err := at(r, vhdxRegions, vhdxTable)
	if err != nil {
		return 0, 0, err
	}
	count := int(binary.LittleEndian.Uint32(table[8:]))
	if !bytes.HasPrefix(table, []byte("regi")) || count > maxVHDXEntries {
		return 0, 0, refuseVHDX("its table of regions is missing or has %d entries", count)
	}
	for i := range count {
		e := table[16+i*32:]
		if hex.EncodeToString(e[:16]) != guidMetadata {
			continue
		}
		off, length := binary.LittleEndian.Uint64(e[16:]), uint64(binary.LittleEndian.Uint32(e[24:]))
		if off < 1<<20 || length < vhdxTable || !inside(off, length, uint64(size)) {
			return 0, 0, refuseVHDX("its metadata is not inside the file")
		}
		return int64(off), int64(length), nil
	}
	return 0, 0, refuseVHDX("it has no metadata")
}

// readItems reads the items of metadata that are small.
func readItems(r io.ReaderAt, at0, length int64) (map[string][]byte, error) {
	table, err := at(r, at0, vhdxTable)
	if err != nil {
		return nil, err
	}
	count := int(binary.LittleEndian.Uint16(table[10:]))
	if !bytes.HasPrefix(table, []byte("metadata")) || count > maxVHDXEntries {
		return nil, refuseVHDX("its table of metadata is missing or has %d entries", count)
	}
	items := map[string][]byte{}
	for i := range count {
		e := table[32+i*32:]
		off, n := int64(binary.LittleEndian.Uint32(e[16:])), int64(binary.LittleEndian.Uint32(e[20:]))
		if n > 16 {
			continue
		}
		if off < vhdxTable || !inside(uint64(off), uint64(n), uint64(length)) {
			return nil, refuseVHDX("an item of its metadata is not inside it")
		}
		key := hex.EncodeToString(e[:16])
		if items[key] != nil {
			return nil, refuseVHDX("an item of its metadata is there twice")
		}
		if items[key], err = at(r, at0+off, n); err != nil {
			return nil, err
		}
	}
	return items, nil
}

func refuseVHDX(format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use the VHDX file: "+format, args...)
}
