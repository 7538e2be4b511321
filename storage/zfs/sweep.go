package zfs

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Sweep destroys what the entries of the trash let go and no record names. It
// looks at nothing else, so it takes as long as there is to destroy, and never
// takes away what it merely does not know: a pool's own dataset may have been
// rolled back by hand. It can be stopped anywhere.
func (p *Pool) Sweep(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot sweep pool %q", p.name)
	if err := ctx.Err(); err != nil {
		return err
	}
	trash, err := p.root.Hold(ctx, pooldir.Trash, unix.LOCK_EX)
	if err != nil {
		return pooldir.Damaged(err)
	}
	defer trash.Close()
	for _, dead := range p.root.Dead() {
		err = errors.Join(err, p.throwAway(dead.Path()))
		dead.Close()
	}
	entries, listErr := pooldir.Names(trash, ".")
	if err := errors.Join(err, listErr); err != nil || len(entries) == 0 {
		return err
	}
	named, err := p.named(ctx)
	if err != nil {
		return err
	}
	objects := map[string][]string{}
	var all []string
	for _, entry := range entries {
		list, e := p.objectsIn(path.Join(pooldir.Trash, entry))
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		objects[entry] = list
		all = append(all, list...)
	}
	failed, e := p.free(ctx, all, named)
	err = errors.Join(err, e)
	for entry, list := range objects {
		if slices.ContainsFunc(list, func(o string) bool { return failed[o] }) {
			continue // the others are not to blame
		}
		err = errors.Join(err, p.root.RemoveAll(path.Join(pooldir.Trash, entry)))
		p.step("trash emptied")
	}
	return errors.Join(err, p.reclaim(ctx))
}

// Pending tells whether there is anything for Sweep.
func (p *Pool) Pending() bool { return p.root.Pending() }

// named gives the objects that records name, and of which volume each is. An
// unreadable record is an error: nobody knows what it named.
func (p *Pool) named(ctx context.Context) (map[string]storage.Key, error) {
	lock, err := p.root.Hold(ctx, ".", unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	named := map[string]storage.Key{}
	for _, class := range pooldir.Classes() {
		names, err := pooldir.Names(p.root, string(class))
		if err != nil {
			return nil, pooldir.Damaged(err)
		}
		for _, name := range names {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			key := storage.Key{Class: class, Name: name}
			rec, err := p.load(key)
			if fault.Is(err, fault.NotFound) {
				continue
			}
			if err != nil {
				return nil, err
			}
			for _, object := range rec.objects() {
				named[object] = key
			}
		}
	}
	return named, nil
}

// destroy destroys those of objects that no record names.
func (p *Pool) destroy(ctx context.Context, objects []string) error {
	if len(objects) == 0 {
		return nil
	}
	named, err := p.named(ctx)
	if err != nil {
		return err
	}
	_, err = p.free(ctx, objects, named)
	return err
}

// free destroys those of objects that are not among the named ones: snapshots
// first, then datasets, and also those that lost a snapshot, which may have been
// what was left of them. Repeating it is fine; what is gone is gone. It tells which
// ones it could not destroy.
func (p *Pool) free(ctx context.Context, objects []string, named map[string]storage.Key) (failed map[string]bool, err error) {
	failed = map[string]bool{}
	note := func(object string, e error) {
		failed[object] = failed[object] || e != nil
		err = errors.Join(err, e)
	}
	var datasets []string
	slices.Sort(objects)
	for _, object := range slices.Compact(objects) {
		dataset, _, isSnapshot := strings.Cut(object, "@")
		if _, used := named[object]; isSnapshot && used {
			continue
		}
		if isSnapshot {
			note(object, p.dropSnapshot(ctx, object))
		}
		if key, used := named[dataset]; !used {
			datasets = append(datasets, dataset)
		} else if !isSnapshot {
			p.relabel(dataset, key)
		}
	}
	for dataset, e := range p.dropDatasets(ctx, slices.Compact(datasets)) {
		note(dataset, e)
	}
	return failed, err
}

// relabel corrects the property of a dataset whose volume was being renamed.
func (p *Pool) relabel(dataset string, key storage.Key) {
	out, err := zfs(context.Background(), "get", "-Hp", "-o", "value", propVolume, p.full(dataset))
	if err == nil && strings.TrimSpace(out) != key.String() {
		p.label(dataset, key)
	}
}

// labelled finds the datasets of a volume, and their snapshots, by their properties.
func (p *Pool) labelled(ctx context.Context, key storage.Key) ([]string, error) {
	out, err := zfs(ctx, "list", "-Hp", "-r", "-t", "filesystem,snapshot", "-o", "name,"+propVolume, p.full(string(key.Class)))
	if err != nil {
		return nil, pooldir.Damaged(err)
	}
	var objects []string
	for line := range strings.Lines(out) {
		name, volume, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		object := strings.TrimPrefix(name, p.dataset+"/")
		if volume == key.String() && validObject(object) {
			objects = append(objects, object)
		}
	}
	return objects, nil
}
