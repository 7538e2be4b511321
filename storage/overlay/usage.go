package overlay

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"brig/storage"
	"brig/storage/treecopy"
)

// Usage measures a volume: all layers that it and its snapshots stand on, and of
// those the ones that no other volume needs.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err != nil {
		return storage.Usage{}, err
	}
	elsewhere := map[string]bool{}
	err = p.records(ctx, func(dir string, other *record) {
		if dir == v.key.String() {
			return
		}
		for _, id := range other.all() {
			elsewhere[id] = true
		}
	})
	if err != nil {
		return storage.Usage{}, err
	}
	m := meter{ctx: ctx, seen: map[inode]bool{}}
	own, err := m.measure(p.path(v.key.String()))
	if err != nil {
		return storage.Usage{}, err
	}
	u := storage.Usage{Used: own, Exclusive: own}
	for _, id := range rec.all() {
		n, err := m.measure(p.path(layersDir, id))
		if err != nil {
			return u, err
		}
		u.Used += n
		if !elsewhere[id] {
			u.Exclusive += n
		}
	}
	return u, nil
}

// meter counts the blocks of files, each file once.
// inode is a file on one file system.
type inode struct{ dev, ino uint64 }

type meter struct {
	ctx  context.Context
	seen map[inode]bool
}

// measure gives the bytes that the directory dir and all below it take up.
func (m *meter) measure(dir string) (int64, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return m.below(fd)
}

func (m *meter) below(dir int) (int64, error) {
	var st unix.Stat_t
	if err := first(m.ctx.Err(), unix.Fstat(dir, &st)); err != nil {
		return 0, err
	}
	total := st.Blocks * 512
	names, err := treecopy.NamesIn(dir)
	if err != nil {
		return 0, err
	}
	for _, name := range names {
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if !m.again(&st) {
				total += st.Blocks * 512
			}
			continue
		}
		fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return 0, err
		}
		n, err := m.below(fd)
		unix.Close(fd)
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// again tells whether the file was counted under another name.
func (m *meter) again(st *unix.Stat_t) bool {
	if st.Nlink == 1 {
		return false
	}
	id := inode{st.Dev, st.Ino}
	seen := m.seen[id]
	m.seen[id] = true
	return seen
}
