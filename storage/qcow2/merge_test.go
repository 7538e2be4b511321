package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"brig/instance/fault"
)

// chain makes layers over a raw disk, each with writes, zeros and discards of its
// own at places that overlap, and gives their paths, top first. The disk grows on
// the way, to sizes that are not whole clusters.
func chain(t testing.TB, dir string, layers int) []string {
	t.Helper()
	tool(t, "qemu-img", "create", "-q", "-f", "raw", filepath.Join(dir, "base.raw"), "3M")
	tool(t, "qemu-io", "-f", "raw", "-c", "write -q -P 255 0 3M", filepath.Join(dir, "base.raw"))
	random := rand.New(rand.NewPCG(1, 2))
	backing, format, size := "base.raw", Raw, int64(3<<20)
	var paths []string
	for i := range layers {
		if i%3 == 2 {
			size += 512 * int64(1+random.IntN(300))
		}
		path := create(t, dir, fmt.Sprintf("%d.qcow2", i), size, backing, format)
		var args []string
		for range 6 {
			at := random.Int64N(size/512-200) * 512
			n := 512 * (1 + random.IntN(199))
			what := fmt.Sprintf("write -q -P %d", i+1)
			switch random.IntN(4) {
			case 0:
				what = "write -q -z"
			case 1:
				what = "discard -q"
			}
			args = append(args, "-c", fmt.Sprintf("%s %d %d", what, at, n))
		}
		tool(t, "qemu-io", append(append([]string{"-d", "unmap", "-f", "qcow2"}, args...), path)...)
		paths = append([]string{path}, paths...)
		backing, format = filepath.Base(path), Qcow2
	}
	return paths
}

func merge(t testing.TB, ctx context.Context, to string, paths []string, backing, format string) error {
	t.Helper()
	var files []*os.File
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	f, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	return errors.Join(Merge(ctx, f, files, backing, format), f.Close())
}

func TestMergedDisksShowTheSame(t *testing.T) {
	dir := t.TempDir()
	paths := chain(t, dir, 12)
	for _, c := range []struct {
		from, to int // the layers that are merged
	}{{0, 12}, {0, 5}, {3, 12}, {4, 9}, {7, 8}} {
		t.Run(fmt.Sprint(c.from, c.to), func(t *testing.T) {
			backing := "base.raw"
			if c.to < len(paths) {
				backing = filepath.Base(paths[c.to])
			}
			merged := filepath.Join(dir, fmt.Sprintf("merged%d-%d.qcow2", c.from, c.to))
			if err := merge(t, t.Context(), merged, paths[c.from:c.to], backing, FormatOf(backing)); err != nil {
				t.Fatal(err)
			}
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", merged)
			tool(t, "qemu-img", "compare", "-q", "-f", "qcow2", "-F", "qcow2", paths[c.from], merged)
			if got, want := header(t, merged).Size, header(t, paths[c.from]).Size; got != want {
				t.Errorf("it has %d bytes, want %d", got, want)
			}
			// It can be written to like any other.
			tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 77 100k 1M", merged)
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", merged)
		})
	}
}

func TestMergeOfALargeDisk(t *testing.T) {
	dir := t.TempDir()
	const size = 3 << 40
	a := create(t, dir, "a.qcow2", size, "", "")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 1T 300M", "-c", "write -q -P 1 2T 512", a)
	b := create(t, dir, "b.qcow2", size, "a.qcow2", Qcow2)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 2 1000G 5M", b)
	empty := create(t, dir, "empty.qcow2", size, "", "")
	merged := filepath.Join(dir, "merged.qcow2")
	if err := merge(t, t.Context(), merged, []string{b, a}, filepath.Base(empty), Qcow2); err != nil {
		t.Fatal(err)
	}
	tool(t, "qemu-img", "check", "-q", "-f", "qcow2", merged)
	tool(t, "qemu-io", "-f", "qcow2", "-c", "read -q -P 1 1T 300M", "-c", "read -q -P 1 2T 512", "-c", "read -q -P 2 1000G 5M", "-c", "read -q -P 0 10G 1M", merged)
}

func TestMergeRefuses(t *testing.T) {
	dir := t.TempDir()
	good := create(t, dir, "good.qcow2", 1<<20, "", "")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 1M", good)
	small := filepath.Join(dir, "small.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", small, "1M")
	compressed := filepath.Join(dir, "compressed.qcow2")
	tool(t, "qemu-img", "convert", "-q", "-c", "-f", "qcow2", "-O", "qcow2", good, compressed)
	larger := create(t, dir, "larger.qcow2", 2<<20, "", "")
	for _, layers := range [][]string{{good, small}, {good, larger}, {compressed}} {
		if err := merge(t, t.Context(), filepath.Join(dir, "merged"), layers, "", ""); !fault.Is(err, fault.Unsupported) {
			t.Errorf("Merge of %q = %v, want unsupported", layers, err)
		}
	}

	b, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	h := header(t, good)
	l1 := int(h.l1Offset)
	for name, broken := range map[string][]byte{
		"L2 table outside":   put(b, l1, 1<<63|1<<40, 8),
		"L2 table unaligned": put(b, l1, 1<<63|512, 8),
		"cluster outside":    put(b, int(binary.BigEndian.Uint64(b[l1:])&entryOffset), 1<<63|1<<40, 8),
	} {
		path := filepath.Join(dir, "broken.qcow2")
		if err := os.WriteFile(path, broken, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := merge(t, t.Context(), filepath.Join(dir, "merged"), []string{path}, "", ""); !fault.Is(err, fault.Invalid) {
			t.Errorf("Merge with an %s = %v, want invalid", name, err)
		}
	}

	// What is cut off is no disk.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	merged := filepath.Join(dir, "merged")
	if err := merge(t, ctx, merged, []string{good}, "", ""); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Merge that is cancelled = %v", err)
	}
	if _, err := Check(openRoot(t, dir), "merged"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Check of what a cancelled merge left = %v, want invalid", err)
	}
}

func TestSetBacking(t *testing.T) {
	dir := t.TempDir()
	create(t, dir, "a.qcow2", 1<<20, "", "")
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write -q -P 3 0 1M", filepath.Join(dir, "a.qcow2"))
	if err := merge(t, t.Context(), filepath.Join(dir, "b.qcow2"), []string{filepath.Join(dir, "a.qcow2")}, "", ""); err != nil {
		t.Fatal(err)
	}
	top := create(t, dir, "top.qcow2", 1<<20, "a.qcow2", Qcow2)
	f, err := os.OpenFile(top, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := SetBacking(f, "longer.qcow2"); !fault.Is(err, fault.Unsupported) {
		t.Errorf("SetBacking to a longer name = %v, want unsupported", err)
	}
	if err := SetBacking(f, "b.qcow2"); err != nil {
		t.Fatal(err)
	}
	if got := header(t, top).Backing; got != "b.qcow2" {
		t.Errorf("it stands on %q, want b.qcow2", got)
	}
	os.Remove(filepath.Join(dir, "a.qcow2"))
	tool(t, "qemu-io", "-f", "qcow2", "-c", "read -q -P 3 0 1M", top)
}

// TestCheckDisk has files that a person or a failing disk could have put there.
func TestCheckDisk(t *testing.T) {
	pool := t.TempDir()
	layers := filepath.Join(pool, "layers")
	for _, name := range []string{"base", "good", "broken", "over"} {
		if err := os.MkdirAll(filepath.Join(layers, name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(layers, "base/disk.raw"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	good := create(t, layers, "good/disk.qcow2", 1<<20, "../base/disk.raw", Raw)
	over := create(t, layers, "over/disk.qcow2", 1<<20, "../broken/disk.qcow2", Qcow2)
	if err := CheckDisk(good, Qcow2); err != nil {
		t.Errorf("CheckDisk = %v", err)
	}
	if err := CheckDisk(good, "vmdk"); !fault.Is(err, fault.Invalid) {
		t.Errorf("CheckDisk of another format = %v, want invalid", err)
	}
	whole, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	dataFile := filepath.Join(pool, "data.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(pool, "data.raw")+",data_file_raw=on", dataFile, "1M")
	outside, err := os.ReadFile(dataFile)
	if err != nil {
		t.Fatal(err)
	}
	elsewhere, err := os.ReadFile(create(t, pool, "elsewhere.qcow2", 1<<20, "../../secret.raw", Raw))
	if err != nil {
		t.Fatal(err)
	}
	loop, err := os.ReadFile(create(t, pool, "loop.qcow2", 1<<20, "../over/disk.qcow2", Qcow2))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"empty":              {},
		"cut off":            whole[:90],
		"tables cut off":     whole[:1<<16],
		"zeros":              make([]byte, 1<<18),
		"external data file": outside,
		"outside the pool":   elsewhere,
		"loop":               loop,
	} {
		path := filepath.Join(layers, "broken/disk.qcow2")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, disk := range []string{path, over} {
			if err := CheckDisk(disk, Qcow2); !fault.Is(err, fault.Invalid) {
				t.Errorf("%s: CheckDisk(%s) = %v, want invalid", name, disk[len(layers):], err)
			}
		}
		if err := CheckDisk(good, Qcow2); err != nil {
			t.Errorf("%s: CheckDisk of another disk = %v", name, err)
		}
	}
}

// FuzzMerge damages the tables of a disk, as a failing device does. Merge refuses
// it or makes a disk, and reads nothing but the file.
func FuzzMerge(f *testing.F) {
	dir := f.TempDir()
	path := create(f, dir, "d.qcow2", 4<<20, "", "")
	tool(f, "qemu-io", "-f", "qcow2", "-c", "write -q -P 1 0 256k", "-c", "write -q -z 1M 64k", path)
	whole, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	l1 := uint32(header(f, path).l1Offset)
	l2 := uint32(binary.BigEndian.Uint64(whole[l1:]) & entryOffset)
	for _, at := range []uint32{0, 20, 36, 40, l1, l2, l2 + 8, l2 + 32} {
		for _, value := range []uint64{0, 1, 1 << 9, 1 << 16, 1 << 40, 1 << 62, 1 << 63, 1<<63 | 1<<16, 1<<64 - 1} {
			f.Add(at, value)
		}
	}
	f.Fuzz(func(t *testing.T, at uint32, value uint64) {
		dir := t.TempDir()
		broken := filepath.Join(dir, "broken.qcow2")
		b := put(append(whole, make([]byte, 8)...), int(at)%len(whole), value, 8)[:len(whole)]
		if err := os.WriteFile(broken, b, 0o600); err != nil {
			t.Fatal(err)
		}
		merged := filepath.Join(dir, "merged.qcow2")
		err := merge(t, t.Context(), merged, []string{broken}, "", "")
		if err != nil {
			if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.Unsupported) {
				t.Errorf("Merge = %v, want invalid or unsupported", err)
			}
			return
		}
		if h, err := Check(openRoot(t, dir), "merged.qcow2"); err != nil || h.Size != header(t, broken).Size {
			t.Errorf("Merge made %+v, %v", h, err)
		}
	})
}
