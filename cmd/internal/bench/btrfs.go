package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/store"
	"brig/storage"
	"brig/storage/btrfs"
)

// The sizes of volumes that have to cost the same, and what is changed in them
// before something is measured.
const (
	smallSize  = 1 << 20
	largeSize  = 20 << 30
	changeSize = 1 << 20
)

// snapshots is how many a volume with many has.
const snapshots = 1000

// btrfs measures the driver's operations beside the one ioctl that they are about,
// and whole commands.
func (b *bench) btrfs(ctx context.Context) (rows []row, err error) {
	p, done, err := b.btrfsPool(ctx, "fast", "40GiB")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	for _, part := range []func(context.Context, *btrfs.Pool) ([]row, error){b.btrfsOperations, b.thousandSnapshots, b.btrfsCommands} {
		got, err := part(ctx, p)
		rows = append(rows, got...)
		if err != nil {
			return rows, err
		}
	}
	got, err := b.overwriting(ctx, p)
	return append(rows, got...), err
}

// btrfsPool has brig make a pool on btrfs, and opens it here as well.
func (b *bench) btrfsPool(ctx context.Context, name, size string) (*btrfs.Pool, func() error, error) {
	if err := b.do(ctx, "storage", "create", name, "btrfs", "--size", size); err != nil {
		return nil, nil, err
	}
	remove := func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return b.do(ctx, "storage", "delete", name)
	}
	p, err := btrfs.Open(filepath.Join(store.DirsFor(b.brig).Run, "pools", name), btrfs.Options{})
	if err != nil {
		return nil, nil, errors.Join(err, remove())
	}
	return p, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanTime)
		defer cancel()
		return errors.Join(empty(ctx, p), p.Close(), remove())
	}, nil
}

// empty deletes all volumes that the bench has made.
func empty(ctx context.Context, p storage.Pool) error {
	var errs []error
	for _, class := range []storage.Class{storage.Custom, storage.Instances, storage.Images} {
		names, err := p.List(ctx, class)
		errs = append(errs, err)
		for _, name := range names {
			if class == storage.Custom || isOurs(name) {
				errs = append(errs, p.Delete(ctx, storage.Key{Class: class, Name: name}))
			}
		}
	}
	return errors.Join(append(errs, p.Sweep(ctx))...)
}

// ours begins the names of images that the bench made by itself: those of brig are
// hexadecimal.
const ours = "bench."

func isOurs(name string) bool { return len(name) > len(ours) && name[:len(ours)] == ours }

func volume(name string) storage.Key { return storage.Key{Class: storage.Custom, Name: name} }

// writeBase makes an image of so many bytes, which are reserved and not written.
func writeBase(ctx context.Context, p storage.Pool, name string, size int64) (storage.Key, error) {
	key := storage.Key{Class: storage.Images, Name: ours + name}
	_, err := p.Create(ctx, key, storage.Tree, func(dir *os.Root) error {
		if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
			return err
		}
		f, err := dir.Create(storage.RootName + "/data")
		if err != nil {
			return err
		}
		return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, size), f.Close())
	})
	return key, err
}

// change writes to a tree, and waits until it is on disk.
func change(dir string, size int) error {
	f, err := os.Create(filepath.Join(dir, "changed"))
	if err != nil {
		return err
	}
	_, err = f.Write(make([]byte, size))
	return errors.Join(err, unix.Syncfs(int(f.Fd())), f.Close())
}

// btrfsOperations measures each operation on a small and a large volume that was
// just changed.
func (b *bench) btrfsOperations(ctx context.Context, p *btrfs.Pool) (rows []row, err error) {
	small, err := writeBase(ctx, p, "small", smallSize)
	if err != nil {
		return nil, err
	}
	large, err := writeBase(ctx, p, "large", largeSize)
	if err != nil {
		return nil, err
	}
	operations := []string{"create", "snapshot", "restore", "copy"}
	var sides []side
	for _, base := range []storage.Key{small, large} {
		for _, what := range operations {
			sides = append(sides, operation(p, base, what))
		}
	}
	m, err := b.byTurns(ctx, 1, b.rounds, append(sides, operation(p, small, "ioctl"))...)
	if err != nil {
		return nil, err
	}
	ioctl := m[len(sides)]
	for i, what := range operations {
		n := i + len(operations)
		rows = append(rows,
			row{what + " of a volume on btrfs, 1 MB", "ms", m[i], ioctl, "the ioctl", limit{more, 5}},
			row{what + " of a volume on btrfs, 20 GB", "ms", m[n], ioctl, "the ioctl", limit{more, 5}},
			row{what + ", 20 GB beside 1 MB", "ms", m[n], m[i], "1 MB", limit{times, 1.2}},
		)
	}
	return rows, nil
}

// operation times one operation of the driver on a new clone with a snapshot and a
// change since, or the bare ioctl.
func operation(p *btrfs.Pool, base storage.Key, what string) side {
	web, copied := volume("web"), volume("copied")
	return func(ctx context.Context) (took float64, err error) {
		var v storage.Volume
		clone := func() (err error) {
			v, err = p.Clone(ctx, storage.Source{Key: base}, web, storage.CloneOptions{})
			return err
		}
		created, err := timed(clone)
		if err != nil {
			return 0, err
		}
		tree := v.Root().Upper
		if err := errors.Join(v.Snapshot(ctx, "s", storage.SnapshotOptions{}), change(tree, changeSize)); err != nil {
			return 0, err
		}
		switch what {
		case "create":
			took = created
		case "snapshot":
			took, err = timed(func() error { return v.Snapshot(ctx, "now", storage.SnapshotOptions{}) })
		case "restore":
			took, err = timed(func() error { return v.Restore(ctx, "s") })
		case "copy":
			took, err = timed(func() error {
				_, err := p.Clone(ctx, storage.Source{Key: web}, copied, storage.CloneOptions{})
				return err
			})
			if err == nil {
				err = p.Delete(ctx, copied)
			}
		case "ioctl":
			source := filepath.Dir(tree)
			took, err = timed(func() error { return bareSnapshot(source, filepath.Join(source, "bare")) })
		}
		return took, errors.Join(err, p.Delete(ctx, web), p.Sweep(ctx))
	}
}

// bareSnapshot takes a read-only snapshot of a subvolume by the ioctl alone.
func bareSnapshot(source, target string) error {
	const (
		snapCreate = 0x50009417 // BTRFS_IOC_SNAP_CREATE_V2
		readOnly   = 1 << 1
	)
	args := struct {
		fd      int64
		transid uint64
		flags   uint64
		_       [4]uint64
		name    [4040]byte
	}{flags: readOnly}
	s, err := os.Open(source)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := os.Open(filepath.Dir(target))
	if err != nil {
		return err
	}
	defer d.Close()
	args.fd = int64(s.Fd())
	copy(args.name[:255], filepath.Base(target))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), snapCreate, uintptr(unsafe.Pointer(&args)))
	if errno != 0 {
		return fmt.Errorf("taking a snapshot: %w", errno)
	}
	return nil
}

// thousandSnapshots compares a volume that has a thousand snapshots with one that
// has few.
func (b *bench) thousandSnapshots(ctx context.Context, p *btrfs.Pool) ([]row, error) {
	few, err := filesOn(ctx, p, "few")
	if err != nil {
		return nil, err
	}
	many, err := filesOn(ctx, p, "many")
	if err != nil {
		return nil, err
	}
	if err := takeMany(ctx, many); err != nil {
		return nil, err
	}
	next := func(v storage.Volume, n *int) side {
		return func(ctx context.Context) (float64, error) {
			*n++
			if err := change(v.Root().Upper, 4<<10); err != nil {
				return 0, err
			}
			return timed(func() error { return v.Snapshot(ctx, fmt.Sprint("more", *n), storage.SnapshotOptions{}) })
		}
	}
	m, err := b.byTurns(ctx, 1, b.rounds, next(many, new(int)), next(few, new(int)))
	if err != nil {
		return nil, err
	}
	return []row{{fmt.Sprintf("snapshot %d of a volume on btrfs", snapshots), "ms", m[0], m[1], "the first ones", limit{times, 1.5}}},
		errors.Join(p.Delete(ctx, few.Key()), p.Delete(ctx, many.Key()), p.Sweep(ctx))
}

// The files that are overwritten.
const (
	files    = 500
	fileSize = 16 << 10
)

// filesOn makes a volume with some files.
func filesOn(ctx context.Context, p storage.Pool, name string) (storage.Volume, error) {
	v, err := p.Create(ctx, volume(name), storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
	if err != nil {
		return nil, err
	}
	return v, writeFiles(v.Root().Upper)
}

func writeFiles(dir string) error {
	data := make([]byte, fileSize)
	for i := range files {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), data, 0o600); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// takeMany takes a thousand snapshots of a volume, which changes a bit before each.
func takeMany(ctx context.Context, v storage.Volume) error {
	for i := range snapshots {
		err := os.WriteFile(filepath.Join(v.Root().Upper, "count"), fmt.Append(nil, i), 0o600)
		if err := errors.Join(err, v.Snapshot(ctx, fmt.Sprint("s", i), storage.SnapshotOptions{})); err != nil {
			return err
		}
	}
	return nil
}

// overwriting overwrites files under a thousand snapshots, on the given pool, where
// nothing is limited, and on another where the volume is.
func (b *bench) overwriting(ctx context.Context, free *btrfs.Pool) (rows []row, err error) {
	limited, done, err := b.btrfsPool(ctx, "limited", "10GiB")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	var sides []side
	for _, p := range []*btrfs.Pool{limited, free} {
		v, err := filesOn(ctx, p, "files")
		if err != nil {
			return nil, err
		}
		if p == limited {
			if err := storage.SetLimit(ctx, v, 5<<30); err != nil {
				return nil, err
			}
		}
		if err := takeMany(ctx, v); err != nil {
			return nil, err
		}
		n := 0
		sides = append(sides, func(ctx context.Context) (float64, error) {
			n++
			if err := v.Snapshot(ctx, fmt.Sprint("more", n), storage.SnapshotOptions{}); err != nil {
				return 0, err
			}
			return timed(func() error { return writeFiles(v.Root().Upper) })
		})
	}
	m, err := b.byTurns(ctx, 1, b.rounds, sides...)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("overwrite %d files under %d snapshots, size limited", files, snapshots)
	return []row{{what, "ms", m[0], m[1], "without a limit", limit{times, 1.2}}}, nil
}

// btrfsCommands measures whole commands on a stopped container of the full Debian.
func (b *bench) btrfsCommands(ctx context.Context, p *btrfs.Pool) ([]row, error) {
	const name = "onbtrfs"
	steps := [][]string{
		{"create", debianImage, name, "-s", "fast"},
		{"snapshot", "create", name, "s"},
		{"snapshot", "restore", name, "s"},
		{"copy", name, name + "2"},
	}
	took := make([]float64, len(steps))
	var sides []side
	for i := range steps {
		sides = append(sides, func(ctx context.Context) (float64, error) {
			if i > 0 {
				return took[i], nil
			}
			// One container goes through all of them.
			for j, args := range steps {
				var err error
				if took[j], err = b.timeBrig(ctx, args...); err != nil {
					return 0, err
				}
			}
			return took[0], errors.Join(b.do(ctx, "delete", "--now", name, name+"2"), b.calm(ctx))
		})
	}
	ioctl, err := writeBase(ctx, p, "bare", smallSize)
	if err != nil {
		return nil, err
	}
	m, err := b.byTurns(ctx, 1, b.rounds, append(sides, operation(p, ioctl, "ioctl"))...)
	if err != nil {
		return nil, err
	}
	var rows []row
	for i, what := range []string{"create", "snapshot create", "snapshot restore", "copy"} {
		rows = append(rows, row{"`brig " + what + "` on btrfs, the whole command", "ms", m[i], m[len(sides)], "the ioctl", limit{}})
	}
	return rows, nil
}
