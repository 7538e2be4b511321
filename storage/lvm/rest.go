package lvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/flock"
	"brig/storage/mount"
	"brig/storage/pooldir"
)

// restAfter is how long a logical volume that nobody uses stays mounted and active
// after it was last asked for. Whoever asked opens it within that time, or it is
// there no more; a command of LVM later, it is.
const restAfter = 10 * time.Minute

// use notes that a logical volume is asked for, and keeps it from being put to rest
// until release is called.
func (p *Pool) use(ctx context.Context, id string) (release func(), err error) {
	dir := filepath.Join(p.dir, usedDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(filepath.Join(dir, id), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock.Hold(ctx, f, unix.LOCK_EX); err != nil {
			f.Close()
			return nil, err
		}
		now := time.Now()
		if err := os.Chtimes(f.Name(), now, now); !errors.Is(err, fs.ErrNotExist) {
			return func() { f.Close() }, err
		}
		f.Close() // it was put to rest meanwhile
	}
}

// rest unmounts and deactivates what nobody uses, and tells the file systems that are
// in use how much they may grow now.
func (p *Pool) rest(ctx context.Context) error {
	dir := filepath.Join(p.dir, usedDir)
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	limits, err := p.limitsOf(ctx, entries)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !pooldir.ValidID(e.Name()) {
			continue
		}
		p.restOne(ctx, e.Name())
		if limit, writable := limits[e.Name()]; writable && mount.Mounted(p.mountPoint(e.Name())) {
			err = errors.Join(err, p.bound(ctx, e.Name(), limit))
		}
	}
	return err
}

// restOne puts a logical volume to rest if it was not asked for lately and nobody
// uses it.
func (p *Pool) restOne(ctx context.Context, id string) {
	f, err := os.OpenFile(filepath.Join(p.dir, usedDir, id), os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || time.Since(st.ModTime()) < restAfter || unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	point := p.mountPoint(id)
	if mount.Mounted(point) {
		if p.mountedElsewhere(id) || unix.Unmount(point, unix.UMOUNT_NOFOLLOW) != nil {
			return
		}
	}
	os.Remove(point) // and with it the copies of the mount in other namespaces
	if p.isActive(id) {
		// It is refused while anybody has the device open.
		if _, err := lvm(ctx, "lvchange", "-An", "-an", "--", p.full(id)); err != nil {
			return
		}
	}
	os.Remove(f.Name())
}

// limitsOf gives the limits of the writable trees among the logical volumes that were
// asked for.
func (p *Pool) limitsOf(ctx context.Context, entries []os.DirEntry) (map[string]int64, error) {
	limits := map[string]int64{}
	if len(entries) == 0 {
		return limits, nil
	}
	named, err := p.named(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		key, ok := named[e.Name()]
		if !ok {
			continue
		}
		if rec, err := p.load(key); err == nil && rec.Data == e.Name() && !rec.readOnly() {
			limits[e.Name()] = rec.Limit
		}
	}
	return limits, nil
}
