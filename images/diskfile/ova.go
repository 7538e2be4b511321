package diskfile

import (
	"archive/tar"
	"errors"
	"io"
	"path"
	"strings"

	"brig/instance/fault"
)

// maxMembers bounds the files of an OVA.
const maxMembers = 256

// IdentifyOVA finds the one disk of an appliance: a tar with a description (.ovf)
// and the disk, which is used where it lies. The description is not read: what an
// instance gets is the user's to say.
func IdentifyOVA(r io.ReaderAt, size int64) (Info, error) {
	section := io.NewSectionReader(r, 0, size)
	tr := tar.NewReader(section)
	var disk *Info
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return Info{}, fault.New(fault.Invalid, "cannot use the OVA file: it is no tar archive: %w", err)
		}
		if n == maxMembers {
			return Info{}, fault.New(fault.Invalid, "cannot use the OVA file: it has more than %d files", maxMembers)
		}
		name := strings.ToLower(path.Base(hdr.Name))
		switch path.Ext(name) {
		case ".ovf", ".mf", ".cert", ".nvram":
			continue
		}
		if hdr.Typeflag != tar.TypeReg || hdr.Size == 0 {
			continue
		}
		off, err := section.Seek(0, io.SeekCurrent)
		if err != nil {
			return Info{}, err
		}
		info, err := Identify(io.NewSectionReader(r, off, hdr.Size), hdr.Size)
		if fault.Is(err, fault.NotFound) || fault.Is(err, fault.Unsupported) && strings.HasSuffix(name, ".iso") {
			continue
		}
		if err != nil {
			return Info{}, err
		}
		if disk != nil {
			return Info{}, fault.New(fault.Unsupported, "cannot use the OVA file: it has several disks; import the first by itself: tar -xf takes it out")
		}
		if !inside(uint64(off), uint64(hdr.Size), uint64(size)) {
			return Info{}, fault.New(fault.Invalid, "cannot use the OVA file: it is cut off")
		}
		info.Offset, info.Length = off, hdr.Size
		disk = &info
	}
	if disk == nil {
		return Info{}, fault.New(fault.Invalid, "cannot use the OVA file: there is no disk in it")
	}
	return *disk, nil
}
