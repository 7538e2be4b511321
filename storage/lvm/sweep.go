package lvm

import (
	"cmp"
	"context"
	"errors"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/pooldir"
)

// Sweep removes the logical volumes that the entries of the trash let go and no
// record names, and puts to rest what nobody uses. It looks for no others, so it
// takes as long as there is to remove, and never takes away what it merely does not
// know. It can be stopped anywhere.
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
	if err := cmp.Or(err, p.emptyTrash(ctx)); err != nil {
		return err
	}
	return p.rest(ctx)
}

// emptyTrash removes what the entries of the trash name, and then these.
func (p *Pool) emptyTrash(ctx context.Context) error {
	entries, err := pooldir.Names(p.root, pooldir.Trash)
	if err != nil || len(entries) == 0 {
		return err
	}
	named, err := p.named(ctx)
	if err != nil {
		return err
	}
	ids := map[string][]string{}
	var all []string
	for _, entry := range entries {
		list, e := p.idsIn(path.Join(pooldir.Trash, entry))
		if e != nil {
			err = errors.Join(err, e)
			continue
		}
		ids[entry] = list
		all = append(all, list...)
	}
	failed, e := p.free(ctx, all, named)
	err = errors.Join(err, e)
	for entry, list := range ids {
		if slices.ContainsFunc(list, func(id string) bool { return failed[id] }) {
			continue // the others are not to blame
		}
		err = errors.Join(err, p.root.RemoveAll(path.Join(pooldir.Trash, entry)))
		p.step("trash emptied")
	}
	return err
}

// Pending tells whether there is anything for Sweep.
func (p *Pool) Pending() bool { return p.root.Pending() }

// named gives the logical volumes that records name, and of which volume each is.
// An unreadable record is an error: nobody knows what it named.
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
			for _, id := range rec.ids() {
				named[id] = key
			}
		}
	}
	return named, nil
}

// destroy removes those of the logical volumes that no record names.
func (p *Pool) destroy(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	named, err := p.named(ctx)
	if err != nil {
		return err
	}
	_, err = p.free(ctx, ids, named)
	return err
}

// atOnce is how many logical volumes one command removes.
const atOnce = 100

// free removes those of the logical volumes that are not among the named ones, with
// the metadata files of snapshots. Repeating it is fine; what is gone is gone. It
// tells which ones it could not remove.
func (p *Pool) free(ctx context.Context, ids []string, named map[string]storage.Key) (failed map[string]bool, err error) {
	failed = map[string]bool{}
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.DeleteFunc(slices.Compact(ids), func(id string) bool { _, used := named[id]; return used })
	for part := range slices.Chunk(ids, atOnce) {
		for id, e := range p.remove(ctx, part) {
			failed[id] = true
			err = errors.Join(err, e)
		}
	}
	for _, id := range ids {
		if !failed[id] {
			err = errors.Join(err, p.root.RemoveAll(path.Join(snapshotsDir, id)))
		}
	}
	return failed, err
}

// remove removes logical volumes, and tells which ones it could not.
func (p *Pool) remove(ctx context.Context, ids []string) map[string]error {
	failed := map[string]error{}
	args := []string{"-An", "-f", "-y", "--"}
	for _, id := range ids {
		p.unmount(id)
		args = append(args, p.full(id))
	}
	_, err := lvm(ctx, "lvremove", args...)
	if err == nil {
		p.step("removed")
		return nil
	}
	there, e := p.existing(ctx)
	for _, id := range ids {
		switch {
		case e != nil:
			failed[id] = errors.Join(err, e)
		case there[id]:
			if err := p.removeOne(ctx, id); err != nil {
				failed[id] = err
			}
		}
	}
	return failed
}

// removeOne removes a logical volume that somebody may have in use.
func (p *Pool) removeOne(ctx context.Context, id string) error {
	try := func() error {
		_, err := lvm(ctx, "lvremove", "-An", "-f", "-y", "--", p.full(id))
		return pooldir.IgnoreMissing(err)
	}
	err := try()
	if fault.Is(err, fault.Busy) {
		err = holders.Outlast(ctx, try)
	}
	if fault.Is(err, fault.Busy) {
		return fault.New(fault.Busy, "%q %s; it is removed when that ends", p.full(id), p.inUse(id))
	}
	return err
}

// existing tells which logical volumes of the pool there are.
func (p *Pool) existing(ctx context.Context) (map[string]bool, error) {
	list, err := lvs(ctx, p.vg, "lv_name=~^"+p.id+"-")
	if err != nil {
		return nil, pooldir.Damaged(err)
	}
	there := map[string]bool{}
	for _, v := range list {
		there[strings.TrimPrefix(v.Name, p.id+"-")] = true
	}
	return there, nil
}

// labelled finds the logical volumes of a volume, and its snapshots, by their tags.
func (p *Pool) labelled(ctx context.Context, key storage.Key) ([]string, error) {
	list, err := lvs(ctx, p.vg, "lv_name=~^"+p.id+"-")
	if err != nil {
		return nil, pooldir.Damaged(err)
	}
	var ids []string
	for _, v := range list {
		id := strings.TrimPrefix(v.Name, p.id+"-")
		if pooldir.ValidID(id) && slices.Contains(strings.Split(v.Tags, ","), tagVolume+key.String()) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
