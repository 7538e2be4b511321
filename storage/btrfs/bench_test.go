package btrfs_test

import (
	"fmt"
	"os"
	"path/filepath"
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

// stopwatch adds up how long things take.
type stopwatch struct {
	b     *testing.B
	spent map[string]time.Duration
	times map[string]int
}

func newStopwatch(b *testing.B) *stopwatch {
	return &stopwatch{b, map[string]time.Duration{}, map[string]int{}}
}

func (w *stopwatch) measure(what string, f func() error) {
	start := time.Now()
	if err := f(); err != nil {
		w.b.Fatal(err)
	}
	w.spent[what] += time.Since(start)
	w.times[what]++
}

func (w *stopwatch) report() {
	for what, d := range w.spent {
		w.b.ReportMetric(float64(d.Microseconds())/float64(w.times[what]), "µs/"+what)
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

// BenchmarkThousandSnapshots takes snapshots of one volume, with a change between
// them, and compares the first hundred with the last.
func BenchmarkThousandSnapshots(b *testing.B) {
	ctx := b.Context()
	for range b.N {
		p, base := benchPool(b)
		v, err := p.Clone(ctx, storage.Source{Key: base}, storage.Key{Class: storage.Instances, Name: "web"}, storage.CloneOptions{})
		if err != nil {
			b.Fatal(err)
		}
		w := newStopwatch(b)
		for i := range 1000 {
			change(b, v.Root().Upper, 4<<10)
			what := "other"
			switch {
			case i < 100:
				what = "first100"
			case i >= 900:
				what = "last100"
			}
			w.measure(what, func() error { return v.Snapshot(ctx, fmt.Sprintf("s%d", i), storage.SnapshotOptions{}) })
		}
		w.measure("list", func() error { _, err := v.Snapshots(ctx); return err })
		w.measure("restore", func() error { return v.Restore(ctx, "s500") })
		w.measure("usage", func() error { _, err := v.Usage(ctx); return err })
		w.measure("delete", func() error { return p.Delete(ctx, v.Key()) })
		w.measure("sweep", func() error { return p.Sweep(ctx) })
		w.report()
	}
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
			return v.Snapshot(ctx, fmt.Sprintf("t%d", w.times["snapshot"]), storage.SnapshotOptions{})
		})
	}
}
