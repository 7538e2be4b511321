package zfs

import (
	"context"
	"fmt"
	"path"
	"strconv"
	"strings"

	"brig/storage"
)

// Usage measures a volume: what its datasets and their snapshots take up, and of
// that what nobody shares. Data that several snapshots share with each other and
// with no clone are counted as exclusive, since they go with the volume.
func (v *volume) Usage(ctx context.Context) (_ storage.Usage, err error) {
	defer fail(&err, "cannot measure volume %q", v.key)
	p := v.pool
	rec, err := p.load(v.key)
	if err != nil {
		return storage.Usage{}, err
	}
	// ZFS counts what is on disk. What was just written is not yet.
	if err := p.sync(ctx); err != nil {
		return storage.Usage{}, err
	}
	own := p.recordSize(v.key)
	u := storage.Usage{Used: own, Exclusive: own}
	for _, dataset := range rec.datasets() {
		if err := p.addUsage(ctx, &u, dataset); err != nil {
			return u, err
		}
	}
	return u, nil
}

// addUsage adds what one dataset takes up.
func (p *Pool) addUsage(ctx context.Context, u *storage.Usage, dataset string) error {
	out, err := zfs(ctx, "list", "-Hp", "-r", "-d", "1", "-t", "filesystem,snapshot",
		"-o", "name,used,written,usedbysnapshots,referenced,clones", p.full(dataset))
	if err != nil {
		return unavailable(err)
	}
	shared := false
	var head [4]int64 // used, written since the last snapshot, usedbysnapshots, referenced
	var snapshots int64
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 6 {
			return fmt.Errorf("zfs list printed %q", line)
		}
		if strings.Contains(f[0], "@") {
			if f[5] != "" && f[5] != "-" {
				shared = true
			} else if n, err := strconv.ParseInt(f[1], 10, 64); err == nil {
				snapshots += n
			}
			continue
		}
		for i := range head {
			if head[i], err = strconv.ParseInt(f[i+1], 10, 64); err != nil {
				return fmt.Errorf("zfs list printed %q", line)
			}
		}
	}
	u.Used += head[3] + head[2]
	if shared {
		// What of the snapshots their clones need too, ZFS does not tell.
		u.Exclusive += head[1] + snapshots
	} else {
		u.Exclusive += head[0]
	}
	return nil
}

// recordSize gives the bytes of a volume's record and metadata files.
func (p *Pool) recordSize(key storage.Key) (total int64) {
	for _, dir := range []string{key.String(), path.Join(key.String(), metaDir)} {
		root, err := p.root.OpenRoot(dir)
		if err != nil {
			continue
		}
		names, _ := namesIn(root, ".")
		for _, name := range names {
			if st, err := root.Lstat(name); err == nil {
				total += st.Size()
			}
		}
		root.Close()
	}
	return total
}
