package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/instance/fault"
	"brig/storage"
	"brig/storage/treecopy"
)

// SpaceView tells what takes up space.
type SpaceView struct {
	Instances []InstanceSpace // sorted by name
	Volumes   []VolumeView    // custom ones, with what they take up, when all is listed
	Trash     []TrashView     // what was deleted and is still kept, when all is listed
	Pools     []PoolSpace     // that instances of the list are in, or all
}

// InstanceSpace is what one instance takes up.
type InstanceSpace struct {
	Name, Pool string
	Snapshots  int
	Usage      storage.Usage
	Reason     string // why Usage cannot be told; empty: it can
}

// PoolSpace is what a pool has, and what the instances of the list in it take up.
type PoolSpace struct {
	Name        string
	Total, Free int64 // bytes
	Instances   int
	Exclusive   int64  // that the instances, the volumes and the trash do not share with anything else
	Reason      string // why Total and Free cannot be told; empty: they can
}

// Space measures the instances with these names, or all, and their pools. What
// cannot be measured has a line that says why.
func (m *Manager) Space(ctx context.Context, names []string) (*SpaceView, error) {
	views, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !slices.ContainsFunc(views, func(v View) bool { return v.Spec.Name == name }) {
			return nil, m.noInstance(ctx, name)
		}
	}
	space := &SpaceView{}
	for _, v := range views {
		if len(names) > 0 && !slices.Contains(names, v.Spec.Name) {
			continue
		}
		line := InstanceSpace{Name: v.Spec.Name, Pool: v.Pool, Snapshots: v.SnapshotCount}
		if err := m.measure(ctx, &line); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			line.Reason = err.Error()
		}
		space.Instances = append(space.Instances, line)
	}
	if len(names) == 0 {
		if space.Volumes, err = m.Volumes(ctx, "", GetOptions{Usage: true}); err != nil {
			return nil, err
		}
		if space.Trash, err = m.Trash(ctx, GetOptions{Usage: true}); err != nil {
			return nil, err
		}
	}
	return space, m.addPools(ctx, space, len(names) == 0)
}

// SpaceIn measures what is in one pool.
func (m *Manager) SpaceIn(ctx context.Context, in string) (*SpaceView, error) {
	views, err := m.listPool(ctx, in, m.started())
	if err != nil {
		return nil, err
	}
	space := &SpaceView{}
	for _, v := range views {
		line := InstanceSpace{Name: v.Spec.Name, Pool: in, Snapshots: v.SnapshotCount}
		if err := m.measure(ctx, &line); err != nil {
			line.Reason = err.Error()
		}
		space.Instances = append(space.Instances, line)
	}
	if space.Volumes, err = m.Volumes(ctx, in, GetOptions{Usage: true}); err != nil {
		return nil, err
	}
	trash, err := m.Trash(ctx, GetOptions{Usage: true})
	space.Trash = slices.DeleteFunc(trash, func(v TrashView) bool { return v.Pool != in })
	return space, err
}

func (m *Manager) measure(ctx context.Context, line *InstanceSpace) error {
	pool, err := m.pool(ctx, line.Pool)
	if err != nil {
		return err
	}
	volume, err := pool.Open(ctx, instanceKey(line.Name))
	if err != nil {
		return err
	}
	line.Usage, err = volume.Usage(ctx)
	return err
}

// addPools adds the pools of the instances, or all.
func (m *Manager) addPools(ctx context.Context, space *SpaceView, all bool) error {
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	for _, name := range names {
		line := PoolSpace{Name: name}
		for _, i := range space.Instances {
			if i.Pool == name {
				line.Instances++
				line.Exclusive += i.Usage.Exclusive
			}
		}
		for _, v := range space.Volumes {
			if v.Pool == name && v.Usage != nil {
				line.Exclusive += v.Usage.Exclusive
			}
		}
		for _, v := range space.Trash {
			if v.Pool == name && v.Usage != nil {
				line.Exclusive += v.Usage.Exclusive
			}
		}
		if !all && line.Instances == 0 {
			continue
		}
		pool, err := m.pool(ctx, name)
		var info storage.Info
		if err == nil {
			info, err = pool.Info(ctx)
		}
		if err != nil {
			line.Reason = err.Error()
		}
		line.Total, line.Free = info.Total, info.Free
		space.Pools = append(space.Pools, line)
	}
	return ctx.Err()
}

// room gives an exhausted error if a pool has less than need bytes free.
func room(ctx context.Context, pool storage.Pool, name string, need int64) error {
	info, err := pool.Info(ctx)
	if err != nil {
		return err
	}
	if need <= info.Free {
		return nil
	}
	if name == "" {
		name = DefaultPool
	}
	return fault.New(fault.Exhausted, "it needs %s and pool %q has %s free; free some space first (brig df shows what takes it), or use another pool", mebibytes(need), name, mebibytes(info.Free))
}

// mebibytes writes an amount for people.
func mebibytes(n int64) string { return fmt.Sprintf("%dMiB", (n+(1<<20-1))>>20) }

// madeSize is what a distribution takes at least that is made on the spot.
const madeSize = 200 << 20

// roomForImage refuses an image that there is no room for, as far as can be told
// before it is unpacked: in the pool for its files, and, if it is fetched, for its
// blobs where they are kept, which may be the same file system.
func (m *Manager) roomForImage(ctx context.Context, pool storage.Pool, in string, image *images.Image, fetched bool) error {
	files, blobs := m.imageNeeds(image)
	if !fetched {
		blobs = 0
	}
	info, err := pool.Info(ctx)
	if err != nil {
		return err
	}
	if m.besideState(info.Source) {
		files += blobs
		blobs = 0
	}
	if err := room(ctx, pool, in, files); err != nil || blobs == 0 {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.stateDir(), &st); err != nil {
		return nil // who writes there will say why that cannot be done
	}
	if free := int64(st.Bavail) * st.Bsize; blobs > free {
		return fault.New(fault.Exhausted, "what is fetched for it needs %s, and the file system of %q, where images are kept, has %s free; free some space there first", mebibytes(blobs), m.cfg.Dirs.State, mebibytes(free))
	}
	return nil
}

// imageNeeds tells how much an image needs for its files and for its blobs:
// compressed layers grow at least to double, and blobs that are here need nothing.
func (m *Manager) imageNeeds(image *images.Image) (files, blobs int64) {
	for _, l := range image.Layers {
		files += l.Size
		if strings.HasSuffix(l.MediaType, "gzip") || strings.HasSuffix(l.MediaType, "zstd") {
			files += l.Size
		}
		if f, err := m.cfg.Images.Blob(l.Digest); err == nil {
			f.Close()
		} else {
			blobs += l.Size
		}
	}
	if len(image.Layers) == 0 {
		files = max(image.Size, madeSize)
		if image.Fingerprint != "" {
			files = image.Size
		}
	}
	return files, blobs
}

// stateDir is the folder of state, or what is there of the way to it.
func (m *Manager) stateDir() string {
	dir := m.cfg.Dirs.State
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// besideState tells whether the source of a pool is a folder or file on the file
// system that state is on.
func (m *Manager) besideState(source string) bool {
	var there, here unix.Stat_t
	if unix.Stat(source, &there) != nil || unix.Stat(m.stateDir(), &here) != nil {
		return false
	}
	kind := there.Mode & unix.S_IFMT
	return there.Dev == here.Dev && (kind == unix.S_IFDIR || kind == unix.S_IFREG)
}

// roomLike refuses another volume with the data of one that a pool has no room
// for.
func roomLike(ctx context.Context, like storage.Volume, pool storage.Pool, in string) error {
	usage, err := like.Usage(ctx)
	if err != nil {
		return err
	}
	return room(ctx, pool, in, usage.Used)
}

// roomToClone refuses a snapshot of an instance, a copy of it in its pool or a way
// back that the pool has no room for: where that copies data.
func (m *Manager) roomToClone(ctx context.Context, inst *opened, live bool) error {
	pool, err := m.pool(ctx, inst.pool)
	if err != nil {
		return err
	}
	info, err := pool.Info(ctx)
	if err != nil {
		return err
	}
	can := info.Capabilities
	copies := !can.InstantClone || live && !can.LiveSnapshots && inst.volume.Content() == storage.Tree
	// What it takes is in the pool already, so it fits as often as the pool is less
	// than half full.
	if !copies || info.Free >= info.Total-info.Free {
		return nil
	}
	if !can.InstantClone {
		return roomLike(ctx, inst.volume, pool, inst.pool)
	}
	changed, err := treecopy.Size(ctx, inst.volume.Root().Upper)
	if err != nil {
		return err
	}
	return room(ctx, pool, inst.pool, changed)
}

// roomToCopy refuses a snapshot or copy of a custom volume in its pool, or of one of
// its snapshots, or the way back to that, which the pool has no room for: where
// that copies the files. Several are all made.
func (m *Manager) roomToCopy(ctx context.Context, c *custom, snapshots ...string) error {
	pool, err := m.pool(ctx, c.ref.Pool)
	if err != nil {
		return err
	}
	info, err := pool.Info(ctx)
	if err != nil {
		return err
	}
	can := info.Capabilities
	if c.volume.Content() != storage.Tree || can.InstantClone && can.LiveSnapshots || info.Free >= int64(len(snapshots))*(info.Total-info.Free) {
		return nil
	}
	if treecopy.Clones(c.volume.Root().Upper) {
		return nil
	}
	var need int64
	for _, snapshot := range snapshots {
		root := c.volume.Root()
		if snapshot != "" {
			if root, err = c.volume.SnapshotRoot(ctx, snapshot); err != nil {
				return err
			}
		}
		for _, dir := range append([]string{root.Upper}, root.Lower...) {
			if dir == "" {
				continue
			}
			n, err := treecopy.Size(ctx, dir)
			if err != nil {
				return err
			}
			need += n
		}
	}
	if err := room(ctx, pool, c.ref.Pool, need); err != nil {
		return fmt.Errorf("volume %q: %w", c.ref.Name, err)
	}
	return nil
}
