package diskfile

import (
	"bytes"
	"encoding/binary"
	"io"
	"strings"

	"brig/instance/fault"
)

// vmdkHeader is the header of a sparse extent, as in VMware's Virtual Disk Format
// 5.0.
type vmdkHeader struct {
	Magic            uint32
	Version          uint32
	Flags            uint32
	Capacity         uint64 // this and what follows in sectors
	GrainSize        uint64
	DescriptorOffset uint64
	DescriptorSize   uint64
	EntriesPerTable  uint32
	RedundantOffset  uint64
	DirectoryOffset  uint64
	Overhead         uint64
	Unclean          uint8
	LineEnds         [4]uint8
	Compression      uint16
}

const (
	vmdkMagic    = 0x564d444b
	vmdkAtEnd    = 1<<64 - 1 // the directory is described by a footer
	vmdkCompress = 1 << 16
	vmdkMarkers  = 1 << 17
	maxGrain     = 0x200000 >> 9 // sectors of 2 MiB
	maxText      = 64 << 10
)

// checkVMDK accepts single files with all of the disk: monolithicSparse and
// streamOptimized.
func checkVMDK(r io.ReaderAt, size int64) (int64, error) {
	h, err := readVMDK(r, 0)
	if err != nil {
		return 0, err
	}
	if err := h.check(size); err != nil {
		return 0, err
	}
	if h.DirectoryOffset == vmdkAtEnd {
		// QEMU goes by the second header then: a footer, between two markers.
		if size < 4*sector {
			return 0, refuseVMDK("it is cut off")
		}
		f, err := readVMDK(r, size-2*sector)
		if err != nil {
			return 0, err
		}
		if err := f.check(size); err != nil {
			return 0, err
		}
		if f.Capacity != h.Capacity || f.DescriptorOffset != h.DescriptorOffset && f.DescriptorOffset != 0 || f.DirectoryOffset == vmdkAtEnd {
			return 0, refuseVMDK("its footer contradicts its header")
		}
		h.DirectoryOffset = f.DirectoryOffset
	}
	tables := (h.Capacity/h.GrainSize + uint64(h.EntriesPerTable)) / uint64(h.EntriesPerTable)
	if tables > 512<<20/4 || !inside(h.DirectoryOffset, (tables*4+sector-1)/sector, uint64(size)/sector+1) {
		return 0, refuseVMDK("its directory of grains is not inside the file")
	}
	return int64(h.Capacity) * sector, checkDescriptor(r, h)
}

func readVMDK(r io.ReaderAt, off int64) (*vmdkHeader, error) {
	b, err := at(r, off, sector)
	if err != nil {
		return nil, err
	}
	h := &vmdkHeader{}
	if _, err := binary.Decode(b, binary.LittleEndian, h); err != nil {
		return nil, refuseVMDK("it is cut off")
	}
	return h, nil
}

func (h *vmdkHeader) check(size int64) error {
	switch {
	case h.Magic != vmdkMagic:
		return refuseVMDK("its footer is missing")
	case h.Version < 1 || h.Version > 3:
		return refuseVMDK("it has format version %d, and 1 to 3 are known", h.Version)
	case h.Capacity == 0:
		// QEMU would take it for a descriptor that names other files.
		return refuseVMDK("its data is in other files")
	case h.Capacity > maxSize/sector:
		return refuseVMDK("it claims to hold %d sectors", h.Capacity)
	case !powerOf2(h.GrainSize) || h.GrainSize > maxGrain:
		return refuseVMDK("its grains have %d sectors", h.GrainSize)
	case h.EntriesPerTable == 0 || h.EntriesPerTable > 512:
		return refuseVMDK("its tables have %d entries", h.EntriesPerTable)
	case h.Compression > 1 || h.Flags&vmdkCompress != 0 && h.Compression != 1:
		return refuseVMDK("it is compressed in a way of number %d", h.Compression)
	case h.Flags&vmdkMarkers != 0 && h.Flags&vmdkCompress == 0:
		return refuseVMDK("it has markers and is not compressed")
	case h.DescriptorSize > maxText/sector || !inside(h.DescriptorOffset, h.DescriptorSize, uint64(size)/sector):
		return refuseVMDK("its descriptor is not inside the file")
	}
	return nil
}

// checkDescriptor reads the text that says of what the disk consists. QEMU looks
// for the name of a parent in what follows the text, too.
func checkDescriptor(r io.ReaderAt, h *vmdkHeader) error {
	for _, off := range []int64{sector, int64(h.DescriptorOffset) * sector} {
		b, err := at(r, off, maxText)
		if err != nil {
			return err
		}
		if bytes.Contains(b, []byte("parentFileNameHint")) {
			return refuseVMDK("it is the difference to another disk, its parent; make one file of them: qemu-img convert -O qcow2")
		}
	}
	text, err := at(r, int64(h.DescriptorOffset)*sector, int64(h.DescriptorSize)*sector)
	if err != nil {
		return err
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	extents := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		line = strings.TrimSpace(line)
		key, value, isSetting := strings.Cut(line, "=")
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch key = strings.TrimSpace(key); {
		case strings.HasPrefix(line, "RW ") || strings.HasPrefix(line, "RDONLY ") || strings.HasPrefix(line, "NOACCESS "):
			if extents++; extents > 1 || !strings.Contains(line, " SPARSE ") {
				return refuseVMDK("its data is in other files")
			}
		case !isSetting:
		case key == "createType" && value != "monolithicSparse" && value != "streamOptimized":
			return refuseVMDK("it is of the type %.40q, and monolithicSparse and streamOptimized are known", value)
		case key == "parentCID" && !strings.EqualFold(value, "ffffffff"):
			return refuseVMDK("it is the difference to another disk, its parent; make one file of them: qemu-img convert -O qcow2")
		}
	}
	return nil
}

func refuseVMDK(format string, args ...any) error {
	return fault.New(fault.Invalid, "cannot use the VMDK file: "+format, args...)
}
