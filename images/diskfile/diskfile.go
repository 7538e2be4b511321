// Package diskfile takes in the disks of virtual machines that others made: qcow2,
// raw, VMDK, VHD, VHDX and OVA. Headers are hostile: each is checked here, in full
// and before any tool opens the file, for what could make the tool open another
// file (backing files, parents, extents, external data) or take more than it may.
// Then qemu-img, confined and told the format, makes the sparse raw file that
// every pool takes. Formats are never guessed by a tool.
package diskfile

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"

	"brig/instance/fault"
	"brig/storage/qcow2"
)

// Info is what a checked header says.
type Info struct {
	Format         string // in QEMU's words: qcow2, raw, vmdk, vpc, vhdx
	Name           string // for people: qcow2, raw, VMDK, VHD, VHDX
	Size           int64  // bytes of the disk
	Offset, Length int64  // of the format's file inside the file
}

// maxSize bounds the disks that are taken in.
const maxSize = 16 << 40

const sector = 512

// Identify tells by its content whether the file r of size bytes is a disk, and
// checks its header. Not-found means that it is no disk at all; invalid and
// unsupported that it is one which cannot be used.
func Identify(r io.ReaderAt, size int64) (Info, error) {
	head, err := at(r, 0, min(size, sector*4))
	if err != nil {
		return Info{}, err
	}
	tail, err := at(r, max(0, size-sector), min(size, sector))
	if err != nil {
		return Info{}, err
	}
	info := Info{Length: size}
	begins := func(magic string) bool { return bytes.HasPrefix(head, []byte(magic)) }
	switch {
	case begins("QFI\xfb"):
		info.Format, info.Name = "qcow2", "qcow2"
		info.Size, err = checkQcow2(r, size)
	case begins("KDMV"):
		info.Format, info.Name = "vmdk", "VMDK"
		info.Size, err = checkVMDK(r, size)
	case begins("COWD"):
		err = fault.New(fault.Unsupported, "it is a VMDK disk of the old kind COWD; convert it with vmkfstools or qemu-img")
	case begins("# Disk DescriptorFile"):
		err = fault.New(fault.Unsupported, "it is the descriptor of a VMDK disk, whose data is in other files; make one file of it: qemu-img convert -O qcow2")
	case begins("vhdxfile"):
		info.Format, info.Name = "vhdx", "VHDX"
		info.Size, err = checkVHDX(r, size)
	case begins("conectix"), bytes.HasPrefix(tail, []byte("conectix")):
		info.Format, info.Name = "vpc", "VHD"
		info.Size, err = checkVHD(r, size, tail)
	case isISO(r, size):
		err = fault.New(fault.Unsupported, "it is an ISO image, from which a system is installed: make a machine with brig create --empty --vm NAME, and a disc for it with brig storage volume import POOL FILE --type=iso; or look for a cloud image of the same system")
	case isRaw(head), isExt4(head):
		info.Format, info.Name = "raw", "raw"
		info.Size = (size + sector - 1) / sector * sector
	default:
		return Info{}, fault.New(fault.NotFound, "it is no disk image")
	}
	if err != nil {
		return Info{}, err
	}
	if info.Size <= 0 || info.Size > maxSize {
		return Info{}, fault.New(fault.Invalid, "the disk in it has %d bytes: want 1 to %d", info.Size, int64(maxSize))
	}
	return info, nil
}

// isRaw tells whether it begins with a partition table.
func isRaw(head []byte) bool {
	return len(head) >= sector && head[510] == 0x55 && head[511] == 0xaa ||
		len(head) >= 2*sector && bytes.HasPrefix(head[sector:], []byte("EFI PART"))
}

// isExt4 tells whether it begins with an ext4 file system, or one of its ancestors.
func isExt4(head []byte) bool {
	const magic = 1024 + 56 // in the superblock
	return len(head) >= magic+2 && head[magic] == 0x53 && head[magic+1] == 0xef
}

// IsFileSystem tells whether the disk of which f is a file is one ext4 file system on
// the whole of it, which no firmware starts.
func IsFileSystem(ctx context.Context, f *os.File, info Info) (bool, error) {
	head, err := peek(ctx, f, info, 4096)
	return err == nil && isExt4(head) && !isRaw(head), err
}

func isISO(r io.ReaderAt, size int64) bool {
	const descriptor = 16*2048 + 1
	b, err := at(r, descriptor, 5)
	return size > descriptor+5 && err == nil && string(b) == "CD001"
}

func checkQcow2(r io.ReaderAt, size int64) (int64, error) {
	h, err := qcow2.Read(r, size)
	if err != nil {
		return 0, err
	}
	if h.Backing != "" {
		return 0, fault.New(fault.Invalid, "it needs the backing file %q: an image holds all of its disk; make one file of them: qemu-img convert -O qcow2", h.Backing)
	}
	return h.Size, nil
}

// at reads n bytes, fewer only where the file ends.
func at(r io.ReaderAt, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	m, err := r.ReadAt(b, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Unavailable, "cannot read it: %w", err)
	}
	return b[:m], nil
}

// inside tells whether size bytes at off lie in a file of all bytes.
func inside(off, size, all uint64) bool { return off <= all && size <= all-off }

func powerOf2(n uint64) bool { return n > 0 && n&(n-1) == 0 }
