package overlay

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/storage"
)

// Sweep frees what nothing names any more. It works in an order in which it can
// be stopped anywhere: the trash, which makes Pending true, is emptied last.
func (p *Pool) Sweep(ctx context.Context) (err error) {
	defer fail(&err, "cannot sweep pool %q", p.name)
	trash := p.trashed()
	dead := p.deadChanges()
	defer func() {
		for _, c := range dead {
			c.lock.Close()
			c.dir.Close()
		}
	}()
	for _, c := range dead {
		// In the trash, its record keeps no layers.
		id, err := p.throwAway(c.path())
		if err != nil {
			return err
		}
		trash = append(trash, id)
	}
	leftovers, err := p.sweepVolumes(ctx)
	if err != nil {
		return err
	}
	trash = append(trash, leftovers...)
	layers, err := p.collect(ctx)
	if err != nil {
		return err
	}
	trash = append(trash, layers...)
	p.step("layers collected")
	return p.emptyTrash(ctx, trash)
}

// Pending tells whether there is anything for Sweep. Every change has a directory
// while it runs, so one that died is seen here, whatever it left elsewhere.
func (p *Pool) Pending() bool {
	if len(p.trashed()) > 0 {
		return true
	}
	dead := p.deadChanges()
	for _, c := range dead {
		c.lock.Close()
		c.dir.Close()
	}
	return len(dead) > 0
}

// throwAway moves a directory to the trash and gives its name there.
func (p *Pool) throwAway(dir string) (string, error) {
	id := newID()
	return id, ignoreMissing(p.root.Rename(dir, path.Join(trashDir, id)))
}

// deadChanges gives the changes whose owners died, locked.
func (p *Pool) deadChanges() []*change {
	entries, err := readDir(p.root, stagingDir)
	if err != nil {
		return nil
	}
	var dead []*change
	for _, e := range entries {
		c := &change{pool: p, name: e.Name()}
		if c.dir, err = p.root.OpenRoot(c.path()); err != nil {
			continue
		}
		if c.lock, err = c.dir.Open("."); err == nil {
			if unix.Flock(int(c.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				dead = append(dead, c)
				continue
			}
			c.lock.Close()
		}
		c.dir.Close()
	}
	return dead
}

// sweepVolumes throws away what died changes and deletions on a full file system
// left in the directories of volumes: things marked as gone, and snapshots that
// no record names.
func (p *Pool) sweepVolumes(ctx context.Context) (trash []string, err error) {
	throw := func(dir string) error {
		id, err := p.throwAway(dir)
		trash = append(trash, id)
		return err
	}
	for _, class := range classes {
		entries, err := readDir(p.root, string(class))
		if err != nil {
			return trash, err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return trash, err
			}
			dir := path.Join(string(class), e.Name())
			if strings.HasPrefix(e.Name(), gonePrefix) {
				err = throw(dir)
			} else {
				err = p.sweepSnapshots(dir, throw)
			}
			if err != nil {
				return trash, err
			}
		}
	}
	return trash, nil
}

func (p *Pool) sweepSnapshots(dir string, throw func(dir string) error) error {
	// Most volumes are left after this one look.
	entries, err := readDir(p.root, path.Join(dir, snapshotsDir))
	if err != nil || len(entries) == 0 {
		return ignoreMissing(err)
	}
	// Whoever takes a snapshot has the lock. It is not worth waiting for.
	lock, err := p.root.Open(dir)
	if err != nil {
		return ignoreMissing(err)
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	rec, err := p.read(dir)
	if err != nil {
		return nil // it went away, or is damaged: then nothing of it is touched
	}
	if entries, err = readDir(p.root, path.Join(dir, snapshotsDir)); err != nil {
		return ignoreMissing(err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(rec.Snapshots, func(s snapshot) bool { return s.ID == e.Name() }) {
			if err := throw(path.Join(dir, snapshotsDir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// collect throws away the layers that no record names. It looks twice: first to
// see whether there are any, without a lock, and then under the lock that keeps
// everybody from naming layers, for the time that renaming takes.
func (p *Pool) collect(ctx context.Context) (trash []string, err error) {
	unused, err := p.unused(ctx)
	if err != nil || len(unused) == 0 {
		return nil, err
	}
	release, err := p.lockLayers(ctx, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer release()
	if unused, err = p.unused(ctx); err != nil {
		return nil, err
	}
	for _, layer := range unused {
		id, err := p.throwAway(path.Join(layersDir, layer))
		if err != nil {
			return trash, err
		}
		trash = append(trash, id)
		p.step("layer collected")
	}
	return trash, nil
}

// unused gives the layers that no record names. An unreadable record is an error:
// nobody knows what it named.
func (p *Pool) unused(ctx context.Context) ([]string, error) {
	entries, err := readDir(p.root, layersDir)
	if err != nil {
		return nil, err
	}
	used := map[string]bool{}
	err = p.records(ctx, func(_ string, rec *record) {
		for _, id := range rec.all() {
			used[id] = true
		}
	})
	var unused []string
	for _, e := range entries {
		if !used[e.Name()] {
			unused = append(unused, e.Name())
		}
	}
	return unused, err
}

// records reads every record, those of changes included, which come first: a
// record moves from a change to a class.
func (p *Pool) records(ctx context.Context, f func(dir string, rec *record)) error {
	dirs := []string{stagingDir}
	for _, class := range classes {
		dirs = append(dirs, string(class))
	}
	for _, parent := range dirs {
		entries, err := readDir(p.root, parent)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				return err
			}
			dir := path.Join(parent, e.Name())
			if parent == stagingDir {
				dir = path.Join(dir, newVolume)
			}
			if strings.HasPrefix(e.Name(), ".") {
				continue
			}
			rec, err := p.read(dir)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			f(dir, &rec)
		}
	}
	return nil
}

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
	names, err := namesIn(dir)
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
			if id := (inode{st.Dev, st.Ino}); st.Nlink == 1 || !m.seen[id] {
				m.seen[id] = true
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
