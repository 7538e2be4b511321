package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/images"
	"brig/instance/fault"
	"brig/storage"
)

// SpaceView tells what takes up space.
type SpaceView struct {
	Instances []InstanceSpace // sorted by name
	Volumes   []VolumeView    // custom ones, with what they take up, when all is listed
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
	Exclusive   int64  // that the instances and volumes do not share with anything else
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
			return nil, fault.New(fault.NotFound, "cannot find an instance named %q: see brig list", name)
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
	}
	return space, m.addPools(ctx, space, len(names) == 0)
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

// roomForImage refuses an image that a pool has no room for, as far as can be
// told before it is unpacked: compressed layers grow at least to double.
func roomForImage(ctx context.Context, pool storage.Pool, in string, image *images.Image) error {
	var need int64
	for _, l := range image.Layers {
		need += l.Size
		if strings.HasSuffix(l.MediaType, "gzip") || strings.HasSuffix(l.MediaType, "zstd") {
			need += l.Size
		}
	}
	return room(ctx, pool, in, need)
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
