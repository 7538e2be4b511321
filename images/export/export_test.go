package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/images"
	"brig/images/archive"
	"brig/images/verify"
	"brig/instance/fault"
)

// treeOf makes a tree with what archives tend to lose.
func treeOf(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "sbin"), 0o755))
	must(os.MkdirAll(filepath.Join(dir, "var/empty"), 0o700))
	program := "\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 11) + "\x3e\x00rest"
	must(os.WriteFile(filepath.Join(dir, "sbin/init"), []byte(program), 0o755))
	must(os.Link(filepath.Join(dir, "sbin/init"), filepath.Join(dir, "sbin/telinit")))
	must(os.Symlink("/sbin/init", filepath.Join(dir, "init")))
	must(os.WriteFile(filepath.Join(dir, "var/secret"), bytes.Repeat([]byte("brig"), 50<<10), 0o600))
	must(os.Chmod(filepath.Join(dir, "var/secret"), 0o4750))
	must(os.WriteFile(filepath.Join(dir, "var/sparse"), nil, 0o644))
	must(os.Truncate(filepath.Join(dir, "var/sparse"), 1<<20))
	if os.Getuid() == 0 {
		must(unix.Mknod(filepath.Join(dir, "var/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(os.Lchown(filepath.Join(dir, "var/secret"), 1000, 1001))
		must(unix.Setxattr(filepath.Join(dir, "sbin/init"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
	}
	must(filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		at := unix.Timespec{Sec: 1e9 + int64(len(path))}
		return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW))
	}))
	must(os.Chmod(dir, 0o751))
	at := time.Unix(1e9, 0)
	must(os.Chtimes(dir, at, at))
	root, err := os.Open(dir)
	must(err)
	t.Cleanup(func() { root.Close() })
	return root
}

func digest(t *testing.T, dir *os.File) string {
	t.Helper()
	m, err := verify.Scan(t.Context(), dir, verify.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return m.Digest()
}

// imported gives what the files at paths are as an image, and where its files are.
func imported(t *testing.T, paths ...string) (images.Image, *os.File) {
	t.Helper()
	var o images.ResolveOptions
	if len(paths) == 2 {
		o.Rootfs = paths[1]
	}
	r, err := archive.New(nil, nil).Open(t.Context(), paths[0], o)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	root, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	img, err := r.Unpack(t.Context(), root, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := root.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return img, dir
}

var golden = images.Image{
	Fingerprint: strings.Repeat("5f", 32), Kind: images.System, Architecture: "x86_64", Description: `It's a "golden" one`,
	CreatedAt: time.Unix(1700000000, 0).UTC(), Properties: map[string]string{"os": "Debian", "release": "12: bookworm", "init": "/sbin/init"},
}

func listed(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// TestTreesComeBack writes one tree in every way, and reads it again.
func TestTreesComeBack(t *testing.T) {
	tree := treeOf(t)
	want := digest(t, tree)
	f := golden.Fingerprint
	for _, c := range []struct {
		kind            images.FileType
		to, compression string
		files           []string // the metadata first
	}{
		{images.Unified, "", "", []string{f + ".tar.gz"}},
		{images.Unified, "a.tar.xz", "", []string{"a.tar.xz"}},
		{images.Unified, "a", "zstd", []string{"a.tar.zst"}},
		{images.Unified, "a.tar", "", []string{"a.tar"}},
		{images.Rootfs, "a.tgz", "gzip", []string{"a.tgz"}},
		{images.Rootfs, "", "none", []string{f + ".tar"}},
		{images.Squashfs, "", "", []string{f + ".squashfs"}},
		{images.Squashfs, "a.sqfs", "zstd", []string{"a.sqfs"}},
		{images.Split, "", "", []string{"meta-" + f + ".tar.gz", f + ".squashfs"}},
		{images.Split, "a.tar.xz", "", []string{"a.tar.xz", "a.squashfs"}},
		{images.SplitTar, "a", "", []string{"a.tar.gz", "a.root.tar.gz"}},
		{images.SplitTar, "", "zstd", []string{"meta-" + f + ".tar.zst", f + ".tar.zst"}},
	} {
		t.Run(fmt.Sprintf("%s %s %s", c.kind, c.to, c.compression), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			e := images.FileExport{Image: golden, Type: c.kind, Compression: c.compression, To: filepath.Join(dir, c.to), Tree: tree}
			paths, err := Files{}.ExportFiles(t.Context(), e, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := listed(t, dir); !slices.Equal(got, slices.Sorted(slices.Values(c.files))) || len(paths) != len(got) {
				t.Fatalf("the folder has %v and ExportFiles gave %v, want %v", got, paths, c.files)
			}
			var in []string
			for _, name := range c.files {
				in = append(in, filepath.Join(dir, name))
			}
			img, back := imported(t, in...)
			if got := digest(t, back); got != want {
				t.Errorf("the tree that comes back is another")
			}
			if c.kind != images.Rootfs && c.kind != images.Squashfs {
				if img.Description != golden.Description || img.Properties["release"] != "12: bookworm" || !img.CreatedAt.Equal(golden.CreatedAt) {
					t.Errorf("the image that comes back is %+v", img)
				}
			}
			before := contents(t, in)
			if _, err := (Files{}).ExportFiles(t.Context(), e, nil); err != nil {
				t.Fatal(err)
			}
			if !maps.EqualFunc(before, contents(t, in), bytes.Equal) {
				t.Error("the same image gives other files")
			}
		})
	}
}

func contents(t *testing.T, paths []string) map[string][]byte {
	t.Helper()
	all := map[string][]byte{}
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		all[p] = data
	}
	return all
}

// diskOf is a disk of 16 MiB that a BIOS starts, and that is mostly holes.
func diskOf(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	data := make([]byte, 16<<20)
	copy(data, "\xeb\xfe")
	copy(data[510:], "\x55\xaa")
	copy(data[8<<20:], "in the middle")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestDisksComeBack(t *testing.T) {
	disk := diskOf(t)
	img := golden
	img.Kind = images.Disk
	for _, c := range []struct {
		kind        images.FileType
		to, how     string
		files       []string
		mostlyHoles bool
	}{
		{images.Unified, "a.tar.xz", "", []string{"a.tar.xz"}, true},
		{images.Split, "a", "", []string{"a.tar.gz", "a.qcow2"}, true},
		{images.Qcow2, "a.qcow2", "", []string{"a.qcow2"}, true},
		{images.Qcow2, "", "zstd", []string{golden.Fingerprint + ".qcow2"}, true},
		{images.Qcow2, "b.qcow2", "gzip", []string{"b.qcow2"}, true},
		{images.Raw, "a.img", "", []string{"a.img"}, true},
	} {
		t.Run(fmt.Sprintf("%s %s", c.kind, c.how), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			e := images.FileExport{Image: img, Type: c.kind, Compression: c.how, To: filepath.Join(dir, c.to), Disk: disk, DiskFormat: "raw"}
			if _, err := (Files{}).ExportFiles(t.Context(), e, nil); err != nil {
				t.Fatal(err)
			}
			if got := listed(t, dir); !slices.Equal(got, slices.Sorted(slices.Values(c.files))) {
				t.Fatalf("the folder has %v, want %v", got, c.files)
			}
			var in []string
			for _, name := range c.files {
				in = append(in, filepath.Join(dir, name))
				var st syscall.Stat_t
				if err := syscall.Stat(in[len(in)-1], &st); err != nil || st.Blocks*512 > 2<<20 {
					t.Errorf("%s takes %d bytes, %v, want holes for nothing", name, st.Blocks*512, err)
				}
			}
			back, root := imported(t, in...)
			if back.Kind != images.Disk || back.Architecture != "x86_64" {
				t.Errorf("the image that comes back is %+v", back)
			}
			got, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d/%s", root.Fd(), images.DiskFile))
			if want := contents(t, []string{disk})[disk]; err != nil || !bytes.Equal(got, want) {
				t.Errorf("the disk that comes back has %d bytes, %v", len(got), err)
			}
		})
	}
}

func TestWhatCannotBeExported(t *testing.T) {
	tree := treeOf(t)
	dir := t.TempDir()
	for what, c := range map[string]struct {
		e     images.FileExport
		class fault.Class
		words string
	}{
		"an unknown type":        {images.FileExport{Type: "vhd", Tree: tree}, fault.Invalid, "unified, split"},
		"an unknown compression": {images.FileExport{Type: images.Unified, Compression: "lzma", Tree: tree}, fault.Invalid, "gzip, xz"},
		"two compressions":       {images.FileExport{Type: images.Unified, Compression: "xz", To: "a.tar.gz", Tree: tree}, fault.Invalid, "a.tar.gz"},
		"a compressed raw disk":  {images.FileExport{Type: images.Raw, Compression: "xz", Disk: "/dev/null"}, fault.Invalid, "qcow2"},
		"qcow2 with xz":          {images.FileExport{Type: images.Qcow2, Compression: "xz", Disk: "/dev/null", DiskFormat: "raw"}, fault.Invalid, "zstd"},
		"the files of a disk":    {images.FileExport{Type: images.Rootfs, Disk: "/dev/null", DiskFormat: "raw"}, fault.Unsupported, "boots by itself"},
		"no such folder":         {images.FileExport{Type: images.Unified, To: "no/a.tar", Tree: tree}, fault.NotFound, "no"},
		"no such folder either":  {images.FileExport{Type: images.Unified, To: "no/", Tree: tree}, fault.NotFound, "no"},
	} {
		c.e.Image = golden
		c.e.To = dir + "/" + c.e.To
		_, err := Files{}.ExportFiles(t.Context(), c.e, nil)
		if fault.Of(err) != c.class || !strings.Contains(fmt.Sprint(err), c.words) {
			t.Errorf("%s: %v (class %q), want class %q and %q", what, err, fault.Of(err), c.class, c.words)
		}
	}
	if left := listed(t, dir); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}

// stopper cancels when so many bytes were written.
type stopper struct {
	after  int64
	cancel func()
}

func (s *stopper) Task(string, int64, bool) images.Task { s.Add(0); return s }
func (s *stopper) Done()                                {}
func (s *stopper) Add(n int64) {
	if s.after -= n; s.after < 0 {
		s.cancel()
	}
}

// TestCancelledExportLeavesWhatWasThere stops exports half way.
func TestCancelledExportLeavesWhatWasThere(t *testing.T) {
	tree := treeOf(t)
	for _, kind := range []images.FileType{images.Unified, images.Split, images.SplitTar, images.Squashfs} {
		for _, how := range []string{"gzip", "xz"} {
			dir := t.TempDir()
			old := filepath.Join(dir, "a"+ending(how))
			if kind == images.Squashfs {
				old = filepath.Join(dir, "a")
			}
			if err := os.WriteFile(old, []byte("old"), 0o644); err != nil {
				t.Fatal(err)
			}
			after := int64(10000)
			if kind == images.Squashfs || kind == images.Split {
				after = -1 // the tool tells nothing
			}
			ctx, cancel := context.WithCancel(t.Context())
			_, err := Files{}.ExportFiles(ctx, images.FileExport{Image: golden, Type: kind, Compression: how, To: filepath.Join(dir, "a"), Tree: tree}, &stopper{after, cancel})
			cancel()
			if !errors.Is(err, context.Canceled) {
				t.Errorf("%s: %v, want that it was cancelled", kind, err)
			}
			data, err := os.ReadFile(old)
			if got := listed(t, dir); len(got) != 1 || string(data) != "old" {
				t.Errorf("%s: left %v, and %d bytes, %v in the old file", kind, got, len(data), err)
			}
		}
	}
}
