package ext4_test

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/images/disk/ext4"
	"brig/images/verify"
	"brig/instance/fault"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// empty makes a file system of so many bytes.
func empty(t testing.TB, size string) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	path := filepath.Join(t.TempDir(), "disk.raw")
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-t", "ext4", "-O", ext4.Features, "-b", "4096", "-I", "256",
		"-E", "root_owner=0:0", path, size).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// clean has e2fsck look at a disk.
func clean(t testing.TB, f *os.File) {
	t.Helper()
	if out, err := exec.Command("e2fsck", "-fn", f.Name()).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v: %s", err, out)
	}
}

func scan(t testing.TB, path string) *verify.Model {
	t.Helper()
	d, err := os.Open(path)
	must(t, err)
	defer d.Close()
	m, err := verify.Scan(t.Context(), d, verify.Limits{})
	must(t, err)
	return m
}

// same compares a tree with what the kernel sees on a disk.
func same(t testing.TB, tree string, f *os.File) {
	t.Helper()
	at := filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(at, 0o700))
	if out, err := exec.Command("mount", "-o", "loop,ro,noload", f.Name(), at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	defer unix.Unmount(at, 0)
	r := verify.Compare(scan(t, tree), scan(t, at), verify.On{Disk: true})
	if r.Count > 0 {
		t.Errorf("%d differences: %+v", r.Count, r.Differences)
	}
	for _, a := range r.Allowed {
		if a.Rule != verify.LostFound {
			t.Errorf("%d times: %s", a.Count, a.Rule)
		}
	}
}

func fill(t testing.TB, f *os.File, tree string) error { return ext4.Fill(t.Context(), f, tree, 1e9) }

func write(t testing.TB, data string, elem ...string) string {
	t.Helper()
	path := filepath.Join(elem...)
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(data), 0o644))
	return path
}

func at(t testing.TB, path string, sec, nsec int64) {
	t.Helper()
	ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, unix.AT_SYMLINK_NOFOLLOW))
}

func TestTheKernelSeesTheTree(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, tree string){
		"nothing": func(*testing.T, string) {},
		"times": func(t *testing.T, tree string) {
			for i, sec := range []int64{-1 << 31, -1, 0, 1<<31 - 1, 1 << 31, 1 << 32, 1<<33 + 5, 1<<34 - 1<<31 - 1} {
				at(t, write(t, "x", tree, fmt.Sprint("f", i)), sec, 999999999)
			}
			at(t, tree, 1<<31+7, 1)
		},
		"sizes": func(t *testing.T, tree string) {
			for _, n := range []int{0, 1, 4095, 4096, 4097, 1<<20 - 1, 1 << 20, 1<<20 + 1, 3<<20 + 5} {
				write(t, strings.Repeat("x", n), tree, fmt.Sprint("f", n))
			}
		},
		"a large file in two groups": func(t *testing.T, tree string) {
			write(t, strings.Repeat("large", 40<<20), tree, "f") // more than an extent, and than what is left of the group
		},
		"holes, with indexes of two levels": func(t *testing.T, tree string) {
			f, err := os.Create(filepath.Join(tree, "f"))
			must(t, err)
			defer f.Close()
			for i := range int64(1500) { // 1360 extents take one level
				_, err := f.WriteAt([]byte("x"), i*2*4096)
				must(t, err)
			}
			must(t, f.Truncate(1<<40))
			write(t, strings.Repeat("\x00", 100_000)+"x"+strings.Repeat("\x00", 10_000), tree, "zeros")
		},
		"links": func(t *testing.T, tree string) {
			for _, n := range []int{1, 58, 59, 60, 61, 4094} {
				must(t, os.Symlink(strings.Repeat("l", n), filepath.Join(tree, fmt.Sprint("s", n))))
			}
			f := write(t, "f", tree, "d/f")
			must(t, os.Link(f, filepath.Join(tree, "a")))
			must(t, os.Link(f, filepath.Join(tree, "z")))
			must(t, os.Link(filepath.Join(tree, "s60"), filepath.Join(tree, "d", "s")))
			must(t, os.Link(write(t, "outside", tree+".beside"), filepath.Join(tree, "half")))
		},
		"names": func(t *testing.T, tree string) {
			write(t, "", tree, strings.Repeat("n", 255))
			write(t, "", tree, "odd\n\xff")
			write(t, "", tree, "Ä")
			for i := range 1200 {
				write(t, "", tree, "many", fmt.Sprintf("%s%d", strings.Repeat("n", i%200), i))
			}
			for i := range 40 {
				must(t, os.Mkdir(filepath.Join(tree, "many", fmt.Sprint("dir", i)), 0o700))
			}
			must(t, os.MkdirAll(filepath.Join(tree, strings.Repeat("d/", 200)), 0o755))
		},
		"special files": func(t *testing.T, tree string) {
			for i, n := range [][2]uint32{{1, 3}, {255, 255}, {8, 256}, {256, 0}, {4095, 1<<20 - 1}} {
				must(t, unix.Mknod(filepath.Join(tree, fmt.Sprint("c", i)), unix.S_IFCHR|0o620, int(unix.Mkdev(n[0], n[1]))))
				must(t, unix.Mknod(filepath.Join(tree, fmt.Sprint("b", i)), unix.S_IFBLK|0o600, int(unix.Mkdev(n[0], n[1]))))
			}
			must(t, unix.Mknod(filepath.Join(tree, "pipe"), unix.S_IFIFO|0o600, 0))
			must(t, unix.Mknod(filepath.Join(tree, "socket"), unix.S_IFSOCK|0o777, 0))
		},
		"owners and modes": func(t *testing.T, tree string) {
			for i, id := range []int{0, 65535, 65536, 1 << 31, 1<<32 - 2} {
				path := write(t, "", tree, fmt.Sprint("f", i))
				must(t, os.Chown(path, id, id/2))
				must(t, os.Chmod(path, fs.FileMode(0o111*i)|fs.ModeSetuid|fs.ModeSticky))
			}
			must(t, os.Chmod(tree, 0o711|fs.ModeSetgid))
			must(t, os.Chown(tree, 70000, 80000))
		},
		"attributes": func(t *testing.T, tree string) {
			f := write(t, "f", tree, "f")
			for _, n := range []int{0, 1, 3, 40, 300, 2500} {
				must(t, unix.Setxattr(f, fmt.Sprint("user.n", n), []byte(strings.Repeat("v", n)), 0))
			}
			must(t, unix.Setxattr(f, "trusted.ü\xff", []byte("t"), 0))
			must(t, os.Symlink("f", filepath.Join(tree, "l")))
			must(t, unix.Lsetxattr(filepath.Join(tree, "l"), "trusted.l", []byte("l"), 0))
			must(t, unix.Setxattr(tree, "trusted.root", []byte("r"), 0))
			must(t, os.Link(f, filepath.Join(tree, "g")))
		},
		"a lost+found of its own": func(t *testing.T, tree string) {
			write(t, "found", tree, "lost+found", "#12")
			must(t, os.Chmod(filepath.Join(tree, "lost+found"), 0o755))
		},
	} {
		t.Run(name, func(t *testing.T) {
			tree := filepath.Join(t.TempDir(), "tree")
			must(t, os.Mkdir(tree, 0o755))
			disk := empty(t, "512m")
			make(t, tree)
			must(t, fill(t, disk, tree))
			clean(t, disk)
			same(t, tree, disk)
		})
	}
}

// What was written has to be good for a kernel that goes on with it.
func TestTheKernelGoesOnWithTheDisk(t *testing.T) {
	tree := t.TempDir()
	for i := range 300 {
		write(t, strings.Repeat("x", i*40), tree, fmt.Sprint("d", i%7), fmt.Sprint(i))
	}
	must(t, unix.Setxattr(write(t, "", tree, "f"), "user.a", []byte(strings.Repeat("v", 300)), 0))
	disk := empty(t, "300m")
	must(t, fill(t, disk, tree))
	at := filepath.Join(t.TempDir(), "mnt")
	must(t, os.Mkdir(at, 0o700))
	if out, err := exec.Command("mount", "-o", "loop", disk.Name(), at).CombinedOutput(); err != nil {
		t.Fatalf("mount: %v: %s", err, out)
	}
	for i := range 2000 {
		write(t, strings.Repeat("y", 5000), at, "d1", fmt.Sprint("new", i))
	}
	must(t, os.RemoveAll(filepath.Join(at, "d2")))
	must(t, unix.Setxattr(filepath.Join(at, "f"), "user.b", []byte("b"), 0))
	must(t, os.Remove(filepath.Join(at, "d3", "10")))
	must(t, unix.Unmount(at, 0))
	clean(t, disk)
}

func TestWhatADiskCannotHoldIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		make  func(tree string)
		class fault.Class
		words string
	}{
		"too many bytes": {func(tree string) { write(t, strings.Repeat("x", 64<<20), tree, "f") }, fault.Exhausted, "do not fit"},
		"too many files": {func(tree string) {
			for i := range 5000 {
				write(t, "", tree, fmt.Sprint(i))
			}
		}, fault.Exhausted, "do not fit"},
		"a file lost+found": {func(tree string) { write(t, "", tree, "lost+found") }, fault.Unsupported, "lost+found"},
	} {
		t.Run(name, func(t *testing.T) {
			tree, disk := t.TempDir(), empty(t, "16m")
			c.make(tree)
			if err := fill(t, disk, tree); fault.Of(err) != c.class || !strings.Contains(err.Error(), c.words) {
				t.Errorf("Fill = %v of class %q, want %q and %q", err, fault.Of(err), c.class, c.words)
			}
		})
	}
	t.Run("attributes of more than a block", func(t *testing.T) {
		tree, disk := filepath.Join(t.TempDir(), "tree"), empty(t, "16m")
		must(t, os.Mkdir(tree, 0o755))
		must(t, unix.Mount("tmpfs", tree, "tmpfs", 0, "")) // which takes them
		defer unix.Unmount(tree, 0)
		must(t, unix.Setxattr(write(t, "", tree, "f"), "trusted.large", make([]byte, 5000), 0))
		if err := fill(t, disk, tree); !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), `"/f"`) {
			t.Errorf("Fill = %v, want it unsupported", err)
		}
	})
	t.Run("a disk that is not new", func(t *testing.T) {
		tree, disk := t.TempDir(), empty(t, "16m")
		write(t, "", tree, "f")
		must(t, fill(t, disk, tree))
		if err := fill(t, disk, tree); !fault.Is(err, fault.Unsupported) {
			t.Errorf("Fill = %v, want it unsupported", err)
		}
	})
	t.Run("no file system", func(t *testing.T) {
		disk := empty(t, "16m")
		_, err := disk.WriteAt(make([]byte, 1<<20), 0)
		must(t, err)
		if err := fill(t, disk, t.TempDir()); !fault.Is(err, fault.Unsupported) {
			t.Errorf("Fill = %v, want it unsupported", err)
		}
	})
}

func TestFillEndsWithItsContext(t *testing.T) {
	tree, disk := t.TempDir(), empty(t, "16m")
	write(t, "", tree, "f")
	ctx, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if err := ext4.Fill(ctx, disk, tree, 0); !fault.Is(err, fault.Timeout) {
		t.Errorf("Fill = %v, want a timeout", err)
	}
}
