package btrfs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
)

// benchPool makes a pool with the image base, a tree with some files.
func benchPool(b *testing.B) (*btrfs.Pool, storage.Key) {
	b.Helper()
	p := benchOn(b, b.TempDir())
	base := storage.Key{Class: storage.Images, Name: "base"}
	_, err := p.Create(b.Context(), base, storage.Tree, func(dir *os.Root) error {
		for i := range 10000 {
			sub := fmt.Sprintf("rootfs/%d", i/100)
			if i%100 == 0 {
				if err := dir.MkdirAll(sub, 0o755); err != nil {
					return err
				}
			}
			if err := dir.WriteFile(fmt.Sprintf("%s/%d", sub, i), make([]byte, i%6000), 0o644); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return p, base
}

// benchOn makes a pool on a btrfs of its own that waits for the disk.
func benchOn(b *testing.B, dir string) *btrfs.Pool {
	b.Helper()
	if os.Getuid() != 0 {
		b.Skip("needs root: mounts a btrfs")
	}
	place := filepath.Join(dir, "fs")
	if err := mkfs(filepath.Join(dir, "file"), place, 4<<30, "barrier"); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { unix.Unmount(place, unix.MNT_DETACH) })
	p, err := btrfs.Open(place, btrfs.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// stopwatch keeps how long things take, and reports the middle of it.
type stopwatch struct {
	b     *testing.B
	spent map[string][]time.Duration
}

func newStopwatch(b *testing.B) *stopwatch {
	return &stopwatch{b, map[string][]time.Duration{}}
}

func (w *stopwatch) measure(what string, f func() error) {
	start := time.Now()
	if err := f(); err != nil {
		w.b.Fatal(err)
	}
	w.spent[what] = append(w.spent[what], time.Since(start))
}

func (w *stopwatch) report() {
	for what, times := range w.spent {
		slices.Sort(times)
		w.b.ReportMetric(float64(times[len(times)/2].Microseconds()), "µs/"+what)
	}
	w.b.ReportMetric(0, "ns/op")
}

// BenchmarkOperations measures the operations on a volume in which nothing, 1 MB
// or 500 MB was changed, beside the bare ioctl.
func BenchmarkOperations(b *testing.B) {
	for _, size := range []int64{0, 1 << 20, 500 << 20} {
		b.Run(fmt.Sprintf("changed=%dMB", size>>20), func(b *testing.B) {
			ctx := b.Context()
			p, base := benchPool(b)
			w := newStopwatch(b)
			for i := range b.N {
				web := storage.Key{Class: storage.Instances, Name: fmt.Sprintf("web%d", i)}
				var v storage.Volume
				w.measure("create", func() (err error) {
					v, err = p.Clone(ctx, storage.Source{Key: base}, web, storage.CloneOptions{})
					return err
				})
				change(b, v.Root().Upper, size)
				w.measure("snapshot", func() error { return v.Snapshot(ctx, "s", storage.SnapshotOptions{}) })
				change(b, v.Root().Upper, min(size, 1<<20))
				copied := storage.Key{Class: storage.Instances, Name: fmt.Sprintf("copy%d", i)}
				w.measure("copy", func() error {
					_, err := p.Clone(ctx, storage.Source{Key: web}, copied, storage.CloneOptions{})
					return err
				})
				w.measure("restore", func() error { return v.Restore(ctx, "s") })
				w.measure("open", func() error { _, err := p.Open(ctx, web); return err })
				w.measure("usage", func() error { _, err := v.Usage(ctx); return err })
				change(b, v.Root().Upper, min(size, 1<<20))
				source := filepath.Dir(v.Root().Upper)
				w.measure("ioctl", func() error { return btrfs.Snapshot(source, source, "floor") })
				w.measure("delete", func() error { return p.Delete(ctx, web) })
				if err := p.Delete(ctx, copied); err != nil {
					b.Fatal(err)
				}
				if err := p.Sweep(ctx); err != nil {
					b.Fatal(err)
				}
			}
			w.report()
		})
	}
}

// change writes size bytes to a tree, all of them to the disk.
func change(b *testing.B, dir string, size int64) {
	b.Helper()
	f, err := os.Create(filepath.Join(dir, "data"))
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 1<<20)
	for ; size > 0; size -= int64(len(buf)) {
		if _, err := f.Write(buf); err != nil {
			b.Fatal(err)
		}
	}
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkThousandSnapshots compares snapshots of a volume that has a thousand
// with the first ones of another, on a file system of its own, in turns: so both
// see what else the host does.
func BenchmarkThousandSnapshots(b *testing.B) {
	ctx := b.Context()
	for range b.N {
		w := newStopwatch(b)
		p, many := benchVolume(b)
		_, few := benchVolume(b)
		snapshot := func(v storage.Volume, i int) func() error {
			change(b, v.Root().Upper, 4<<10)
			return func() error { return v.Snapshot(ctx, fmt.Sprintf("s%d", i), storage.SnapshotOptions{}) }
		}
		for i := range 1000 {
			if err := snapshot(many, i)(); err != nil {
				b.Fatal(err)
			}
		}
		for i := range 50 {
			w.measure("first", snapshot(few, i))
			w.measure("1000th", snapshot(many, 1000+i))
		}
		w.measure("list", func() error { _, err := many.Snapshots(ctx); return err })
		w.measure("restore", func() error { return many.Restore(ctx, "s500") })
		w.measure("usage", func() error { _, err := many.Usage(ctx); return err })
		w.measure("delete", func() error { return p.Delete(ctx, many.Key()) })
		w.measure("sweep", func() error { return p.Sweep(ctx) })
		w.report()
	}
}

// benchVolume makes a pool with a volume that is a clone of the image.
func benchVolume(b *testing.B) (*btrfs.Pool, storage.Volume) {
	b.Helper()
	p, base := benchPool(b)
	v, err := p.Clone(b.Context(), storage.Source{Key: base}, web, storage.CloneOptions{})
	if err != nil {
		b.Fatal(err)
	}
	return p, v
}

// BenchmarkLimit overwrites 500 files of a volume that has a thousand snapshots:
// without a limit, with one, and with full quota groups, which brig never uses.
func BenchmarkLimit(b *testing.B) {
	for _, kind := range []string{"without", "limited", "qgroups"} {
		b.Run(kind, func(b *testing.B) {
			for range b.N {
				w := newStopwatch(b)
				overwrite(b, w, kind)
				w.report()
			}
		})
	}
}

func overwrite(b *testing.B, w *stopwatch, kind string) {
	ctx := b.Context()
	dir := b.TempDir()
	p := benchOn(b, dir)
	key := storage.Key{Class: storage.Instances, Name: "web"}
	v, err := p.Create(ctx, key, storage.Tree, func(dir *os.Root) error { return dir.Mkdir("rootfs", 0o755) })
	if err != nil {
		b.Fatal(err)
	}
	switch kind {
	case "limited":
		err = v.(storage.Limiter).SetLimit(ctx, 2<<30)
	case "qgroups":
		_, err = run.Output(ctx, "btrfs", "quota", "enable", filepath.Join(dir, "fs"))
	}
	if err != nil {
		b.Fatal(err)
	}
	buf := make([]byte, 16<<10)
	write := func(n int) error {
		for i := range n {
			if err := os.WriteFile(filepath.Join(v.Root().Upper, fmt.Sprint(i)), buf, 0o600); err != nil {
				return err
			}
		}
		d, err := os.Open(v.Root().Upper)
		if err != nil {
			return err
		}
		defer d.Close()
		return unix.Syncfs(int(d.Fd()))
	}
	if err := write(500); err != nil {
		b.Fatal(err)
	}
	for i := range 1000 {
		if err := v.Snapshot(ctx, fmt.Sprintf("s%d", i), storage.SnapshotOptions{}); err != nil {
			b.Fatal(err)
		}
	}
	for range 5 {
		w.measure("overwrite", func() error { return write(500) })
		w.measure("snapshot", func() error {
			return v.Snapshot(ctx, fmt.Sprintf("t%d", len(w.spent["snapshot"])), storage.SnapshotOptions{})
		})
	}
}

// BenchmarkDisk lets QEMU write 4 KiB at places all over a disk of 1 GiB that is
// full: in a raw file that is copied on write, which is what brig has, in one that
// is not, and in a qcow2 file; and again after each of three snapshots.
func BenchmarkDisk(b *testing.B) {
	for _, kind := range []string{"raw", "nodatacow", "qcow2"} {
		b.Run(kind, func(b *testing.B) {
			for range b.N {
				p := benchOn(b, b.TempDir())
				w := newStopwatch(b)
				if err := writeDisk(b, p, w, kind); err != nil {
					b.Fatal(err)
				}
				w.report()
			}
		})
	}
}

func writeDisk(b *testing.B, p *btrfs.Pool, w *stopwatch, kind string) error {
	ctx := b.Context()
	const noCopy = 0x00800000
	v, err := p.Create(ctx, web, storage.Disk, func(dir *os.Root) error {
		if kind == "qcow2" {
			_, err := run.Output(ctx, "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir.Name(), storage.DiskQcow2), "1G")
			return err
		}
		f, err := dir.Create(storage.DiskRaw)
		if err != nil {
			return err
		}
		defer f.Close()
		if kind == "nodatacow" {
			err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, noCopy)
		}
		return errors.Join(err, f.Truncate(1<<30))
	})
	if err != nil {
		return err
	}
	write := func(args ...string) error {
		args = append([]string{"bench", "-q", "-w", "-t", "none", "-f", v.Root().DiskFormat}, args...)
		_, err := run.Output(ctx, "qemu-img", append(args, v.Root().DiskPath)...)
		return err
	}
	if err := write("-c", "1024", "-d", "4", "-s", "1M"); err != nil {
		return err
	}
	for _, what := range []string{"first", "second", "snapshot", "snapshot", "snapshot"} {
		if what == "snapshot" {
			if err := v.Snapshot(ctx, fmt.Sprint("s", len(w.spent[what])), storage.SnapshotOptions{}); err != nil {
				return err
			}
		}
		// The step is odd in blocks, and so comes to each once.
		w.measure(what, func() error {
			return write("-c", "20000", "-d", "8", "-s", "4k", "-S", "17829888", "--flush-interval", "32")
		})
	}
	w.measure("read", func() error {
		_, err := run.Output(ctx, "qemu-img", "bench", "-q", "-t", "none", "-f", v.Root().DiskFormat, "-c", "1024", "-d", "4", "-s", "1M", v.Root().DiskPath)
		return err
	})
	return p.Delete(ctx, web)
}
