package btrfs

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"math"
	"os"
	"path"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// A volume is counted in a quota group of level 1, whose members are all the
// subvolumes that were ever its data. Simple quotas charge an extent to the
// subvolume that wrote it, for as long as anybody keeps it, so nothing has to be
// looked up when extents are shared, and snapshots make writing no slower.

// quotas tells how the file system counts.
type quotas int

const (
	noQuotas quotas = iota
	simpleQuotas
	fullQuotas
)

// The quota tree and its items (linux/btrfs_tree.h).
const (
	quotaTree     = 8
	quotaStatus   = 240
	groupInfo     = 242
	groupLimits   = 244
	groupRelation = 246

	quotaOn     = 1
	quotaSimple = 8

	enableSimple = 4

	limitReferred = 1
	noLimit       = math.MaxUint64
)

// groupOf gives the group of a volume whose data was this subvolume at first. The
// highest bit of the number tells it from groups that people make.
func groupOf(subvolume uint64) uint64 { return 1<<48 | 1<<47 | subvolume }

func quotasOf(f *os.File) (quotas, error) {
	mode := noQuotas
	key := searchKey{tree: quotaTree, minType: quotaStatus, maxType: quotaStatus, maxOffset: math.MaxUint64}
	err := search(f, key, func(it item) error {
		if len(it.data) < 24 {
			return nil
		}
		switch flags := binary.LittleEndian.Uint64(it.data[16:]); {
		case flags&quotaOn == 0:
		case flags&quotaSimple != 0:
			mode = simpleQuotas
		default:
			mode = fullQuotas
		}
		return nil
	})
	return mode, pooldir.IgnoreMissing(err) // without quotas, there is no quota tree
}

// limits says how limits are kept.
func (p *Pool) limits() (string, error) {
	d, err := p.root.Open(".")
	if err != nil {
		return "", fault.Wrap(fault.Unavailable, err)
	}
	defer d.Close()
	mode, err := quotasOf(d)
	switch {
	case err != nil:
		return "", err
	case mode == simpleQuotas:
		return "simple quotas of btrfs: what a volume has written and somebody still keeps counts, what it shares with its image does not", nil
	case mode == fullQuotas:
		return "not kept: full quota groups are on, which make snapshots slow; after `btrfs quota disable`, the first limit turns on simple ones", nil
	}
	return "none is set; the first turns on simple quotas of btrfs (Linux 6.7), and what was written before will not count", nil
}

// newGroup makes the group of a new volume, if the file system counts.
func (c *change) newGroup() (uint64, error) {
	if mode, err := quotasOf(c.dir.File); mode != simpleQuotas || err != nil {
		return 0, err
	}
	data, err := openSubvolume(c.dir.Root, path.Join(newVolume, dataName))
	if err != nil {
		return 0, err
	}
	defer data.Close()
	return makeGroup(c.dir.File, data, 0)
}

// makeGroup makes a group, if there is none yet, and counts data in it. Zero
// stands for a new one. Groups are changed by way of a directory f of the pool:
// the kernel would charge the volume, which may be at its limit.
func makeGroup(f, data *os.File, group uint64) (uint64, error) {
	info, err := infoOf(data)
	if err != nil {
		return 0, err
	}
	if group == 0 {
		group = groupOf(info.id)
	}
	err = ioctl(f, "making a quota group", iocGroupCreate, unsafe.Pointer(&groupCreate{create: 1, group: group}))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return 0, err
	}
	return group, assign(f, info.id, group, true)
}

// assign makes a subvolume or group count in group, or no longer.
func assign(f *os.File, member, group uint64, on bool) error {
	args := &groupAssign{member: member, group: group}
	if on {
		args.assign = 1
	}
	err := ioctl(f, "changing a quota group", iocGroupAssign, unsafe.Pointer(args))
	if on && errors.Is(err, fs.ErrExist) || !on && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// count counts the new data in a directory of the change in a group, if there is
// one.
func (c *change) count(dir string, group uint64) error {
	if group == 0 {
		return nil
	}
	data, err := openSubvolume(c.dir.Root, path.Join(dir, dataName))
	if err != nil {
		return err
	}
	defer data.Close()
	if mode, err := quotasOf(data); mode != simpleQuotas || err != nil {
		return err
	}
	info, err := infoOf(data)
	if err != nil {
		return err
	}
	return assign(c.dir.File, info.id, group, true)
}

// removeGroup removes the group of the deleted volume in a directory, if it is
// one and has one.
func removeGroup(dir *os.File) error {
	fd, err := unix.Openat(int(dir.Fd()), volumeFile, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	f := os.NewFile(uintptr(fd), volumeFile)
	defer f.Close()
	var rec record
	if json.NewDecoder(io.LimitReader(f, maxRecord)).Decode(&rec) != nil || rec.Group != groupOf(rec.Group&(1<<47-1)) {
		return nil // damaged, or without a group
	}
	if mode, err := quotasOf(dir); mode != simpleQuotas || err != nil {
		return err
	}
	members, err := related(dir, rec.Group)
	if err != nil {
		return err
	}
	for _, m := range members {
		if err := assign(dir, m, rec.Group, false); err != nil {
			return err
		}
	}
	return pooldir.IgnoreMissing(ioctl(dir, "removing a quota group", iocGroupCreate, unsafe.Pointer(&groupCreate{group: rec.Group})))
}

// related gives the members of a group, or the groups that a subvolume is in.
func related(f *os.File, id uint64) (ids []uint64, err error) {
	key := searchKey{tree: quotaTree, minObject: id, maxObject: id, minType: groupRelation, maxType: groupRelation, maxOffset: math.MaxUint64}
	err = search(f, key, func(it item) error {
		ids = append(ids, it.offset)
		return nil
	})
	return ids, pooldir.IgnoreMissing(err)
}

// withoutGroups calls do while a subvolume is not counted in its groups.
func withoutGroups(f *os.File, subvolume uint64, do func() error) error {
	groups, err := related(f, subvolume)
	if err != nil {
		return err
	}
	for _, g := range groups {
		if err := assign(f, subvolume, g, false); err != nil {
			return err
		}
	}
	err = do()
	for _, g := range groups {
		err = errors.Join(err, assign(f, subvolume, g, true))
	}
	return err
}

var _ storage.Limiter = (*volume)(nil)

// SetLimit limits what the volume writes from now on.
func (v *volume) SetLimit(ctx context.Context, limit int64) (err error) {
	defer storage.Fail(&err, "cannot limit volume %q to %d bytes", v.key, limit)
	switch {
	case limit < 0:
		return fault.New(fault.Invalid, "a limit is not negative")
	case v.key.Class == storage.Images:
		return fault.New(fault.Unsupported, "images are read-only")
	case v.rec.Content == storage.Disk:
		return fault.New(fault.Unsupported, "a disk has a size of its own, and a machine that cannot write to it gets errors")
	}
	p := v.pool
	data, err := p.openData(v.source())
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return err
	}
	defer data.Close()
	pool, err := p.root.Open(".")
	if err != nil {
		return err
	}
	defer pool.Close()
	rec, err := p.load(v.key)
	if err != nil {
		return err
	}
	mode, err := quotasOf(pool)
	switch {
	case err != nil:
		return err
	case limit == 0 && (mode != simpleQuotas || rec.Group == 0):
		return nil
	case mode == fullQuotas:
		return fault.New(fault.Unsupported, "full quota groups are on, which make snapshots slow: run `btrfs quota disable %s` first", p.dir)
	case mode == noQuotas:
		if err := enableQuotas(pool); err != nil {
			return err
		}
	}
	group, err := makeGroup(pool, data, rec.Group)
	if err != nil {
		return err
	}
	p.step("group made")
	if rec.Group == 0 {
		rec.Group = group
		if err := p.replaceFile(path.Join(v.key.String(), volumeFile), rec); err != nil {
			return err
		}
		p.step("group noted")
	}
	args := &groupLimit{group: rec.Group, limit: quotaLimit{flags: limitReferred, maxRefer: uint64(limit)}}
	if limit == 0 {
		args.limit.maxRefer = noLimit
	}
	if err := ioctl(pool, "limiting a quota group", iocGroupLimit, unsafe.Pointer(args)); err != nil {
		return err
	}
	return syncAll(pool)
}

func enableQuotas(f *os.File) error {
	err := ioctl(f, "turning on simple quotas", iocQuotaCtl, unsafe.Pointer(&quotaCtl{cmd: enableSimple}))
	if errors.Is(err, unix.EINVAL) {
		return fault.New(fault.Unsupported, "this kernel has no simple quotas (they came with Linux 6.7), and full quota groups make writing a hundred times slower")
	}
	return err
}

// Limit gives the limit and what counts against it. The kernel counts when it
// commits, which may be half a minute ago.
func (v *volume) Limit(ctx context.Context) (limit storage.Limit, err error) {
	defer storage.Fail(&err, "cannot tell the limit of volume %q", v.key)
	data, err := v.pool.openData(v.source())
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return limit, err
	}
	defer data.Close()
	rec, err := v.pool.load(v.key)
	if err != nil || rec.Group == 0 {
		return limit, err
	}
	key := searchKey{tree: quotaTree, minType: groupInfo, maxType: groupLimits, minOffset: rec.Group, maxOffset: rec.Group}
	err = search(data, key, func(it item) error {
		switch {
		case it.offset != rec.Group:
		case it.kind == groupInfo && len(it.data) >= 16:
			limit.Used = int64(binary.LittleEndian.Uint64(it.data[8:]))
		case it.kind == groupLimits && len(it.data) >= 16:
			if binary.LittleEndian.Uint64(it.data)&limitReferred != 0 {
				limit.Max = int64(binary.LittleEndian.Uint64(it.data[8:]))
			}
		}
		return nil
	})
	return limit, pooldir.IgnoreMissing(err)
}
