package btrfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// drop takes the volume or snapshot in the directory dir out of sight at once.
// Where the names of a full file system cannot even be changed, its record is
// removed, and then it: the kernel has space of its own for both.
func (p *Pool) drop(dir, record string) error {
	if err := p.releaseReserve(); err != nil {
		return err
	}
	err := p.discard(dir)
	if storage.NoSpace(err) {
		err = p.root.Remove(path.Join(dir, record))
	} else if err == nil {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.NotFound, "somebody else deleted it")
	}
	if err != nil {
		return err
	}
	// What is left then, Sweep finds.
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	if r := p.remover(ctx); r.remove(dir) == nil {
		r.wait()
	}
	return nil
}

// discard moves what is at path to the trash.
func (p *Pool) discard(path string) error {
	return p.root.Rename(path, pooldir.Trash+"/"+pooldir.NewID())
}

// half tells whether the directory dir is what is left of a volume or snapshot
// that was deleted on a full pool: there is no record, and nothing that is not
// from there.
func (p *Pool) half(dir string) (bool, error) {
	names, err := pooldir.Names(p.root, dir)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if name != dataName && name != snapshotsDir {
			return false, nil
		}
	}
	return true, nil
}

// remover removes things of the pool. Data come from guests, which can make
// subvolumes in them, as many and as deep in each other as they like.
type remover struct {
	pool  *Pool
	ctx   context.Context
	moved []string // subvolumes in subvolumes, that were moved to the trash
}

func (p *Pool) remover(ctx context.Context) *remover { return &remover{pool: p, ctx: ctx} }

// remove removes the file, directory or subvolume at path with all that is in it.
// Others may do the same beside it.
func (r *remover) remove(name string) error {
	dir, err := r.pool.root.Open(path.Dir(name))
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	defer dir.Close()
	if err := r.removeIn(dir, path.Base(name), 0); err != nil {
		return fmt.Errorf("removing %q: %w", r.pool.path(name), err)
	}
	for len(r.moved) > 0 {
		name := path.Join(pooldir.Trash, r.moved[0])
		r.moved = r.moved[1:]
		if err := r.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// maxDepth is more than the depth of directories outside of subvolumes, which
// nobody but this driver makes.
const maxDepth = 16

func (r *remover) removeIn(dir *os.File, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	err := unix.Unlinkat(int(dir.Fd()), name, 0)
	if err == nil || !errors.Is(err, unix.EISDIR) {
		return pooldir.IgnoreMissing(err)
	}
	if depth == maxDepth {
		return fault.New(fault.WrongState, "it holds directories that no volume has")
	}
	sub, err := openDir(dir, name)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	defer sub.Close()
	if yes, err := isSubvolume(sub); yes || err != nil {
		if err != nil {
			return err
		}
		return r.destroy(dir, name, sub)
	}
	if err := removeGroup(sub); err != nil {
		return err
	}
	names, err := sub.Readdirnames(-1)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	for _, n := range names {
		if err := r.removeIn(sub, n, depth+1); err != nil {
			return err
		}
	}
	return pooldir.IgnoreMissing(unix.Unlinkat(int(dir.Fd()), name, unix.AT_REMOVEDIR))
}

// destroy destroys the subvolume top, which is the name of dir. Those in it are
// moved to the trash first.
func (r *remover) destroy(dir *os.File, name string, top *os.File) error {
	// One that somebody else has destroyed meanwhile is open, and is not found.
	info, err := infoOf(top)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	nested, err := subvolumesIn(top, info.id)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	err = r.moveAll(top, info.id, nested)
	if errors.Is(err, unix.EDQUOT) {
		// The kernel charges the volume, which is at its limit, for the names.
		err = withoutGroups(dir, info.id, func() error { return r.moveAll(top, info.id, nested) })
	}
	if err != nil {
		return err
	}
	err = destroySubvolume(dir, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		r.pool.step("subvolume destroyed")
	}
	return err
}

// moveAll moves the subvolumes in another to the trash.
func (r *remover) moveAll(top *os.File, id uint64, nested []nested) error {
	if len(nested) == 0 {
		return nil
	}
	if err := setReadOnly(top, false); err != nil {
		return err
	}
	for _, n := range nested {
		if err := r.moveUp(top, id, n); err != nil {
			return fmt.Errorf("subvolume %q in it: %w", n.name, err)
		}
	}
	return nil
}

// moveUp moves a subvolume that is in another to the trash. The guest may have made
// it read-only, and immutable.
func (r *remover) moveUp(top *os.File, id uint64, n nested) error {
	dir, err := directory(top, id, n.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	sub, err := openDir(dir, n.name)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	defer sub.Close()
	if err := setReadOnly(sub, false); err != nil {
		return err
	}
	clearFlags(dir)
	clearFlags(sub)
	trash, err := r.pool.root.Open(pooldir.Trash)
	if err != nil {
		return err
	}
	defer trash.Close()
	newName := pooldir.NewID()
	err = unix.Renameat(int(dir.Fd()), n.name, int(trash.Fd()), newName)
	if errors.Is(err, unix.ENOSPC) {
		return r.destroy(dir, n.name, sub)
	}
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	r.moved = append(r.moved, newName)
	return nil
}

// wait waits until the kernel has freed the space of the subvolumes that are
// destroyed by now, by whomever. The kernel does not begin with those in which
// somebody has a file open, so it goes when nothing more is freed.
func (r *remover) wait() error {
	dir, err := r.pool.root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	gone, err := destroyed(dir)
	if err != nil || len(gone) == 0 {
		return err
	}
	woken, freed, count := time.Time{}, time.Now(), len(gone)
	for wait := minWait; ; wait = min(2*wait, maxWait) {
		// A sync wakes the kernel's cleaner, unless that was about to sleep: then it
		// would do so for half a minute.
		if time.Since(woken) > wakeAfter {
			if err := syncAll(dir); err != nil {
				return err
			}
			woken = time.Now()
		}
		left, err := destroyed(dir)
		if err != nil {
			return err
		}
		gone = slices.DeleteFunc(gone, func(id uint64) bool { return !slices.Contains(left, id) })
		if len(gone) < count {
			freed, count = time.Now(), len(gone)
		}
		if len(gone) == 0 || time.Since(freed) > patience {
			return syncAll(dir)
		}
		if err := pause(r.ctx, wait); err != nil {
			return err
		}
	}
}

// wakeAfter is when the kernel's cleaner is woken again.
const wakeAfter = 300 * time.Millisecond

// patience is how long nothing is freed before the kernel is thought to be done.
const patience = 5 * time.Second

// destroyed gives the subvolumes of the file system of f that are destroyed and
// not freed yet.
func destroyed(f *os.File) (ids []uint64, err error) {
	key := searchKey{tree: rootTree, minObject: orphans, maxObject: orphans, minType: orphanItem, maxType: orphanItem, maxOffset: ^uint64(0)}
	return ids, search(f, key, func(it item) error {
		ids = append(ids, it.offset)
		return nil
	})
}

// The trees and items that are looked at (linux/btrfs_tree.h).
const (
	rootTree   = 1
	inodeItem  = 1
	inodeRef   = 12
	orphanItem = 48
	extentData = 108
	rootRef    = 156

	orphans = 1<<64 - 5 // the object of all orphans
)

// nested is a subvolume in another: its name in the directory with inode dir.
type nested struct {
	id   uint64
	dir  uint64
	name string
}

// subvolumesIn gives the subvolumes directly in the subvolume with this id, in the
// file system of f.
func subvolumesIn(f *os.File, id uint64) ([]nested, error) {
	var found []nested
	key := searchKey{tree: rootTree, minObject: id, maxObject: id, minType: rootRef, maxType: rootRef, maxOffset: ^uint64(0)}
	return found, search(f, key, func(it item) error {
		if it.kind != rootRef || len(it.data) < 18 {
			return nil
		}
		size := int(binary.LittleEndian.Uint16(it.data[16:]))
		if len(it.data) < 18+size {
			return fault.New(fault.Unavailable, "the file system is damaged: a reference to a subvolume is cut off")
		}
		found = append(found, nested{id: it.offset, dir: binary.LittleEndian.Uint64(it.data), name: string(it.data[18 : 18+size])})
		return nil
	})
}

// directory opens the directory with this inode number in the subvolume id, whose
// top is top. Its path may be longer than any path can be.
func directory(top *os.File, id, inode uint64) (*os.File, error) {
	var names []string
	for at := inode; at != rootInode; {
		key := searchKey{tree: id, minObject: at, maxObject: at, minType: inodeRef, maxType: inodeRef, maxOffset: ^uint64(0)}
		parent := uint64(0)
		err := search(top, key, func(it item) error {
			if it.kind != inodeRef || len(it.data) < 10 || len(it.data) < 10+int(binary.LittleEndian.Uint16(it.data[8:])) {
				return nil
			}
			parent = it.offset
			names = append(names, string(it.data[10:10+int(binary.LittleEndian.Uint16(it.data[8:]))]))
			return nil
		})
		if err != nil {
			return nil, err
		}
		if parent == 0 {
			return nil, unix.ENOENT
		}
		at = parent
	}
	dir, err := openDir(top, ".")
	for _, name := range slices.Backward(names) {
		if err != nil {
			return nil, err
		}
		var next *os.File
		next, err = openDir(dir, name)
		dir.Close()
		dir = next
	}
	return dir, err
}

// openDir opens a directory of dir, and nothing else.
func openDir(dir *os.File, name string) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// The inode flags that keep a file from being removed (linux/fs.h).
const fixedFlags = 0x10 | 0x20 // immutable, append-only

// clearFlags takes the immutable and append-only flags from a directory.
func clearFlags(dir *os.File) {
	flags, err := unix.IoctlGetUint32(int(dir.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&fixedFlags != 0 {
		unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, int(flags&^fixedFlags))
	}
}

// The time between two looks at the kernel.
const (
	minWait = 200 * time.Microsecond
	maxWait = 20 * time.Millisecond
)

// pause waits, but not longer than ctx.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
