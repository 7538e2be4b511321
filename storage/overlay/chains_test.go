package overlay_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/overlay"
	"brig/storage/qcow2"
	"brig/storage/storagetest"
)

// alone lets a volume be shortened that nobody uses.
func alone(context.Context) (*storage.Live, func(), error) { return nil, func() {}, nil }

// shortened shortens a volume when it should be.
func shortened(b testing.TB, p *overlay.Pool, v storage.Volume) {
	b.Helper()
	if s := v.(storage.Shortener); s.Long() {
		if err := s.Shorten(b.Context(), alone); err != nil {
			b.Fatal(err)
		}
		if err := p.Sweep(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkReadDisk compares reading a disk with a hundred snapshots, between which
// a megabyte each was changed, scattered over it, with reading one that holds the
// same and has one snapshot: from memory and from the device.
func BenchmarkReadDisk(b *testing.B) {
	const size = 256 << 20
	ctx := b.Context()
	p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		b.Fatal(err)
	}
	image, err := p.Create(ctx, storage.Key{Class: storage.Images, Name: "base"}, storage.Disk, func(dir *os.Root) error {
		_, err := run.Output(ctx, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -q -P 7 0 %d", size), raw(b, dir, size))
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	clone := func(name string) storage.Volume {
		v, err := p.Clone(ctx, storage.Source{Key: image.Key()}, storage.Key{Class: storage.Instances, Name: name}, storage.CloneOptions{})
		if err != nil {
			b.Fatal(err)
		}
		return v
	}
	once, often := clone("once"), clone("often")
	random := rand.New(rand.NewPCG(1, 1))
	merging := time.Duration(0)
	for i := range 100 {
		args := []string{"-f", "qcow2"}
		for range 16 {
			args = append(args, "-c", fmt.Sprintf("write -q %d 64k", random.IntN(size>>16)<<16))
		}
		for _, v := range []storage.Volume{once, often} {
			if _, err := run.Output(ctx, "qemu-io", append(args, v.Root().DiskPath)...); err != nil {
				b.Fatal(err)
			}
		}
		if err := often.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{}); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		shortened(b, p, often)
		merging += time.Since(start)
	}
	if err := once.Snapshot(ctx, "once", storage.SnapshotOptions{}); err != nil {
		b.Fatal(err)
	}
	b.Logf("it stands on %d files; merging took %v in all; the pool uses %d MiB over its image", depth(b, often), merging, over(b, often, size)>>20)
	for _, c := range []struct {
		name        string
		cache       string
		size, count int
	}{{"memory/random", "writeback", 4 << 10, 60000}, {"memory/sequential", "writeback", 1 << 20, 2048}, {"device/random", "none", 4 << 10, 4000}, {"device/sequential", "none", 1 << 20, 512}} {
		b.Run(c.name, func(b *testing.B) {
			shallow, deep := time.Hour, time.Hour
			for b.Loop() {
				for range 9 { // in turn, so that both have the same neighbours
					shallow = min(shallow, read(b, once, c.cache, c.size, c.count))
					deep = min(deep, read(b, often, c.cache, c.size, c.count))
				}
			}
			b.ReportMetric(shallow.Seconds()/deep.Seconds(), "of-depth-1")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// read gives the time that reading parts of a disk takes, without that for opening it.
func read(b testing.TB, v storage.Volume, cache string, size, count int) time.Duration {
	b.Helper()
	step := size
	if size < 1<<20 {
		step = 7*1052672 + 4096 // a walk over the disk that nothing foresees
	}
	out, err := run.Output(b.Context(), "qemu-img", "bench", "-t", cache, "-f", "qcow2", "-d", "1", "-c", fmt.Sprint(count),
		"-s", fmt.Sprint(size), "-S", fmt.Sprint(step), v.Root().DiskPath)
	if err != nil {
		b.Fatal(err)
	}
	_, text, _ := strings.Cut(string(out), "Run completed in ")
	text, _, _ = strings.Cut(text, " ")
	seconds, err := strconv.ParseFloat(text, 64)
	if err != nil {
		b.Fatalf("qemu-img bench said %s", out)
	}
	return time.Duration(seconds * float64(time.Second))
}

// depth is how many files a disk consists of.
func depth(b testing.TB, v storage.Volume) int {
	b.Helper()
	path := v.Root().DiskPath
	dir, err := os.OpenRoot(filepath.Dir(filepath.Dir(path)))
	if err != nil {
		b.Fatal(err)
	}
	defer dir.Close()
	chain, err := qcow2.Chain(dir, filepath.Join(filepath.Base(filepath.Dir(path)), filepath.Base(path)), qcow2.Qcow2)
	if err != nil {
		b.Fatal(err)
	}
	return len(chain)
}

// over is what a volume takes beside its image of this size.
func over(b testing.TB, v storage.Volume, image int64) int64 {
	b.Helper()
	u, err := v.Usage(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	return u.Used - image
}

// raw makes an empty raw disk.
func raw(b testing.TB, dir *os.Root, size int64) string {
	b.Helper()
	path := filepath.Join(dir.Name(), storage.DiskRaw)
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
		b.Fatal(err)
	}
	return path
}

// BenchmarkLookup compares what it takes to find all files of a tree for the first
// time, with one layer below it and with many.
func BenchmarkLookup(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: mounts volumes")
	}
	for _, snapshots := range []int{1, 5, 10, 20, 100} {
		b.Run(fmt.Sprint(snapshots), func(b *testing.B) {
			ctx := b.Context()
			p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
			if err != nil {
				b.Fatal(err)
			}
			v, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "web"}, storage.Tree, func(dir *os.Root) error {
				for i := range 400 {
					sub := fmt.Sprintf("rootfs/usr/d%d", i)
					if err := dir.MkdirAll(sub, 0o755); err != nil {
						return err
					}
					for j := range 20 {
						if err := dir.WriteFile(fmt.Sprintf("%s/%d", sub, j), []byte("x"), 0o644); err != nil {
							return err
						}
					}
				}
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			target := b.TempDir()
			spent := time.Hour
			layers := 0
			storagetest.Namespace(b, func() error {
				mounted := func(f func() error) error {
					r := v.Root()
					layers = len(r.Lower)
					if err := mount.Tree(target, mount.Spec{Lower: r.Lower, Upper: r.Upper, Work: r.Work}, mount.IDMap{}); err != nil {
						return err
					}
					return errors.Join(f(), unix.Unmount(target, 0))
				}
				for i := range snapshots {
					err := mounted(func() error {
						for j := range 20 {
							if err := os.WriteFile(filepath.Join(target, "usr", fmt.Sprintf("d%d/new%d", (i*20+j)%400, i)), nil, 0o644); err != nil {
								return err
							}
						}
						return nil
					})
					if err != nil {
						return err
					}
					if err := v.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{}); err != nil {
						return err
					}
					shortened(b, p, v)
				}
				for b.Loop() {
					for range 5 {
						err := mounted(func() error {
							start := time.Now()
							_, err := run.Output(ctx, "find", filepath.Join(target, "usr"), "-newer", target)
							spent = min(spent, time.Since(start))
							return err
						})
						if err != nil {
							return err
						}
					}
				}
				return nil
			})
			b.ReportMetric(float64(spent.Microseconds())/1000, "ms/find")
			b.ReportMetric(float64(layers), "layers")
		})
	}
}

// BenchmarkFreeze measures how long the writers of a tree stand still for a
// snapshot, with a gigabyte of changes in it.
func BenchmarkFreeze(b *testing.B) {
	ctx := b.Context()
	p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		b.Fatal(err)
	}
	v, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "web"}, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
	if err != nil {
		b.Fatal(err)
	}
	change(b, v.Root().Upper, 1<<30)
	for i := range 2000 {
		if err := os.WriteFile(filepath.Join(v.Root().Upper, fmt.Sprint(i)), []byte("x"), 0o644); err != nil {
			b.Fatal(err)
		}
	}
	var frozen, whole time.Duration
	for i := range b.N {
		start := time.Now()
		err := v.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{Live: &storage.Live{Freeze: func(context.Context) (func() error, error) {
			begin := time.Now()
			return func() error { frozen += time.Since(begin); return nil }, nil
		}}})
		if err != nil {
			b.Fatal(err)
		}
		whole += time.Since(start)
		if err := v.DeleteSnapshot(ctx, fmt.Sprint(i)); err != nil {
			b.Fatal(err)
		}
		if err := p.Sweep(ctx); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(frozen.Microseconds())/1000/float64(b.N), "ms-frozen/snapshot")
	b.ReportMetric(float64(whole.Milliseconds())/float64(b.N), "ms/snapshot")
}

// BenchmarkThousandth compares the snapshots after the thousandth of a volume with
// the first and the second of others, in turns: so both meet the same weather.
func BenchmarkThousandth(b *testing.B) {
	const rounds = 61
	for _, content := range []storage.Content{storage.Tree, storage.Disk} {
		b.Run(string(content), func(b *testing.B) {
			ctx := b.Context()
			p, err := overlay.Open(filepath.Join(b.TempDir(), "pool"), overlay.Options{})
			if err != nil {
				b.Fatal(err)
			}
			image := storage.Key{Class: storage.Images, Name: "base"}
			_, err = p.Create(ctx, image, content, func(dir *os.Root) error {
				if content == storage.Tree {
					return dir.Mkdir(storage.RootName, 0o755)
				}
				raw(b, dir, 64<<20)
				return nil
			})
			if err != nil {
				b.Fatal(err)
			}
			clone := func(name string) storage.Volume {
				v, err := p.Clone(ctx, storage.Source{Key: image}, storage.Key{Class: storage.Instances, Name: name}, storage.CloneOptions{})
				if err != nil {
					b.Fatal(err)
				}
				return v
			}
			snapshot := func(v storage.Volume, i int) time.Duration {
				if content == storage.Tree {
					err = os.WriteFile(filepath.Join(v.Root().Upper, fmt.Sprint(i)), []byte("x"), 0o644)
				} else {
					_, err = run.Output(ctx, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -q %d 4k", i%1000<<14), v.Root().DiskPath)
				}
				if err != nil {
					b.Fatal(err)
				}
				start := time.Now()
				if err := v.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{}); err != nil {
					b.Fatal(err)
				}
				took := time.Since(start)
				shortened(b, p, v)
				return took
			}
			many := clone("many")
			for i := range 1000 {
				snapshot(many, i)
			}
			var first, second, last []time.Duration
			for i := range rounds {
				few := clone(fmt.Sprint("few", i))
				first = append(first, snapshot(few, 0))
				second = append(second, snapshot(few, 1))
				last = append(last, snapshot(many, 1000+i))
			}
			b.ReportMetric(float64(median(first).Microseconds()), "µs-first")
			b.ReportMetric(float64(median(last).Microseconds()), "µs-last")
			b.ReportMetric(median(last).Seconds()/median(first).Seconds(), "times-first")
			b.ReportMetric(median(last).Seconds()/median(second).Seconds(), "times-second")
		})
	}
}

func median(list []time.Duration) time.Duration {
	list = slices.Sorted(slices.Values(list))
	return list[len(list)/2]
}

// TestMergingCopiesLittle follows the rule by which disks are merged through many
// snapshots, of which each changes something else.
func TestMergingCopiesLittle(t *testing.T) {
	for _, c := range []struct {
		snapshots int
		most      float64 // copies of each block
	}{{100, 4}, {1000, 9}} {
		var chain []int64
		copied := int64(0)
		for range c.snapshots {
			chain = append([]int64{100}, chain...)
			n := overlay.Run(chain)
			if len(chain) <= overlay.LongDisk {
				continue
			}
			total := int64(0)
			for _, size := range chain[:n] {
				total += size
			}
			copied += total
			chain = append([]int64{total}, chain[n:]...)
			if len(chain) > overlay.LongDisk {
				t.Fatalf("%d are left of a merge", len(chain))
			}
		}
		if got := float64(copied) / float64(100*c.snapshots); got > c.most {
			t.Errorf("%d snapshots: each block was copied %.1f times, want at most %.0f", c.snapshots, got, c.most)
		}
	}
}
