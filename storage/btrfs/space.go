package btrfs

import (
	"cmp"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Bounds of the reserve, which is a part of the pool in between.
const (
	minReserve  = 1 << 20
	maxReserve  = 256 << 20
	reservePart = 256
)

// statfs asks for the space there is. A file grows as it is written to, and cannot
// where its own file system is full.
func (p *Pool) statfs() (st unix.Statfs_t, err error) {
	defer func() { err = fault.Wrap(fault.Unavailable, err) }()
	d, err := p.root.Open(".")
	if err != nil {
		return st, err
	}
	defer d.Close()
	if err := unix.Fstatfs(int(d.Fd()), &st); err != nil || p.medium == "" {
		return st, err
	}
	var file unix.Stat_t
	var below unix.Statfs_t
	if err := cmp.Or(unix.Stat(p.medium, &file), unix.Statfs(p.medium, &below)); err != nil || file.Mode&unix.S_IFMT != unix.S_IFREG {
		return st, nil
	}
	used := int64(st.Blocks-st.Bfree) * st.Bsize
	free := int64(below.Bavail)*below.Bsize + max(file.Blocks*512-used, 0)
	st.Bavail = min(st.Bavail, uint64(free/st.Bsize))
	return st, nil
}

// room refuses what takes space on a full pool. Snapshots take metadata only, and
// btrfs would go on making them until nothing else can be written.
func (p *Pool) room() error {
	st, err := p.statfs()
	if err != nil {
		return err
	}
	if st.Bavail == 0 {
		return fault.New(fault.Exhausted, "pool %q is full; delete instances, snapshots or images, or make it larger", p.name)
	}
	return nil
}

// makeReserve keeps some space from being used, if there is plenty. Deleting gives
// it back when the pool is full, so that the records of instances can be written
// again before the kernel has freed what was deleted.
func (p *Pool) makeReserve() error {
	st, err := p.statfs()
	if err != nil {
		return err
	}
	size := min(max(int64(st.Blocks)*st.Bsize/reservePart, minReserve), maxReserve)
	if p.has(reserveFile) || int64(st.Bavail)*st.Bsize < 4*size {
		return nil
	}
	f, err := p.root.OpenFile(reserveFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		err = errors.Join(err, p.root.Remove(reserveFile))
		if storage.NoSpace(err) {
			return nil
		}
		return err
	}
	p.step("reserve made")
	return p.syncAll() // until when it does not count
}

// releaseReserve gives the reserve back on a full pool. The next commit makes it
// usable.
func (p *Pool) releaseReserve() error {
	if p.room() == nil {
		return nil
	}
	return pooldir.IgnoreMissing(p.root.Remove(reserveFile))
}
