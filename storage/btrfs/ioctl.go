package btrfs

import (
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// The arguments of the ioctls of linux/btrfs.h. What a driver has of a file
// system otherwise is not needed: everything below works on open directories.
type (
	volArgs struct {
		fd   int64
		name [4088]byte
	}
	volArgsV2 struct {
		fd      int64
		transid uint64
		flags   uint64
		_       [4]uint64
		name    [4040]byte
	}
	devInfo struct {
		id   uint64
		_    [3048 + 16]byte
		path [1024]byte
	}
	timespec struct {
		sec  uint64
		nsec uint32
		_    uint32
	}
	subvolInfo struct {
		id         uint64
		name       [256]byte
		parentID   uint64
		dirID      uint64
		generation uint64
		flags      uint64
		uuid       uuid
		parentUUID uuid // of what it is a snapshot of
		received   uuid
		ctransid   uint64
		otransid   uint64 // the transaction that made it
		stransid   uint64
		rtransid   uint64
		times      [4]timespec
		_          [8]uint64
	}
	quotaCtl struct {
		cmd, status uint64
	}
	quotaLimit struct {
		flags, maxRefer, maxExcl, rsvRefer, rsvExcl uint64
	}
	groupLimit struct {
		group uint64
		limit quotaLimit
	}
	groupCreate struct {
		create, group uint64
	}
	groupAssign struct {
		assign, member, group uint64
	}
)

// uuid names a subvolume or a file system for ever.
type uuid [16]byte

func (u uuid) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[:4], u[4:6], u[6:8], u[8:10], u[10:])
}

// The numbers of the ioctls: direction, size of the argument, 0x94, number.
const (
	dirWrite = 1 << 30
	dirRead  = 2 << 30
	magic    = 0x94 << 8

	iocResize       = dirWrite | 4096<<16 | magic | 3
	iocSync         = magic | 8
	iocSnapDestroy  = dirWrite | 4096<<16 | magic | 15
	iocTreeSearchV2 = dirRead | dirWrite | 112<<16 | magic | 17
	iocSnapCreate   = dirWrite | 4096<<16 | magic | 23
	iocSubvolCreate = dirWrite | 4096<<16 | magic | 24
	iocGetFlags     = dirRead | 8<<16 | magic | 25
	iocSetFlags     = dirWrite | 8<<16 | magic | 26
	iocDevInfo      = dirRead | dirWrite | 4096<<16 | magic | 30
	iocQuotaCtl     = dirRead | dirWrite | 16<<16 | magic | 40
	iocGroupAssign  = dirWrite | 24<<16 | magic | 41
	iocGroupCreate  = dirWrite | 16<<16 | magic | 42
	iocGroupLimit   = dirRead | 48<<16 | magic | 43
	iocSetLabel     = dirWrite | 256<<16 | magic | 50
	iocSubvolInfo   = dirRead | 504<<16 | magic | 60
)

// subvolReadOnly is the flag of a subvolume that cannot be written.
const subvolReadOnly = 1 << 1

// rootInode is the inode number of the top of every subvolume.
const rootInode = 256

func ioctl(f *os.File, what string, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(arg))
	runtime.KeepAlive(f)
	if errno != 0 {
		return fmt.Errorf("%s: %w", what, errno)
	}
	return nil
}

// createSubvolume makes an empty subvolume in dir.
func createSubvolume(dir *os.File, name string) error {
	args := &volArgsV2{}
	copy(args.name[:255], name)
	return ioctl(dir, "making a subvolume", iocSubvolCreate, unsafe.Pointer(args))
}

// snapshotSubvolume makes a snapshot of the subvolume source in dir. Everything
// that happened in the file system before is durable afterwards, but for data of
// other subvolumes that was not written out yet.
func snapshotSubvolume(source, dir *os.File, name string, readOnly bool) error {
	args := &volArgsV2{fd: int64(source.Fd())}
	copy(args.name[:255], name)
	if readOnly {
		args.flags = subvolReadOnly
	}
	err := ioctl(dir, "taking a snapshot", iocSnapCreate, unsafe.Pointer(args))
	runtime.KeepAlive(source)
	return err
}

// destroySubvolume removes a subvolume without subvolumes in it. The kernel frees
// its space later.
func destroySubvolume(dir *os.File, name string) error {
	args := &volArgs{}
	if len(name) >= len(args.name) {
		return unix.ENAMETOOLONG
	}
	copy(args.name[:], name)
	return ioctl(dir, "destroying a subvolume", iocSnapDestroy, unsafe.Pointer(args))
}

// infoOf tells about the subvolume that f is in.
func infoOf(f *os.File) (*subvolInfo, error) {
	info := &subvolInfo{}
	return info, ioctl(f, "asking for a subvolume", iocSubvolInfo, unsafe.Pointer(info))
}

// setReadOnly changes whether the subvolume whose top is f can be written.
func setReadOnly(f *os.File, readOnly bool) error {
	var flags uint64
	if err := ioctl(f, "asking for the flags of a subvolume", iocGetFlags, unsafe.Pointer(&flags)); err != nil {
		return err
	}
	changed := flags &^ subvolReadOnly
	if readOnly {
		changed |= subvolReadOnly
	}
	if changed == flags {
		return nil
	}
	return ioctl(f, "setting the flags of a subvolume", iocSetFlags, unsafe.Pointer(&changed))
}

// syncAll writes out everything in the file system, and wakes the kernel's
// cleaner of destroyed subvolumes.
func syncAll(f *os.File) error { return ioctl(f, "syncing", iocSync, nil) }

// The arguments of FS_IOC_FIEMAP, without room for extents.
type fiemap struct {
	start, length          uint64
	flags, mapped, extents uint32
	_                      uint32
}

const (
	iocFiemap  = dirRead | dirWrite | 32<<16 | 'f'<<8 | 11
	fiemapSync = 1
)

// writeOut writes out the data of a file, so that the next transaction to be
// committed makes it durable. That saves the barriers of a sync of its own.
func writeOut(f *os.File) error {
	return ioctl(f, "writing out", iocFiemap, unsafe.Pointer(&fiemap{length: ^uint64(0), flags: fiemapSync}))
}

// searchKey is the range of a search in a tree: from the first to the last key,
// each an object, a type and an offset, in leaves written at minTransid or later.
type searchKey struct {
	tree                   uint64
	minObject, maxObject   uint64
	minOffset, maxOffset   uint64
	minTransid, maxTransid uint64
	minType, maxType       uint32
	items                  uint32
	_                      uint32
	_                      [4]uint64
}

// item is one item of a tree.
type item struct {
	transid        uint64 // the transaction that wrote the leaf it is in
	object, offset uint64
	kind           uint32
	data           []byte // valid until the next item
}

// Sizes of what one search gives at a time. Every item fits into the smaller.
const (
	fewItems  = 64 << 10
	manyItems = 1 << 20
)

// searchHead is what is in front of the items in the buffer of a search: the key
// and the size of what follows.
const searchHead = 104 + 8

// search calls f with every item in the range of key, in order.
func search(dir *os.File, key searchKey, f func(it item) error) error {
	return searchWith(dir, key, make([]byte, searchHead+fewItems), f)
}

// searchWith is search with a buffer.
func searchWith(dir *os.File, key searchKey, buf []byte, f func(it item) error) error {
	const headerSize = 32
	args := (*searchKey)(unsafe.Pointer(&buf[0]))
	if key.maxTransid == 0 {
		key.maxTransid = ^uint64(0)
	}
	for {
		*args = key
		args.items = ^uint32(0)
		binary.NativeEndian.PutUint64(buf[searchHead-8:], uint64(len(buf)-searchHead))
		if err := ioctl(dir, "searching a tree", iocTreeSearchV2, unsafe.Pointer(&buf[0])); err != nil {
			return err
		}
		if args.items == 0 {
			return nil
		}
		var it item
		rest := buf[searchHead:]
		for range args.items {
			if len(rest) < headerSize {
				return fault.New(fault.Internal, "a search gave more than fits")
			}
			it.transid = binary.NativeEndian.Uint64(rest)
			it.object = binary.NativeEndian.Uint64(rest[8:])
			it.offset = binary.NativeEndian.Uint64(rest[16:])
			it.kind = binary.NativeEndian.Uint32(rest[24:])
			size := int(binary.NativeEndian.Uint32(rest[28:]))
			if len(rest) < headerSize+size {
				return fault.New(fault.Internal, "a search gave more than fits")
			}
			it.data = rest[headerSize : headerSize+size]
			if err := f(it); err != nil {
				return err
			}
			rest = rest[headerSize+size:]
		}
		if !key.after(it) {
			return nil
		}
	}
}

// after moves the start of the range behind an item. It gives false at the end.
func (k *searchKey) after(it item) bool {
	k.minObject, k.minType, k.minOffset = it.object, it.kind, it.offset+1
	if k.minOffset == 0 {
		if k.minType++; k.minType > 255 {
			k.minType = 0
			k.minObject++
			if k.minObject == 0 {
				return false
			}
		}
	}
	return true
}
