package look_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/look"
)

// tree makes a directory with some files.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"etc/name": "web", "data/file": "one"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chown(filepath.Join(dir, "data/file"), 1000, 1001), os.Chmod(filepath.Join(dir, "etc/name"), 0o4755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// disk makes a qcow2 file over a raw one with an ext4 file system.
func disk(t *testing.T, from string) storage.Root {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "a,b:c d")
	for _, name := range []string{"base", "top"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	raw, top := filepath.Join(dir, "base", storage.DiskRaw), filepath.Join(dir, "top", storage.DiskQcow2)
	if err := os.WriteFile(raw, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(raw, 16<<20); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-e", "panic", "-d", from, raw},
		{"qemu-img", "create", "-q", "-f", "qcow2", "-b", "../base/" + storage.DiskRaw, "-F", "raw", top},
	} {
		if _, err := run.Output(t.Context(), args[0], args[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	return storage.Root{DiskPath: top, DiskFormat: "qcow2"}
}

func roots(t *testing.T) map[string]storage.Root {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts what it looks into")
	}
	dir := tree(t)
	upper, work := t.TempDir(), t.TempDir()
	qcow := disk(t, dir)
	return map[string]storage.Root{
		"directory": {Upper: dir},
		"one layer": {Lower: []string{dir}},
		"layers":    {Lower: []string{upper, dir}},
		"in use":    {Lower: []string{dir}, Upper: upper, Work: work},
		"qcow2":     qcow,
		"raw":       {DiskPath: filepath.Join(filepath.Dir(qcow.DiskPath), "../base", storage.DiskRaw), DiskFormat: "raw"},
	}
}

// host is what a look could leave behind.
func host(t *testing.T) string {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	return string(mounts) + strings.Join(loops, "\n")
}

// servers counts the tools that show a disk below dir.
func servers(t *testing.T, dir string) (n int) {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range lines {
		if text, err := os.ReadFile(line); err == nil && strings.Contains(string(text), "qemu-storage-daemon") && strings.Contains(strings.ReplaceAll(string(text), ",,", ","), dir) {
			n++
		}
	}
	return n
}

func TestViewShowsFilesReadOnly(t *testing.T) {
	for name, root := range roots(t) {
		t.Run(name, func(t *testing.T) {
			before := host(t)
			v, err := look.Open(t.Context(), root)
			if err != nil {
				t.Fatalf("Open = %v", err)
			}
			path := func(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", v.Dir.Fd(), name) }
			if b, err := os.ReadFile(path("etc/name")); err != nil || string(b) != "web" {
				t.Errorf("etc/name = %q, %v", b, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(path("data/file"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 {
				t.Errorf("data/file belongs to %d:%d, %v, want 1000:1001", st.Uid, st.Gid, err)
			}
			if err := os.WriteFile(path("data/new"), nil, 0o644); !errors.Is(err, syscall.EROFS) {
				t.Errorf("writing = %v, want a read-only file system", err)
			}
			var vfs unix.Statfs_t
			const want = unix.ST_RDONLY | unix.ST_NOSUID | unix.ST_NODEV | unix.ST_NOEXEC
			if err := unix.Fstatfs(int(v.Dir.Fd()), &vfs); err != nil || vfs.Flags&want != want {
				t.Errorf("flags %#x, %v, want %#x of them", vfs.Flags, err, want)
			}
			if err := v.Close(); err != nil {
				t.Errorf("Close = %v", err)
			}
			if after := host(t); after != before {
				t.Errorf("the host has\n%s\nand had\n%s", after, before)
			}
			if root.DiskPath != "" && servers(t, filepath.Dir(filepath.Dir(root.DiskPath))) != 0 {
				t.Error("the tool still runs")
			}
		})
	}
}

func TestMountStaysUntilUnmount(t *testing.T) {
	for name, root := range roots(t) {
		t.Run(name, func(t *testing.T) {
			before := host(t)
			run := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
			m, target := look.NewMounts(run), t.TempDir()
			if err := m.Mount(t.Context(), root, target, "web/clean"); err != nil {
				t.Fatalf("Mount = %v", err)
			}
			t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
			if b, err := os.ReadFile(filepath.Join(target, "data/file")); err != nil || string(b) != "one" {
				t.Errorf("data/file = %q, %v", b, err)
			}
			if where, err := m.Mounted("web/clean"); err != nil || where != target {
				t.Errorf("Mounted = %q, %v, want %q", where, err, target)
			}
			if where, err := m.Mounted("web/other"); err != nil || where != "" {
				t.Errorf("Mounted of another = %q, %v", where, err)
			}
			if err := m.Mount(t.Context(), root, target, "web/other"); !fault.Is(err, fault.AlreadyExists) {
				t.Errorf("second Mount = %v, want already-exists", err)
			}
			used, err := os.Open(filepath.Join(target, "data/file"))
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Unmount(t.Context(), target); !fault.Is(err, fault.Busy) {
				t.Errorf("Unmount in use = %v, want busy", err)
			}
			used.Close()
			if err := m.Unmount(t.Context(), target); err != nil {
				t.Errorf("Unmount = %v", err)
			}
			if err := m.Unmount(t.Context(), target); !fault.Is(err, fault.NotFound) {
				t.Errorf("Unmount again = %v, want not-found", err)
			}
			// What was unmounted by hand is noticed.
			if err := m.Mount(t.Context(), root, target, "web/clean"); err != nil {
				t.Fatalf("Mount = %v", err)
			}
			if err := unix.Unmount(target, 0); err != nil {
				t.Fatal(err)
			}
			if where, err := m.Mounted("web/clean"); err != nil || where != "" {
				t.Errorf("Mounted = %q, %v, want nowhere", where, err)
			}
			if err := m.Tidy(t.Context()); err != nil {
				t.Errorf("Tidy = %v", err)
			}
			if _, err := os.Stat(run); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%s is left (%v)", run, err)
			}
			if after := host(t); after != before {
				t.Errorf("the host has\n%s\nand had\n%s", after, before)
			}
			if root.DiskPath != "" && servers(t, filepath.Dir(filepath.Dir(root.DiskPath))) != 0 {
				t.Error("the tool still runs")
			}
		})
	}
}

func TestBadDisksAreRefused(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts what it looks into")
	}
	dir := filepath.Join(t.TempDir(), "disks")
	file := func(name string, size int64) string {
		path := filepath.Join(dir, name, storage.DiskRaw)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600), os.Truncate(path, size)); err != nil {
			t.Fatal(err)
		}
		return path
	}
	qemuImg := func(args ...string) {
		if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
			t.Fatalf("qemu-img: %v: %s", err, out)
		}
	}
	empty := file("empty", 1<<20)
	outside := filepath.Join(dir, "outside", storage.DiskQcow2)
	file("outside", 0)
	qemuImg("create", "-q", "-f", "qcow2", "-b", empty, "-F", "raw", outside)
	garbage := file("garbage", 1<<20)
	for name, c := range map[string]struct {
		root  storage.Root
		class fault.Class
	}{
		"no file system":              {storage.Root{DiskPath: empty, DiskFormat: "raw"}, fault.Unsupported},
		"a backing file by full path": {storage.Root{DiskPath: outside, DiskFormat: "qcow2"}, fault.Invalid},
		"no qcow2":                    {storage.Root{DiskPath: garbage, DiskFormat: "qcow2"}, fault.Invalid},
	} {
		before := host(t)
		v, err := look.Open(t.Context(), c.root)
		if !fault.Is(err, c.class) {
			t.Errorf("%s: Open = %v (%s), want %s", name, err, fault.Of(err), c.class)
		}
		if err == nil {
			v.Close()
		}
		if after := host(t); after != before {
			t.Errorf("%s: the host has\n%s\nand had\n%s", name, after, before)
		}
	}
}
