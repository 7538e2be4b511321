package overlay

import (
	"cmp"
	"context"
	"errors"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"brig/storage"
	"brig/storage/treecopy"
)

// Usage measures a volume: all layers that it and its snapshots stand on, and of
// those the ones that nobody else needs. Each layer is walked once, however many
// snapshots stand on it.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer storage.Fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err != nil {
		return storage.Usage{}, err
	}
	m, err := p.weigh(ctx, &rec)
	if err != nil {
		return storage.Usage{}, err
	}
	own, err := (&meter{ctx: ctx}).measure(p.path(v.key.String()))
	if err != nil {
		return storage.Usage{}, err
	}
	users, err := p.users(ctx, v.key, &rec)
	if err != nil {
		return storage.Usage{}, err
	}
	all := rec.all()
	u := storage.Usage{Used: own + m.used(all)}
	// Without the volume, what other volumes name is left.
	u.Exclusive = own + m.freed(slices.DeleteFunc(slices.Clone(all), func(id string) bool { return users.others[id] }))
	for _, s := range rec.Snapshots {
		n, err := (&meter{ctx: ctx}).measure(p.path(v.key.String(), snapshotsDir, s.ID))
		if err != nil {
			return u, err
		}
		only := slices.DeleteFunc(slices.Clone(s.Layers), func(id string) bool { return users.others[id] || users.own[id] != 1 })
		u.Snapshots = append(u.Snapshots, storage.SnapshotUsage{Name: s.Name, Used: n + m.used(s.Layers), Exclusive: n + m.freed(only)})
	}
	slices.SortStableFunc(u.Snapshots, func(a, b storage.SnapshotUsage) int {
		return rec.age(a.Name).Compare(rec.age(b.Name))
	})
	return u, nil
}

// age tells when a snapshot was taken.
func (r *record) age(name string) time.Time {
	if i, err := r.find(name); err == nil {
		return r.Snapshots[i].CreatedAt
	}
	return time.Time{}
}

// users tells who names layers: other volumes, and how many of a volume's own
// states do.
type users struct {
	others map[string]bool
	own    map[string]int
}

func (p *Pool) users(ctx context.Context, key storage.Key, rec *record) (users, error) {
	u := users{others: map[string]bool{}, own: map[string]int{}}
	now := record{Layers: rec.Layers, Merged: rec.Merged, Active: rec.Active, Next: rec.Next}
	for _, id := range now.all() {
		u.own[id]++
	}
	for _, s := range rec.Snapshots {
		for _, id := range s.Layers {
			u.own[id]++
		}
	}
	err := p.records(ctx, func(dir string, other *record) {
		if dir == key.String() {
			return
		}
		for _, id := range other.all() {
			u.others[id] = true
		}
	})
	return u, err
}

// weights are what layers take up. Merged layers share files with those that they
// were made from, as links.
type weights struct {
	alone  map[string]int64             // of each layer: what has one name
	linked map[string]map[inode]*linked // of each layer: what has more
	size   map[inode]int64
}

// linked counts the names that a file has in a layer, and anywhere.
type linked struct{ here, all uint64 }

// weigh measures the layers of a record.
func (p *Pool) weigh(ctx context.Context, rec *record) (*weights, error) {
	w := &weights{alone: map[string]int64{}, linked: map[string]map[inode]*linked{}, size: map[inode]int64{}}
	for _, id := range rec.all() {
		m := &meter{ctx: ctx, links: map[inode]*linked{}, size: w.size}
		n, err := m.measure(p.path(layersDir, id))
		if err != nil {
			return nil, err
		}
		w.alone[id], w.linked[id] = n, m.links
	}
	return w, nil
}

// used is what these layers take up together.
func (w *weights) used(layers []string) (total int64) {
	seen := map[inode]bool{}
	for _, id := range layers {
		total += w.alone[id]
		for file := range w.linked[id] {
			if !seen[file] {
				total += w.size[file]
			}
			seen[file] = true
		}
	}
	return total
}

// freed is what becomes free without these layers: not a file that has names
// elsewhere.
func (w *weights) freed(layers []string) (total int64) {
	names := map[inode]uint64{}
	for _, id := range layers {
		total += w.alone[id]
		for file, l := range w.linked[id] {
			if names[file] += l.here; names[file] == l.all {
				total += w.size[file]
			}
		}
	}
	return total
}

// inode is a file on one file system.
type inode struct{ dev, ino uint64 }

// meter counts the blocks of files. Those with several names are counted apart, if
// links is there for that.
type meter struct {
	ctx   context.Context
	links map[inode]*linked
	size  map[inode]int64
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
	if err := cmp.Or(m.ctx.Err(), unix.Fstat(dir, &st)); err != nil {
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
			if !m.link(&st) {
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

// link notes a name of a file that has several.
func (m *meter) link(st *unix.Stat_t) bool {
	if st.Nlink == 1 || m.links == nil {
		return false
	}
	file := inode{st.Dev, st.Ino}
	if m.links[file] == nil {
		m.links[file] = &linked{}
	}
	l := m.links[file]
	l.here++
	l.all = max(l.all, st.Nlink)
	m.size[file] = st.Blocks * 512
	return true
}
