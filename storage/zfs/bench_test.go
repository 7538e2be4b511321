package zfs_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/zfs"
)

// rounds is how often each operation is measured; the quickest counts, because others
// use the machine too.
const rounds = 9

// mostOver is how much longer an operation may take than the commands of ZFS that
// do the same: that much is promised for a host, and software emulation is given a
// bit more.
const mostOver = 1.6

// figures is a comparison of brig with ZFS's own commands, in a pool and a dataset
// beside it that hold the same.
type figures struct {
	pool  *zfs.Pool
	raw   string
	spent map[string][]time.Duration
}

// TestFigures compares operations with the commands of ZFS that do the same, on a
// small and a large volume, and prints a table. What is compared is done in turns,
// because a machine is not equally quick all the time.
func TestFigures(t *testing.T) {
	inside(t)
	if testing.Short() {
		t.Skip("measures")
	}
	const small, large = 1 << 20, 256 << 20
	f := &figures{raw: zpool(t) + "/" + unique(), spent: map[string][]time.Duration{}}
	var err error
	if f.pool, err = open(makePlace(t, zpool(t)+"/"+unique()), func(string) {}); err != nil {
		t.Fatal(err)
	}
	tool(t, "zfs", "create", "-o", "mountpoint=none", "-o", "canmount=off", f.raw)
	t.Cleanup(func() { tool(t, "zfs", "destroy", "-R", f.raw) })
	for _, size := range []int{small, large} {
		image := storage.Key{Class: storage.Images, Name: fmt.Sprint("base", size)}
		if _, err := f.pool.Create(t.Context(), image, storage.Tree, func(dir *os.Root) error {
			return errors.Join(dir.Mkdir(storage.RootName, 0o755), writeData(dir, storage.RootName+"/data", size))
		}); err != nil {
			t.Fatal(err)
		}
		base := fmt.Sprint(f.raw, "/base", size)
		tool(t, "zfs", "create", "-o", "mountpoint=legacy", base)
		tool(t, "zfs", "snapshot", base+"@s")
	}
	for i := range rounds {
		for _, size := range []int{small, large} {
			f.round(t, size, i)
		}
	}
	for _, what := range []string{"create", "snapshot", "restore", "copy"} {
		of := func(size int) time.Duration {
			return quickest(f.spent[fmt.Sprintf("%s of %d MiB/brig", what, size>>20)])
		}
		if over := float64(of(large)) / float64(of(small)); over > mostOver {
			t.Errorf("%s of a large volume takes %.2f times as long as of a small one", what, over)
		}
	}
	for _, size := range []int{small, large} {
		for _, what := range []string{"create", "snapshot", "restore", "copy"} {
			what := fmt.Sprintf("%s of %d MiB", what, size>>20)
			ours, theirs := quickest(f.spent[what+"/brig"]), quickest(f.spent[what+"/zfs"])
			over := float64(ours) / float64(theirs)
			t.Logf("%-22s brig %8s  zfs %8s  %.2f", what, ours, theirs, over)
			if over > mostOver {
				t.Errorf("%s takes %.2f times as long as ZFS's command, want at most %.1f", what, over, mostOver)
			}
		}
		for _, what := range []string{"open", "root", "usage", "delete"} {
			what := fmt.Sprintf("%s of %d MiB", what, size>>20)
			t.Logf("%-22s brig %8s", what, quickest(f.spent[what+"/brig"]))
		}
	}
}

// round measures each operation once.
func (f *figures) round(t *testing.T, size, i int) {
	t.Helper()
	ctx := t.Context()
	measure := func(what string, do func() error) {
		t.Helper()
		start := time.Now()
		if err := do(); err != nil {
			t.Fatal(err)
		}
		what, side, _ := strings.Cut(what, "/")
		name := fmt.Sprintf("%s of %d MiB/%s", what, size>>20, side)
		f.spent[name] = append(f.spent[name], time.Since(start))
	}
	command := func(args ...string) error { _, err := run.Output(ctx, "zfs", args...); return err }
	image := storage.Key{Class: storage.Images, Name: fmt.Sprint("base", size)}
	key := storage.Key{Class: storage.Instances, Name: fmt.Sprintf("web%d-%d", size, i)}
	copied := storage.Key{Class: storage.Instances, Name: "copy-" + key.Name}
	theirs := f.raw + "/" + key.Name
	var v storage.Volume
	clone := func(from, to storage.Key) (err error) {
		v, err = f.pool.Clone(ctx, storage.Source{Key: from}, to, storage.CloneOptions{})
		return err
	}
	measure("create/brig", func() error { return clone(image, key) })
	measure("create/zfs", func() error {
		return command("clone", "-o", "canmount=noauto", fmt.Sprint(f.raw, "/base", size, "@s"), theirs)
	})
	web := v
	measure("root/brig", func() error { web.Root(); return nil })
	measure("snapshot/brig", func() error { return web.Snapshot(ctx, "s", storage.SnapshotOptions{}) })
	measure("snapshot/zfs", func() error { return command("snapshot", theirs+"@s") })
	// What keeps newer snapshots by ZFS's own commands.
	measure("restore/brig", func() error { return web.Restore(ctx, "s") })
	measure("restore/zfs", func() error { return command("clone", "-o", "canmount=noauto", theirs+"@s", theirs+"-back") })
	measure("copy/brig", func() error { return clone(key, copied) })
	measure("copy/zfs", func() error {
		if err := command("snapshot", theirs+"@c"); err != nil {
			return err
		}
		return command("clone", "-o", "canmount=noauto", theirs+"@c", theirs+"-copy")
	})
	measure("usage/brig", func() error { _, err := web.Usage(ctx); return err })
	measure("open/brig", func() error {
		v, err := f.pool.Open(ctx, key)
		if err != nil {
			return err
		}
		dir, err := v.Dir()
		if err != nil {
			return err
		}
		return dir.Close()
	})
	measure("delete/brig", func() error { return f.pool.Delete(ctx, copied) })
}

// TestThousandthSnapshot compares the first snapshots of a volume with the last of
// a thousand.
func TestThousandthSnapshot(t *testing.T) {
	inside(t)
	if testing.Short() {
		t.Skip("takes minutes")
	}
	p, err := open(makePlace(t, zpool(t)+"/"+unique()), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	v := makeVolume(t, p, web, "here")
	const count, some = 1000, 20
	var spent []time.Duration
	for i := range count {
		start := time.Now()
		if err := v.Snapshot(t.Context(), fmt.Sprint("s", i), storage.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
		spent = append(spent, time.Since(start))
	}
	head, tail := quickest(spent[:some]), quickest(spent[count-some:])
	over := float64(tail) / float64(head)
	t.Logf("the first snapshot %s, the thousandth %s: %.2f", head, tail, over)
	if over > 1.5 {
		t.Errorf("the thousandth snapshot takes %.2f times as long as the first, want at most 1.5", over)
	}
	start := time.Now()
	if u, err := v.Usage(t.Context()); err != nil || len(u.Snapshots) != count {
		t.Errorf("Usage tells of %d snapshots, %v", len(u.Snapshots), err)
	}
	t.Logf("usage with a thousand snapshots: %s", time.Since(start))
}

// TestDiskFormats compares what a virtual machine's disk can be: a file of a
// dataset with records of some size, raw or qcow2, or a zvol. DESIGN.md has the
// table that it prints.
func TestDiskFormats(t *testing.T) {
	inside(t)
	if testing.Short() {
		t.Skip("measures")
	}
	top := zpool(t) + "/" + unique()
	tool(t, "zfs", "create", "-o", "mountpoint=none", "-o", "canmount=off", top)
	t.Cleanup(func() { tool(t, "zfs", "destroy", "-R", top) })
	t.Logf("%-12s %10s %10s %10s %10s %10s %10s %8s %8s", "", "fill", "write 4k", "read 4k", "snapshot", "clone", "restore", "filled", "written")
	for _, d := range []diskKind{
		{"raw 128K", "raw", "128K"}, {"raw 64K", "raw", "64K"}, {"raw 32K", "raw", "32K"}, {"raw 16K", "raw", "16K"},
		{"qcow2 64K", "qcow2", "64K"}, {"qcow2 32K", "qcow2", "32K"}, {"zvol 64K", "zvol", "64K"}, {"zvol 16K", "zvol", "16K"},
	} {
		d.measure(t, top)
	}
}

// diskKind is a kind of disk.
type diskKind struct{ name, format, record string }

const (
	diskSize   = 256 << 20
	diskWrites = 3000 // of 4 KiB, all over the disk
)

func (d diskKind) measure(t *testing.T, top string) {
	t.Helper()
	dataset := top + "/" + strings.ReplaceAll(d.name, " ", "")
	format := d.format
	if d.format == "zvol" {
		format = "raw"
		tool(t, "zfs", "create", "-s", "-V", fmt.Sprint(diskSize), "-o", "volblocksize="+d.record, dataset)
	} else {
		tool(t, "zfs", "create", "-o", "mountpoint=legacy", "-o", "recordsize="+d.record, dataset)
	}
	path := d.ready(t, dataset)
	if d.format != "zvol" {
		tool(t, "qemu-img", "create", "-q", "-f", format, path, fmt.Sprint(diskSize))
	}
	bench := func(args ...string) time.Duration {
		return took(func() {
			tool(t, "qemu-img", slices.Concat([]string{"bench", "-f", format, "-t", "writeback"}, args, []string{path})...)
		})
	}
	used := func() int64 {
		tool(t, "zpool", "sync", "tank")
		var n int64
		fmt.Sscan(property(t, "used", dataset), &n)
		return n >> 20
	}
	// Nothing is compressed in this zpool, and what is written is not zero.
	fill := bench("-w", "-c", fmt.Sprint(diskSize>>20), "-s", "1M", "-d", "4", "--pattern", "90", "--flush-interval", "32")
	filled := used()
	snapshot := took(func() { tool(t, "zfs", "snapshot", dataset+"@s") })
	// The golden ratio of the disk, in blocks, spreads them evenly and hits none twice.
	spread := []string{"-c", fmt.Sprint(diskWrites), "-s", "4096", "-S", fmt.Sprint(40503 << 12)}
	write := bench(append([]string{"-w", "-d", "8", "--pattern", "91", "--flush-interval", "64"}, spread...)...)
	read := bench(append([]string{"-d", "8"}, spread...)...)
	written := used() - filled
	clone := took(func() { tool(t, "zfs", "clone", dataset+"@s", dataset+"-clone"); d.ready(t, dataset+"-clone") })
	restore := took(func() { tool(t, "zfs", "clone", dataset+"@s", dataset+"-back"); d.ready(t, dataset+"-back") })
	perSecond := func(n int, d time.Duration) string { return fmt.Sprintf("%.0f/s", float64(n)/d.Seconds()) }
	t.Logf("%-12s %10s %10s %10s %10s %10s %10s %4d MiB %4d MiB", d.name, perSecond(diskSize>>20, fill)+" MiB",
		perSecond(diskWrites, write), perSecond(diskWrites, read), snapshot, clone, restore, filled, written)
}

// ready makes a disk's dataset usable and gives the path of the disk in it.
func (d diskKind) ready(t *testing.T, dataset string) string {
	t.Helper()
	if d.format == "zvol" {
		path := "/dev/zvol/" + dataset
		until(t, path, func() bool { _, err := os.Stat(path); return err == nil })
		return path
	}
	dir := t.TempDir()
	if err := unix.Mount(dataset, dir, "zfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "disk."+d.format)
}

// until waits for something to come true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for !is() {
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within a minute", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func took(do func()) time.Duration {
	start := time.Now()
	do()
	return time.Since(start).Round(time.Millisecond)
}

// writeData writes a file of data that are not all the same.
func writeData(dir *os.Root, name string, size int) error {
	f, err := dir.Create(name)
	if err != nil {
		return err
	}
	block := make([]byte, 1<<20)
	for i := range block {
		block[i] = byte(i*7 + i>>8)
	}
	for n := 0; n < size && err == nil; n += len(block) {
		_, err = f.Write(block)
	}
	return errors.Join(err, f.Close())
}

func quickest(d []time.Duration) time.Duration {
	if len(d) == 0 {
		return 0
	}
	return slices.Min(d).Round(10 * time.Microsecond)
}
