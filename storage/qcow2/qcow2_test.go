package qcow2

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"brig/instance/fault"
	"brig/instance/run"
)

// create makes a disk file in dir and gives its path.
func create(t testing.TB, dir, name string, size int64, backing, format string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := Create(f, size, backing, format); err != nil {
		t.Fatalf("Create(%d, %q) = %v", size, backing, err)
	}
	return path
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run.Output(t.Context(), name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return string(out)
}

func header(t testing.TB, path string) Header {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	h, err := Read(f, st.Size())
	if err != nil {
		t.Fatalf("Read(%q) = %v", path, err)
	}
	return h
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	r, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func TestQEMUAcceptsCreatedDisks(t *testing.T) {
	const tera = 1 << 40
	for _, c := range []struct {
		size    int64
		backing string
		format  string
		want    int64
	}{
		{512, "", "", 512},
		{513, "", "", 1024},
		{1 << 30, "base.raw", Raw, 1 << 30},
		{10<<30 + 512, "base.raw", Raw, 10<<30 + 512},
		{tera, "base.qcow2", Qcow2, tera},
		{5 * tera, "base.qcow2", Qcow2, 5 * tera}, // its L1 table has two clusters
	} {
		t.Run(fmt.Sprint(c.size, c.backing), func(t *testing.T) {
			dir := t.TempDir()
			switch c.format {
			case Raw:
				if err := os.WriteFile(filepath.Join(dir, c.backing), bytes.Repeat([]byte{7}, 1<<20), 0o600); err != nil {
					t.Fatal(err)
				}
			case Qcow2:
				create(t, dir, c.backing, c.size, "", "")
			}
			path := create(t, dir, "top.qcow2", c.size, c.backing, c.format)
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
			var info struct {
				Size    int64  `json:"virtual-size"`
				Backing string `json:"backing-filename"`
				Format  string `json:"backing-filename-format"`
			}
			if err := json.Unmarshal([]byte(tool(t, "qemu-img", "info", "-f", "qcow2", "--output=json", path)), &info); err != nil {
				t.Fatal(err)
			}
			if info.Size != c.want || info.Backing != c.backing || info.Format != c.format {
				t.Errorf("qemu-img info = %+v, want size %d, backing %q, format %q", info, c.want, c.backing, c.format)
			}
			h := header(t, path)
			if h.Size != c.want || h.Backing != c.backing || h.BackingFormat != c.format {
				t.Errorf("Read = %+v, want size %d, backing %q, format %q", h, c.want, c.backing, c.format)
			}
			if c.format == Raw {
				tool(t, "qemu-io", "-f", "qcow2", "-c", "read -P 7 0 64k", "-c", "write -P 9 4k 4k", "-c", "read -P 7 0 4k", "-c", "read -P 9 4k 4k", path)
			}
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
		})
	}
}

func TestUntouchedUntilWritten(t *testing.T) {
	path := create(t, t.TempDir(), "d.qcow2", 1<<30, "", "")
	untouched := func() bool {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		ok, err := header(t, path).Untouched(f)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", "read 0 64k", "-c", "flush", path)
	if !untouched() {
		t.Error("Untouched after reading = false, want true")
	}
	tool(t, "qemu-io", "-f", "qcow2", "-c", "write 900M 512", path)
	if untouched() {
		t.Error("Untouched after writing = true, want false")
	}
}

func TestGrow(t *testing.T) {
	for _, c := range []struct{ from, to int64 }{
		{1 << 20, 1 << 20},
		{1 << 20, 3 << 30},   // more L1 entries, in the header
		{1 << 20, 100 << 40}, // more L1 clusters, by qemu-img
		{1 << 20, 1<<20 + 1},
	} {
		t.Run(fmt.Sprint(c.to), func(t *testing.T) {
			path := create(t, t.TempDir(), "d.qcow2", c.from, "", "")
			tool(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 0 1M", path)
			if err := Grow(t.Context(), path, c.to); err != nil {
				t.Fatalf("Grow = %v", err)
			}
			want := (c.to + 511) / 512 * 512
			if got := header(t, path).Size; got != want {
				t.Errorf("size = %d, want %d", got, want)
			}
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
			tool(t, "qemu-io", "-f", "qcow2", "-c", "read -P 5 0 1M", "-c", fmt.Sprintf("write -P 6 %d 512", want-512), path)
			tool(t, "qemu-img", "check", "-q", "-f", "qcow2", path)
			if err := Grow(t.Context(), path, c.from-512); !fault.Is(err, fault.Invalid) {
				t.Errorf("Grow to less = %v, want invalid", err)
			}
		})
	}
}

// put changes an overlay's bytes at an offset.
func put(b []byte, offset int, value uint64, size int) []byte {
	b = bytes.Clone(b)
	var v [8]byte
	binary.BigEndian.PutUint64(v[:], value)
	copy(b[offset:], v[8-size:])
	return b
}

func TestHostileHeadersAreRefused(t *testing.T) {
	good, err := os.ReadFile(create(t, t.TempDir(), "d.qcow2", 1<<30, "../x/disk.raw", Raw))
	if err != nil {
		t.Fatal(err)
	}
	name := int(binary.BigEndian.Uint64(good[8:]))
	if _, err := Read(bytes.NewReader(good), int64(len(good))); err != nil {
		t.Fatalf("Read of a good header = %v", err)
	}
	for what, b := range map[string][]byte{
		"empty":                      {},
		"short":                      good[:60],
		"cut off version 3":          good[:80],
		"raw":                        make([]byte, 1<<16),
		"version 1":                  put(good, 4, 1, 4),
		"version 4":                  put(good, 4, 4, 4),
		"backing name far away":      put(good, 8, 1<<40, 8),
		"backing name over the edge": put(good, 8, 1<<16-2, 8),
		"backing name in the header": put(good, 8, 40, 8),
		"backing name too long":      put(good, 16, 1024, 4),
		"backing name empty":         put(good, 16, 0, 4),
		"backing over NBD":           append(bytes.Clone(good[:name]), append([]byte("nbd:1.2.3.4:5"), good[name+13:]...)...),
		"backing as json":            append(bytes.Clone(good[:name]), append([]byte("json:{\"fil\":"), good[name+13:]...)...),
		"backing name with NUL":      put(good, name+3, 0, 1),
		"backing without a format":   put(good, 104, 0x12345678, 4),
		"backing format of no name":  put(good, 108, 0, 4),
		"backing format vmdk":        put(put(good, 108, 4, 4), 112, uint64('v')<<24|uint64('m')<<16|uint64('d')<<8|'k', 4),
		"tiny clusters":              put(good, 20, 8, 4),
		"huge clusters":              put(good, 20, 63, 4),
		"size of 2^63":               put(good, 24, 1<<63, 8),
		"encrypted":                  put(good, 32, 2, 4),
		"L1 table too small":         put(good, 36, 1, 4),
		"L1 table huge":              put(good, 36, 1<<31, 4),
		"L1 table outside":           put(good, 40, 1<<50, 8),
		"L1 table unaligned":         put(good, 40, 3<<16+8, 8),
		"L1 table at zero":           put(good, 40, 0, 8),
		"reference counts outside":   put(good, 48, 1<<50, 8),
		"no reference counts":        put(good, 56, 0, 4),
		"reference counts huge":      put(good, 56, 1<<31, 4),
		"snapshots without end":      put(good, 60, 1<<31, 4),
		"snapshots outside":          put(put(good, 60, 5, 4), 64, 1<<40, 8),
		"marked corrupt":             put(good, 72, featCorrupt, 8),
		"external data file":         put(good, 72, featDataFile, 8),
		"unknown feature":            put(good, 72, 1<<17, 8),
		"reference counts of 2^9":    put(good, 96, 9, 4),
		"header length 0":            put(good, 100, 0, 4),
		"header length odd":          put(good, 100, 105, 4),
		"header length huge":         put(good, 100, 1<<31, 4),
		"extension too long":         put(good, 108, 1<<31, 4),
		"extension of all ones":      put(good, 108, 1<<32-1, 4),
		"crypto extension":           put(good, 104, extCrypto, 4),
		"data file extension":        put(good, 104, extDataFile, 4),
	} {
		h, err := Read(bytes.NewReader(b), int64(len(b)))
		if !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Read = %+v, %v, want invalid", what, h, err)
		}
	}
}

func TestHeadersThatQEMUMakesAreAccepted(t *testing.T) {
	for _, options := range []string{"compat=0.10", "compat=1.1", "cluster_size=512", "cluster_size=2M", "extended_l2=on", "compression_type=zstd", "lazy_refcounts=on", "refcount_bits=1"} {
		dir := t.TempDir()
		path := filepath.Join(dir, "d.qcow2")
		tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", options, path, "100M")
		h, err := Check(openRoot(t, dir), "d.qcow2")
		if err != nil || h.Size != 100<<20 {
			t.Errorf("Check with %s = %+v, %v, want 100 MiB", options, h, err)
		}
		tool(t, "qemu-img", "snapshot", "-c", "one", path)
		if h, err = Check(openRoot(t, dir), "d.qcow2"); err != nil || h.Snapshots != 1 {
			t.Errorf("Check of one snapshot with %s = %+v, %v", options, h, err)
		}
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "d.qcow2")
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+filepath.Join(dir, "data"), path, "1M")
	if _, err := Check(openRoot(t, dir), "d.qcow2"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Check with an external data file = %v, want invalid", err)
	}
	tool(t, "qemu-img", "create", "-q", "-f", "qcow2", "--object", "secret,id=s,data=x", "-o", "encrypt.format=aes,encrypt.key-secret=s", path, "1M")
	if _, err := Check(openRoot(t, dir), "d.qcow2"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Check of an encrypted disk = %v, want invalid", err)
	}
}

func TestChain(t *testing.T) {
	top := t.TempDir()
	pool := filepath.Join(top, "pool")
	for _, d := range []string{"a", "b", "c", "loop", "out", "abs", "link", "fifo", "self"} {
		if err := os.MkdirAll(filepath.Join(pool, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(top, "secret.raw")
	for _, path := range []string{secret, filepath.Join(pool, "a/disk.raw")} {
		if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	create(t, pool, "b/disk.qcow2", 1<<20, "../a/disk.raw", Raw)
	create(t, pool, "c/disk.qcow2", 1<<20, "../b/disk.qcow2", Qcow2)
	create(t, pool, "loop/1.qcow2", 1<<20, "../loop/2.qcow2", Qcow2)
	create(t, pool, "loop/2.qcow2", 1<<20, "1.qcow2", Qcow2)
	create(t, pool, "self/disk.qcow2", 1<<20, "disk.qcow2", Qcow2)
	create(t, pool, "out/disk.qcow2", 1<<20, "../../secret.raw", Raw)
	create(t, pool, "abs/disk.qcow2", 1<<20, secret, Raw)
	create(t, pool, "link/disk.qcow2", 1<<20, "base.raw", Raw)
	if err := os.Symlink(secret, filepath.Join(pool, "link/base.raw")); err != nil {
		t.Fatal(err)
	}
	create(t, pool, "fifo/disk.qcow2", 1<<20, "base.raw", Raw)
	if err := syscall.Mkfifo(filepath.Join(pool, "fifo/base.raw"), 0o600); err != nil {
		t.Fatal(err)
	}
	root := openRoot(t, pool)
	chain, err := Chain(root, "c/disk.qcow2", Qcow2)
	var names []string
	for _, l := range chain {
		names = append(names, l.Name+" "+l.Format)
	}
	if got, want := strings.Join(names, ", "), "c/disk.qcow2 qcow2, b/disk.qcow2 qcow2, a/disk.raw raw"; got != want || err != nil {
		t.Errorf("Chain = %s, %v, want %s", got, err, want)
	}
	for _, bad := range []string{"loop/1.qcow2", "self/disk.qcow2", "out/disk.qcow2", "abs/disk.qcow2", "link/disk.qcow2", "fifo/disk.qcow2", "gone/disk.qcow2"} {
		if chain, err := Chain(root, bad, Qcow2); !fault.Is(err, fault.Invalid) {
			t.Errorf("Chain(%q) = %v, %v, want invalid", bad, chain, err)
		}
	}
	if _, err := Check(root, "b/disk.qcow2"); !fault.Is(err, fault.Invalid) {
		t.Errorf("Check of a disk with a backing file = %v, want invalid", err)
	}
	for i := range MaxChain {
		backing := fmt.Sprintf("%d.qcow2", i-1)
		if i == 0 {
			backing = ""
		}
		create(t, pool, fmt.Sprintf("a/%d.qcow2", i), 1<<20, backing, Qcow2)
	}
	if chain, err := Chain(root, "a/255.qcow2", Qcow2); err != nil || len(chain) != MaxChain {
		t.Errorf("Chain of %d files = %d, %v", MaxChain, len(chain), err)
	}
	create(t, pool, "a/256.qcow2", 1<<20, "255.qcow2", Qcow2)
	if _, err := Chain(root, "a/256.qcow2", Qcow2); !fault.Is(err, fault.Invalid) {
		t.Errorf("Chain of %d files = %v, want invalid", MaxChain+1, err)
	}
}

func FuzzHeader(f *testing.F) {
	dir := f.TempDir()
	for i, c := range []struct{ backing, format string }{{"", ""}, {"../a/disk.raw", Raw}, {"b.qcow2", Qcow2}} {
		b, err := os.ReadFile(create(f, dir, fmt.Sprint(i), 1<<30, c.backing, c.format))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b[:512], int64(len(b)))
		f.Add(put(b, 20, 9, 4)[:512], int64(len(b)))
		f.Add(put(b, 4, 2, 4)[:512], int64(len(b)))
	}
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		if size < int64(len(b)) {
			size = int64(len(b))
		}
		h, err := Read(sparse(b), size)
		if err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("Read = %v, want invalid", err)
			}
			return
		}
		if h.Size < 0 || h.Size > maxVirtualSize || h.l1Offset+h.l1Entries*8 > size || len(h.Backing) > maxBackingName {
			t.Errorf("Read accepted %+v in a file of %d bytes", h, size)
		}
		if h.Backing != "" && h.BackingFormat != Raw && h.BackingFormat != Qcow2 {
			t.Errorf("Read accepted the backing format %q", h.BackingFormat)
		}
	})
}

// sparse is a file of any size that ends in zeros.
type sparse []byte

func (s sparse) ReadAt(p []byte, offset int64) (int, error) {
	clear(p)
	if offset < int64(len(s)) {
		copy(p, s[offset:])
	}
	return len(p), nil
}
