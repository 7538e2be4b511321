package zfs

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v4"

	"brig/instance/fault"
	"brig/storage/holders"
	"brig/storage/pooldir"
)

// dropSnapshot destroys a snapshot, or lets ZFS do it when its last clone is gone.
func (p *Pool) dropSnapshot(ctx context.Context, object string) error {
	err := p.remove(ctx, object, gozfs.DestroyDeferDeletion)
	if err == nil {
		p.step("snapshot dropped")
	}
	return err
}

// remove destroys an object. If it is mounted anywhere, it is unmounted there
// unless it is in use.
func (p *Pool) remove(ctx context.Context, object string, how gozfs.DestroyFlag) error {
	p.unmount(object)
	name := p.full(object)
	d := &gozfs.Dataset{Name: name}
	try := func() error { return cmp.Or(ctx.Err(), classify(d.Destroy(how))) }
	err := try()
	if fault.Is(err, fault.Busy) {
		err = holders.Outlast(ctx, func() error {
			release(one(name))
			return try()
		})
	}
	if fault.Is(err, fault.Busy) {
		return fault.New(fault.Busy, "%q %s; it is destroyed when that ends", name, users(name))
	}
	return pooldir.IgnoreMissing(err)
}

// users says who has an object mounted, or files of it open.
func users(name string) string {
	list := holders.Namespaces(one(name))
	if root, err := openDetached(name); err == nil {
		list = append(list, openers(root)...)
		root.Close()
	}
	return inUse(list)
}

// usersAt says who uses what is mounted at a directory.
func usersAt(point string) string {
	root, err := os.OpenRoot(point)
	if err != nil {
		return inUse(nil)
	}
	defer root.Close()
	return inUse(openers(root))
}

// dropDatasets destroys datasets that no volume is in any more, if nothing needs
// their snapshots. If only clones do, one of them takes them over, so that nothing
// of a deleted volume stays but the data that others share. If there are snapshots
// of a volume, or some that brig did not make, all that is newer is freed. It gives
// the datasets that it could not treat so.
func (p *Pool) dropDatasets(ctx context.Context, datasets []string) map[string]error {
	failed := map[string]error{}
	for len(datasets) > 0 {
		found, err := p.inspect(ctx, datasets)
		if err != nil {
			for _, dataset := range datasets {
				failed[dataset] = err
			}
			return failed
		}
		var rest []string
		for _, dataset := range datasets {
			r, ok := found[p.full(dataset)]
			switch {
			case !ok: // it is gone
			case len(r.snapshots) == 0:
				err = p.destroyDataset(ctx, dataset)
			case r.kept != "":
				err = p.strip(ctx, dataset, r)
			default:
				rest = append(rest, dataset)
			}
			if err != nil {
				failed[dataset] = err
				err = nil
			}
		}
		// Often the clones were among those that are gone by now.
		if len(rest) == len(datasets) {
			if err := p.promote(ctx, found[p.full(rest[0])].heir); err != nil {
				failed[rest[0]] = err
				rest = rest[1:]
			}
		}
		datasets = rest
	}
	return failed
}

// promote makes a clone the owner of the snapshots that it was made from. One that
// is gone by now is no error: somebody else is the heir then.
func (p *Pool) promote(ctx context.Context, clone string) error {
	err := holders.Outlast(ctx, func() error {
		_, err := zfs(ctx, "promote", clone)
		return err
	})
	if err == nil {
		p.step("clone promoted")
	}
	return pooldir.IgnoreMissing(err)
}

// remains is what is left of a dataset.
type remains struct {
	written   int64    // bytes since the last snapshot
	snapshots []string // full names, oldest first
	kept      string   // one that is to stay; empty: there is none
	foreign   bool     // kept is none of brig's
	heir      string   // the clone that can take over the last snapshot that has one
}

// inspect looks at datasets. What is missing in its answer does not exist.
func (p *Pool) inspect(ctx context.Context, datasets []string) (map[string]*remains, error) {
	args := []string{"list", "-Hp", "-r", "-d", "1", "-t", "filesystem,snapshot", "-s", "createtxg",
		"-o", "name,written,defer_destroy,userrefs,clones"}
	for _, dataset := range datasets {
		args = append(args, p.full(dataset))
	}
	out, err := zfs(ctx, args...)
	if err := pooldir.IgnoreMissing(err); err != nil {
		return nil, err
	}
	return parseRemains(out, p.dataset)
}

// parseRemains reads what zfs list printed for inspect.
func parseRemains(out, pool string) (map[string]*remains, error) {
	found := map[string]*remains{}
	of := func(name string) *remains {
		if found[name] == nil {
			found[name] = new(remains)
		}
		return found[name]
	}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return nil, fmt.Errorf("zfs list printed %q", line)
		}
		dataset, id, isSnapshot := strings.Cut(f[0], "@")
		r := of(dataset)
		if !isSnapshot {
			var err error
			if r.written, err = strconv.ParseInt(f[1], 10, 64); err != nil {
				return nil, fmt.Errorf("zfs list printed %q: %w", line, err)
			}
			continue
		}
		r.snapshots = append(r.snapshots, f[0])
		heir := ""
		for clone := range strings.SplitSeq(f[4], ",") {
			if strings.HasPrefix(clone, pool+"/") {
				heir = clone
			}
		}
		// What waits for nothing but clones of this pool need not stay here.
		if f[2] == "on" && (f[3] == "0" || f[3] == "-") && heir != "" {
			r.heir = heir
			continue
		}
		r.kept, r.foreign = f[0], r.foreign || !pooldir.ValidID(id)
	}
	return found, nil
}

// strip frees what is in a dataset and not in its snapshots.
func (p *Pool) strip(ctx context.Context, dataset string, s *remains) error {
	if s.foreign {
		d := &gozfs.Dataset{Name: p.full(dataset)}
		if err := classify(d.SetProperty(propState, "deleted")); err != nil {
			return err
		}
	}
	p.unmount(dataset)
	if s.written == 0 {
		return nil
	}
	_, err := zfs(ctx, "rollback", s.snapshots[len(s.snapshots)-1])
	if err == nil {
		p.step("dataset stripped")
	}
	return pooldir.IgnoreMissing(err)
}

// destroyDataset destroys a dataset that has no snapshots.
func (p *Pool) destroyDataset(ctx context.Context, dataset string) error {
	err := p.remove(ctx, dataset, gozfs.DestroyDefault)
	if err == nil {
		p.step("dataset destroyed")
	}
	return err
}
