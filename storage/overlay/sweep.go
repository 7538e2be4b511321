package overlay

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/storage"
	"brig/storage/pooldir"
)

// Sweep frees what nothing names any more. It works in an order in which it can
// be stopped anywhere: the trash, which makes Pending true, is emptied last.
func (p *Pool) Sweep(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot sweep pool %q", p.name)
	trash := p.root.Trashed()
	for _, dead := range p.root.Dead() {
		// In the trash, its record keeps no layers. The lock goes at once: if this
		// was one that was just being made, its owner waits for it, and tries again.
		id, e := p.root.ThrowAway(dead.Path())
		dead.Close()
		err = errors.Join(err, e)
		trash = append(trash, id)
	}
	if err != nil {
		return err
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

// Pending tells whether there is anything for Sweep.
func (p *Pool) Pending() bool { return p.root.Pending() }

// sweepVolumes throws away what died changes and deletions on a full file system
// left in the directories of volumes: things marked as gone, and snapshots that
// no record names.
func (p *Pool) sweepVolumes(ctx context.Context) (trash []string, err error) {
	throw := func(dir string) error {
		id, err := p.root.ThrowAway(dir)
		trash = append(trash, id)
		return err
	}
	for _, class := range pooldir.Classes() {
		names, err := pooldir.Names(p.root, string(class))
		if err != nil {
			return trash, err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return trash, err
			}
			dir := path.Join(string(class), name)
			if strings.HasPrefix(name, gonePrefix) {
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
	names, err := pooldir.Names(p.root, path.Join(dir, snapshotsDir))
	if err != nil || len(names) == 0 {
		return pooldir.IgnoreMissing(err)
	}
	// Whoever takes a snapshot has the lock. It is not worth waiting for.
	lock, err := p.root.Open(dir)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	defer lock.Close()
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	rec, err := p.read(dir)
	if err != nil {
		return nil // it went away, or is damaged: then nothing of it is touched
	}
	if names, err = pooldir.Names(p.root, path.Join(dir, snapshotsDir)); err != nil {
		return pooldir.IgnoreMissing(err)
	}
	for _, name := range names {
		if !slices.ContainsFunc(rec.Snapshots, func(s snapshot) bool { return s.ID == name }) {
			if err := throw(path.Join(dir, snapshotsDir, name)); err != nil {
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
		id, err := p.root.ThrowAway(path.Join(layersDir, layer))
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
	names, err := pooldir.Names(p.root, layersDir)
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
	for _, name := range names {
		if !used[name] {
			unused = append(unused, name)
		}
	}
	return unused, err
}

// records reads every record, those of changes included, which come first: a
// record moves from a change to a class.
func (p *Pool) records(ctx context.Context, f func(dir string, rec *record)) error {
	dirs := []string{pooldir.Staging}
	for _, class := range pooldir.Classes() {
		dirs = append(dirs, string(class))
	}
	for _, parent := range dirs {
		names, err := pooldir.Names(p.root, parent)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return err
			}
			dir := path.Join(parent, name)
			if parent == pooldir.Staging {
				dir = path.Join(dir, pooldir.NewVolume)
			}
			if strings.HasPrefix(name, ".") {
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
