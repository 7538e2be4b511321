// Package iso checks the images of optical discs from which systems are installed: the
// descriptors of ISO 9660 (ECMA-119, chapter 8) and of El Torito, which makes a disc
// one to start from. It reads headers only. What is on a disc is its guest's business.
package iso

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"

	"brig/instance/fault"
)

// Sector is the size of what discs are read in, in bytes.
const Sector = 2048

const (
	first          = 16 // the sector of the first descriptor
	maxDescriptors = 64
	maxSize        = 128 << 30 // no disc is larger
)

// Info is what the descriptors say.
type Info struct {
	Label    string // of the volume
	Size     int64  // bytes that belong to the disc
	Bootable bool   // by El Torito
}

// Check reads the descriptors of the image r of size bytes. Errors: invalid for what
// is no disc, is damaged, or is cut short.
func Check(r io.ReaderAt, size int64) (Info, error) {
	var info Info
	if size < (first+2)*Sector {
		return info, fault.New(fault.Invalid, "it is no ISO image: it has %d bytes, less than the beginning of one", size)
	}
	if size > maxSize {
		return info, fault.New(fault.Invalid, "it is no ISO image: it has %d bytes, more than any disc", size)
	}
	found := false
	sector := make([]byte, Sector)
	for i := range int64(maxDescriptors) {
		if _, err := r.ReadAt(sector, (first+i)*Sector); errors.Is(err, io.EOF) {
			return info, fault.New(fault.Invalid, "it is cut short: its descriptors do not end")
		} else if err != nil {
			return info, fault.New(fault.Unavailable, "cannot read it: %w", err)
		}
		if string(sector[1:6]) != "CD001" || sector[6] != 1 && sector[0] != 2 {
			if i == 0 {
				return info, fault.New(fault.Invalid, "it is no ISO image: there is no descriptor where one begins")
			}
			return info, fault.New(fault.Invalid, "it is damaged: its descriptor %d is none", i)
		}
		switch sector[0] {
		case 0:
			info.Bootable = info.Bootable || bytes.HasPrefix(sector[7:], []byte("EL TORITO SPECIFICATION\x00"))
		case 1:
			if found {
				continue // a copy
			}
			found = true
			if err := info.primary(sector, size); err != nil {
				return info, err
			}
		case 255:
			if !found {
				return info, fault.New(fault.Invalid, "it is damaged: it has no primary descriptor")
			}
			return info, nil
		}
	}
	return info, fault.New(fault.Invalid, "it is damaged: it has more than %d descriptors", maxDescriptors)
}

// primary reads the primary volume descriptor. Numbers are there in both byte orders.
func (info *Info) primary(d []byte, size int64) error {
	blocks, blockSize := binary.LittleEndian.Uint32(d[80:]), binary.LittleEndian.Uint16(d[128:])
	switch {
	case blocks != binary.BigEndian.Uint32(d[84:]), blockSize != binary.BigEndian.Uint16(d[130:]):
		return fault.New(fault.Invalid, "it is damaged: its sizes differ from themselves")
	case blockSize != Sector:
		return fault.New(fault.Unsupported, "it has blocks of %d bytes: only discs with %d can be used", blockSize, Sector)
	case d[156] < 34 || d[156+25]&2 == 0:
		return fault.New(fault.Invalid, "it is damaged: its root directory is none")
	}
	info.Size = int64(blocks) * Sector
	if info.Size < (first+2)*Sector {
		return fault.New(fault.Invalid, "it is damaged: it says that it has %d bytes", info.Size)
	}
	if info.Size > size {
		return fault.New(fault.Invalid, "it is cut short: it has %d bytes of %d; download it again", size, info.Size)
	}
	info.Label = strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, string(d[40:72])))
	return nil
}
