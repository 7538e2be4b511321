package diskfile

import (
	"bytes"
	"encoding/binary"
	"io"

	"brig/instance/fault"
)

// vhdFooter is the footer of a VHD, of which a dynamic one has a copy at its
// beginning.
type vhdFooter struct {
	Cookie     [8]byte
	Features   uint32
	Version    uint32
	DataOffset uint64
	Timestamp  uint32
	Creator    [4]byte
	CreatorVer uint32
	CreatorOS  [4]byte
	Original   uint64
	Current    uint64
	Cylinders  uint16
	Heads      uint8
	Sectors    uint8
	Type       uint32
	Checksum   uint32
	ID         [16]byte
	SavedState uint8
}

// vhdSparse is the header of a dynamic one.
type vhdSparse struct {
	Cookie     [8]byte
	DataOffset uint64
	Table      uint64
	Version    uint32
	Entries    uint32
	BlockSize  uint32
	Checksum   uint32
	Parent     [16]byte
	ParentTime uint32
	Reserved   uint32
	ParentName [512]byte
	Locators   [8][24]byte
}

// The types of a VHD.
const (
	vhdFixed   = 2
	vhdDynamic = 3
	vhdDiff    = 4
)

const (
	vhdCheckAt   = 64 // of the checksum in the footer
	sparseSize   = 1024
	sparseSumAt  = 36
	maxVHD       = 2040 << 30
	maxVHDBlocks = 1 << 24
)

// checkVHD judges a VHD by the footer that QEMU would go by: the copy at the
// beginning if there is one.
func checkVHD(r io.ReaderAt, size int64, tail []byte) (int64, error) {
	foot, err := at(r, 0, sector)
	if err != nil {
		return 0, err
	}
	dynamic := bytes.HasPrefix(foot, []byte("conectix"))
	if !dynamic {
		foot = tail
	}
	var f vhdFooter
	if len(foot) < sector {
		return 0, refuseVHD("it is cut off")
	}
	if _, err := binary.Decode(foot, binary.BigEndian, &f); err != nil {
		return 0, refuseVHD("its footer cannot be decoded")
	}
	if vhdSum(foot, vhdCheckAt) != f.Checksum {
		return 0, refuseVHD("the checksum of its footer is wrong")
	}
	switch {
	case f.Version != 0x00010000:
		return 0, refuseVHD("it has format version %#x", f.Version)
	case f.Type == vhdDiff:
		return 0, refuseVHD("it is the difference to another disk, its parent; make one file of them: qemu-img convert -O qcow2")
	case f.Current == 0 || f.Current > maxVHD:
		return 0, refuseVHD("it claims to hold %d bytes", f.Current)
	case f.SavedState != 0:
		return 0, refuseVHD("it belongs to a machine that was suspended")
	case f.Type == vhdFixed && !dynamic:
		if f.Current > uint64(size)-sector {
			return 0, refuseVHD("it claims to hold %d bytes and has %d", f.Current, size-sector)
		}
		return int64(f.Current), nil
	case f.Type == vhdDynamic && dynamic:
		return int64(f.Current), checkSparse(r, uint64(size), &f)
	}
	return 0, refuseVHD("it is of the type %d", f.Type)
}

func checkSparse(r io.ReaderAt, size uint64, f *vhdFooter) error {
	if !inside(f.DataOffset, sparseSize, size) {
		return refuseVHD("its second header is not inside the file")
	}
	b, err := at(r, int64(f.DataOffset), sparseSize)
	if err != nil {
		return err
	}
	var h vhdSparse
	if _, err := binary.Decode(b, binary.BigEndian, &h); err != nil || string(h.Cookie[:]) != "cxsparse" {
		return refuseVHD("its second header is missing")
	}
	switch {
	case vhdSum(b, sparseSumAt) != h.Checksum:
		return refuseVHD("the checksum of its second header is wrong")
	case h.Parent != [16]byte{} || h.Locators != [8][24]byte{}:
		return refuseVHD("it names a parent")
	case !powerOf2(uint64(h.BlockSize)) || h.BlockSize < sector || h.BlockSize > 256<<20:
		return refuseVHD("its blocks have %d bytes", h.BlockSize)
	case h.Entries > maxVHDBlocks || uint64(h.Entries)*uint64(h.BlockSize) < f.Current:
		return refuseVHD("its table has %d blocks, which do not fit its size", h.Entries)
	case !inside(h.Table, uint64(h.Entries)*4, size):
		return refuseVHD("its table is not inside the file")
	}
	return nil
}

// vhdSum is the checksum of b without the one in it.
func vhdSum(b []byte, sumAt int) uint32 {
	var sum uint32
	for i, c := range b {
		if i < sumAt || i >= sumAt+4 {
			sum += uint32(c)
		}
	}
	return ^sum
}

func refuseVHD(format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use the VHD file: "+format, args...)
}
