package overlay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"brig/storage"
	"brig/storage/overlay"
)

// BenchmarkStopped measures the operations on a stopped volume in which nothing,
// 1 MB or 1 GB was changed: they have to cost the same.
func BenchmarkStopped(b *testing.B) {
	for _, size := range []int64{0, 1 << 20, 1 << 30} {
		b.Run(fmt.Sprintf("changed=%d", size), func(b *testing.B) {
			ctx := b.Context()
			p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
			if err != nil {
				b.Fatal(err)
			}
			image := storage.Key{Class: storage.Images, Name: "base"}
			_, err = p.Create(ctx, image, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
			if err != nil {
				b.Fatal(err)
			}
			clone := func(from storage.Source, name string) storage.Volume {
				v, err := p.Clone(ctx, from, storage.Key{Class: storage.Instances, Name: name}, storage.CloneOptions{})
				if err != nil {
					b.Fatal(err)
				}
				return v
			}
			spent := map[string]time.Duration{}
			measure := func(what string, f func() error) {
				start := time.Now()
				if err := f(); err != nil {
					b.Fatal(err)
				}
				spent[what] += time.Since(start)
			}
			for i := range b.N {
				web := clone(storage.Source{Key: image}, fmt.Sprintf("web%d", i))
				change(b, web.Root().Upper, size)
				measure("snapshot", func() error { return web.Snapshot(ctx, "s", storage.SnapshotOptions{}) })
				change(b, web.Root().Upper, min(size, 1<<20))
				measure("copy", func() error { clone(storage.Source{Key: web.Key()}, fmt.Sprintf("copy%d", i)); return nil })
				measure("restore", func() error { return web.Restore(ctx, "s") })
				measure("open", func() error { _, err := p.Open(ctx, web.Key()); return err })
				measure("delete", func() error { return p.Delete(ctx, web.Key()) })
				if err := p.Delete(ctx, storage.Key{Class: storage.Instances, Name: fmt.Sprintf("copy%d", i)}); err != nil {
					b.Fatal(err)
				}
				if err := p.Sweep(ctx); err != nil {
					b.Fatal(err)
				}
			}
			for what, d := range spent {
				b.ReportMetric(float64(d.Microseconds())/float64(b.N), "µs/"+what)
			}
		})
	}
}

// change writes size bytes to a tree.
func change(b *testing.B, dir string, size int64) {
	if size == 0 {
		return
	}
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
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkOpen measures what a list of instances does for each.
func BenchmarkOpen(b *testing.B) {
	p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		b.Fatal(err)
	}
	key := storage.Key{Class: storage.Instances, Name: "web"}
	_, err = p.Create(b.Context(), key, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		v, err := p.Open(b.Context(), key)
		if err != nil {
			b.Fatal(err)
		}
		dir, err := v.Dir()
		if err != nil {
			b.Fatal(err)
		}
		dir.Close()
	}
}
