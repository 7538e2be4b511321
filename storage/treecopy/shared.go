package treecopy

import (
	"os"
	"runtime"
	"sort"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spans are parts of a file, in order, that do not touch.
type spans []span

type span struct{ start, end int64 }

// covers tells whether all from start to end is in one of them.
func (s spans) covers(start, end int64) bool {
	i := sort.Search(len(s), func(i int) bool { return s[i].end > start })
	return i < len(s) && s[i].start <= start && end <= s[i].end
}

// The arguments of FS_IOC_FIEMAP (linux/fiemap.h).
type (
	fiemapHead struct {
		start, length          uint64
		flags, mapped, extents uint32
		_                      uint32
	}
	extent struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
)

const (
	iocFiemap  = 3<<30 | 32<<16 | 'f'<<8 | 11
	fiemapSync = 1

	extentLast = 1
	// What has no place of its own: unknown, not written yet, encoded, encrypted,
	// not aligned, inline, packed.
	extentUnfit = 2 | 4 | 8 | 0x80 | 0x100 | 0x200 | 0x400
	// Extents asked for at a time, and how many are looked at in all.
	manyExtents = 512
	maxExtents  = 1 << 20
)

// extents lists where a file's data is; nil if that cannot be told.
func extents(f *os.File) []extent {
	var all []extent
	request := &struct {
		fiemapHead
		list [manyExtents]extent
	}{}
	for start := uint64(0); len(all) < maxExtents; {
		request.fiemapHead = fiemapHead{start: start, length: ^uint64(0) - start, flags: fiemapSync, extents: manyExtents}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), iocFiemap, uintptr(unsafe.Pointer(request)))
		runtime.KeepAlive(f)
		if errno != 0 {
			return nil
		}
		got := request.list[:min(request.mapped, manyExtents)]
		all = append(all, got...)
		if len(got) == 0 || got[len(got)-1].flags&extentLast != 0 {
			return all
		}
		start = got[len(got)-1].logical + got[len(got)-1].length
	}
	return nil
}

// shared gives the parts that two files of one file system have in the same place
// on disk, and so have in common as long as both are there.
func shared(a, b *os.File) spans {
	var common spans
	x, y := extents(a), extents(b)
	for len(x) > 0 && len(y) > 0 {
		start := max(x[0].logical, y[0].logical)
		end := min(x[0].logical+x[0].length, y[0].logical+y[0].length)
		if start < end && (x[0].flags|y[0].flags)&extentUnfit == 0 && x[0].physical-x[0].logical == y[0].physical-y[0].logical {
			if n := len(common); n > 0 && common[n-1].end == int64(start) {
				common[n-1].end = int64(end)
			} else {
				common = append(common, span{int64(start), int64(end)})
			}
		}
		if x[0].logical+x[0].length == end {
			x = x[1:]
		} else {
			y = y[1:]
		}
	}
	return common
}
