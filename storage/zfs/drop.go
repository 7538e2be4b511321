package zfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v4"

	"brig/instance/fault"
)

// dropSnapshot destroys a snapshot, or lets ZFS do it when its last clone is gone.
func (p *Pool) dropSnapshot(ctx context.Context, object string) error {
	d := &gozfs.Dataset{Name: p.full(object)}
	err := patient(ctx, func() error {
		return first(ctx.Err(), classify(d.Destroy(gozfs.DestroyDeferDeletion)))
	})
	if err := ignoreMissing(err); err != nil {
		return err
	}
	p.step("snapshot dropped")
	return nil
}

// dropDataset destroys a dataset that no volume is in any more, if nothing needs
// its snapshots. If only clones do, one of them takes them over, so that nothing
// of a deleted volume stays but the data that others share. If there are snapshots
// of a volume, or some that brig did not make, all that is newer is freed.
func (p *Pool) dropDataset(ctx context.Context, dataset string) error {
	p.unmount(dataset)
	for {
		s, err := p.inspect(ctx, dataset)
		if err != nil {
			return ignoreMissing(err)
		}
		switch {
		case len(s.snapshots) == 0:
			return p.destroyDataset(ctx, dataset)
		case s.kept != "":
			return p.strip(ctx, dataset, s)
		}
		err = patient(ctx, func() error {
			_, err := zfs(ctx, "promote", s.heir)
			return err
		})
		// An heir that is gone meanwhile makes another one the heir.
		if err := ignoreMissing(err); err != nil {
			return err
		}
		p.step("clone promoted")
	}
}

// remains is what is left of a dataset.
type remains struct {
	written   int64    // bytes since the last snapshot
	snapshots []string // full names, oldest first
	kept      string   // one that is to stay; empty: there is none
	foreign   bool     // kept is none of brig's
	heir      string   // the clone that can take over the last snapshot that has one
}

// inspect looks at a dataset.
func (p *Pool) inspect(ctx context.Context, dataset string) (remains, error) {
	out, err := zfs(ctx, "list", "-Hp", "-r", "-d", "1", "-t", "filesystem,snapshot", "-s", "createtxg",
		"-o", "name,written,defer_destroy,userrefs,clones", p.full(dataset))
	if err != nil {
		return remains{}, err
	}
	return parseRemains(out, p.dataset)
}

// parseRemains reads what zfs list printed for inspect.
func parseRemains(out, pool string) (s remains, err error) {
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 {
			return s, fmt.Errorf("zfs list printed %q", line)
		}
		_, id, isSnapshot := strings.Cut(f[0], "@")
		if !isSnapshot {
			if _, err := fmt.Sscan(f[1], &s.written); err != nil {
				return s, fmt.Errorf("zfs list printed %q: %w", line, err)
			}
			continue
		}
		s.snapshots = append(s.snapshots, f[0])
		heir := ""
		for clone := range strings.SplitSeq(f[4], ",") {
			if strings.HasPrefix(clone, pool+"/") {
				heir = clone
			}
		}
		// What waits for nothing but clones of this pool need not stay here.
		if f[2] == "on" && (f[3] == "0" || f[3] == "-") && heir != "" {
			s.heir = heir
			continue
		}
		s.kept, s.foreign = f[0], s.foreign || !validID(id)
	}
	return s, nil
}

// strip frees what is in a dataset and not in its snapshots.
func (p *Pool) strip(ctx context.Context, dataset string, s remains) error {
	if s.foreign {
		d := &gozfs.Dataset{Name: p.full(dataset)}
		if err := classify(d.SetProperty(propState, "deleted")); err != nil {
			return err
		}
	}
	if s.written == 0 {
		return nil
	}
	_, err := zfs(ctx, "rollback", s.snapshots[len(s.snapshots)-1])
	if err == nil {
		p.step("dataset stripped")
	}
	return ignoreMissing(err)
}

// destroyDataset destroys a dataset that has no snapshots. If it is mounted
// anywhere, it is unmounted there unless it is in use.
func (p *Pool) destroyDataset(ctx context.Context, dataset string) error {
	name := p.full(dataset)
	d := &gozfs.Dataset{Name: name}
	try := func() error { return first(ctx.Err(), classify(d.Destroy(gozfs.DestroyDefault))) }
	err := try()
	if fault.Is(err, fault.Busy) {
		err = patient(ctx, func() error {
			release(name)
			return try()
		})
	}
	if fault.Is(err, fault.Busy) {
		who := "a program that keeps a file of it open"
		if list := holders(name); len(list) > 0 {
			who = fmt.Sprint(list[0])
			if len(list) > 1 {
				who = fmt.Sprintf("%s and %d others", who, len(list)-1)
			}
		}
		return fault.New(fault.Busy, "dataset %q is in use by %s; it is destroyed when that ends", name, who)
	}
	if err := ignoreMissing(err); err != nil {
		return err
	}
	p.step("dataset destroyed")
	if err := os.Remove(p.mountPoint(dataset)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
