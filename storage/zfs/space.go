package zfs

import (
	"context"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/storage"
	"brig/storage/pooldir"
)

// Space that the pool's own dataset has for itself, so that things can be deleted
// and space be freed when nothing else has room.
const (
	minReserve   = 24 << 20
	usualReserve = 64 << 20
)

// insist calls f, which changes a name or a small file in the pool's own dataset,
// again if there is no space. ZFS counts what is not on disk yet 24 times, for the
// worst case, and refuses whoever would then go beyond the reserve. So after a
// sync there is room for one more change.
func (p *Pool) insist(f func() error) error {
	const tries = 3
	err := f()
	for try := 0; storage.NoSpace(err) && try < tries; try++ {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
		syncErr := p.sync(ctx)
		cancel()
		if syncErr != nil {
			return err
		}
		err = f()
	}
	return err
}

// sync puts all that was written to the zpool on disk.
func (p *Pool) sync(ctx context.Context) error {
	_, err := zpool(ctx, "sync", p.zpool())
	return pooldir.Damaged(err)
}

// readOnly tells whether nothing can be written: the zpool was imported so.
func (p *Pool) readOnly() bool {
	var st unix.Statfs_t
	return unix.Fstatfs(int(p.root.File.Fd()), &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// zpool is the name of the zpool that the pool is in.
func (p *Pool) zpool() string {
	name, _, _ := strings.Cut(p.dataset, "/")
	return name
}

// reclaim waits until the space of what was destroyed is free, and keeps enough
// for the pool's own dataset.
func (p *Pool) reclaim(ctx context.Context) error {
	if _, err := zpool(ctx, "wait", "-t", "free", p.zpool()); err != nil {
		return pooldir.Damaged(err)
	}
	return p.reserve(ctx)
}

// reserve makes sure that the pool's own dataset can grow on a full pool.
func (p *Pool) reserve(ctx context.Context) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.root.File.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: p.dataset, Err: err}
	}
	used := int64(st.Blocks-st.Bfree) * st.Bsize
	if used < usualReserve/2 {
		return nil // what Make reserved is enough
	}
	return setReserve(ctx, p.dataset, 2*used+usualReserve)
}

func setReserve(ctx context.Context, dataset string, bytes int64) error {
	_, err := zfs(ctx, "set", "refreservation="+strconv.FormatInt(bytes, 10), dataset)
	return err
}
