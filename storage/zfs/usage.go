package zfs

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"brig/storage"
	"brig/storage/pooldir"
)

// Usage measures a volume: what its datasets and their snapshots take up, and of
// that what nobody shares. Data that several snapshots share with each other and
// with no clone are counted as exclusive, since they go with the volume.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer storage.Fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err != nil {
		return storage.Usage{}, err
	}
	// ZFS counts what is on disk. What was just written is not yet.
	if err := p.sync(ctx); err != nil && !p.readOnly() {
		return storage.Usage{}, err
	}
	args := []string{"list", "-Hp", "-r", "-d", "1", "-t", "filesystem,snapshot",
		"-o", "name,used,written,usedbysnapshots,referenced,origin,clones"}
	for _, dataset := range rec.datasets() {
		args = append(args, p.full(dataset))
	}
	out, err := zfs(ctx, args...)
	if err != nil {
		return storage.Usage{}, gone(err)
	}
	found, err := parseSpace(out)
	if err != nil {
		return storage.Usage{}, err
	}
	own := p.recordSize(v.key)
	u := storage.Usage{Used: own, Exclusive: own}
	for _, s := range found {
		used, exclusive := s.total(found)
		u.Used += used
		u.Exclusive += exclusive
	}
	list := slices.Clone(rec.Snapshots)
	slices.SortStableFunc(list, func(a, b snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	for i := range list {
		dataset, id, _ := strings.Cut(p.full(rec.object(&list[i])), "@")
		u.Snapshots = append(u.Snapshots, found[dataset].usage(list[i].Name, id))
	}
	return u, nil
}

// space is what ZFS tells of the space of a dataset and its snapshots.
type space struct {
	used, written, inSnapshots, referenced int64
	origin                                 string // the dataset it is a clone of; may be empty
	snapshots                              map[string]snapshotSpace
}

type snapshotSpace struct {
	used, referenced int64
	clones           []string
}

// total is what the dataset takes up beside the other ones of its volume's own,
// and what of it no other volume shares.
func (s *space) total(own map[string]*space) (used, exclusive int64) {
	used = s.referenced + s.inSnapshots
	if own[s.origin] != nil {
		used = s.used // the rest is counted there
	}
	alone := s.written
	shared := false
	for _, snap := range s.snapshots {
		isOther := func(clone string) bool { return own[clone] == nil }
		if slices.ContainsFunc(snap.clones, isOther) {
			shared = true
		} else {
			alone += snap.used
		}
	}
	if shared {
		return used, alone // what of the snapshots their clones need too, ZFS does not tell
	}
	return used, s.used
}

// usage tells of one snapshot. One with clones frees nothing when it is deleted: it
// goes with the last of them.
func (s *space) usage(name, id string) storage.SnapshotUsage {
	u := storage.SnapshotUsage{Name: name}
	if s == nil {
		return u // the dataset is gone
	}
	snap := s.snapshots[id]
	u.Used = snap.referenced
	if len(snap.clones) == 0 {
		u.Exclusive = snap.used
	}
	return u
}

// parseSpace reads what zfs list printed for Usage: a line for each dataset and
// each snapshot. What makes no sense for one of them is a dash.
func parseSpace(out string) (map[string]*space, error) {
	found := map[string]*space{}
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 7 {
			return nil, fmt.Errorf("zfs list printed %q", line)
		}
		var n [4]int64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseInt(f[i+1], 10, 64); err != nil && f[i+1] != "-" {
				return nil, fmt.Errorf("zfs list printed %q: %w", line, err)
			}
		}
		dataset, id, isSnapshot := strings.Cut(f[0], "@")
		s := found[dataset]
		if s == nil {
			s = &space{snapshots: map[string]snapshotSpace{}}
			found[dataset] = s
		}
		if isSnapshot {
			snap := snapshotSpace{used: n[0], referenced: n[3]}
			if f[6] != "" && f[6] != "-" {
				snap.clones = strings.Split(f[6], ",")
			}
			s.snapshots[id] = snap
			continue
		}
		s.used, s.written, s.inSnapshots, s.referenced = n[0], n[1], n[2], n[3]
		s.origin, _, _ = strings.Cut(f[5], "@")
	}
	return found, nil
}

// recordSize gives the bytes of a volume's record and metadata files.
func (p *Pool) recordSize(key storage.Key) (total int64) {
	for _, dir := range []string{key.String(), path.Join(key.String(), pooldir.MetaDir)} {
		root, err := p.root.OpenRoot(dir)
		if err != nil {
			continue
		}
		names, _ := pooldir.Names(root, ".")
		for _, name := range names {
			if st, err := root.Lstat(name); err == nil {
				total += st.Size()
			}
		}
		root.Close()
	}
	return total
}
