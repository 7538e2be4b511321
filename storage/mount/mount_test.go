package mount_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/mount"
	"brig/storage/storagetest"
)

const base, count = 1000000, 65536

// fixture is a pool's layers, bottom last, with files of several owners, and a
// directory to mount at.
type fixture struct {
	dir    string
	spec   mount.Spec
	target string
}

func newFixture(t testing.TB, layers int) fixture {
	t.Helper()
	dir := t.TempDir()
	f := fixture{dir: dir, target: filepath.Join(dir, "target")}
	mkdir := func(parts ...string) string {
		path := filepath.Join(append([]string{dir}, parts...)...)
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for i := range layers {
		rootfs := mkdir("layers", fmt.Sprint(layers-1-i), "rootfs")
		f.spec.Lower = append(f.spec.Lower, rootfs)
		write(t, filepath.Join(rootfs, "who"), fmt.Sprint(layers-1-i))
		write(t, filepath.Join(rootfs, fmt.Sprintf("from%d", layers-1-i)), "x")
	}
	bottom := f.spec.Lower[layers-1]
	mkdir("layers/0/rootfs/etc")
	write(t, filepath.Join(bottom, "etc/passwd"), "root")
	write(t, filepath.Join(bottom, "user"), "mine")
	if err := os.Lchown(filepath.Join(bottom, "user"), 1000, 1001); err != nil && os.Getuid() == 0 {
		t.Fatal(err)
	}
	f.spec.Upper = mkdir("layers", "top", "rootfs")
	f.spec.Work = mkdir("layers", "top", "work")
	mkdir("target")
	return f
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// owner gives uid:gid of a file.
func owner(path string) string {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err.Error()
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// as runs a program with the ids of a user of the host.
func as(id uint32, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// mounts counts the mounts of this thread's namespace.
func mounts() int {
	b, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return -1
	}
	return strings.Count(string(b), "\n")
}

func expect(what, got, want string) error {
	if got != want {
		return fmt.Errorf("%s = %s, want %s", what, got, want)
	}
	return nil
}

func TestMappedRootWritesAsRootOnDisk(t *testing.T) {
	f := newFixture(t, 3)
	storagetest.Namespace(t, func() error {
		before := mounts()
		// The layers are out of reach for the users of the host, mapped ones included.
		if err := os.Chmod(filepath.Join(f.dir, "layers"), 0o700); err != nil {
			return err
		}
		if err := os.Chmod(filepath.Dir(f.dir), 0o755); err != nil {
			return err
		}
		if err := os.Chmod(f.dir, 0o755); err != nil {
			return err
		}
		if err := mount.Tree(f.target, f.spec, mount.IDMap{Base: base, Count: count}); err != nil {
			return err
		}
		in := func(name string) string { return filepath.Join(f.target, name) }
		up := func(name string) string { return filepath.Join(f.spec.Upper, name) }
		who, _ := os.ReadFile(in("who"))
		root := fmt.Sprintf("%d:%d", base, base)
		uid, _ := unix.SetfsuidRetUid(-1)
		return errors.Join(
			expect("mounts", fmt.Sprint(mounts()), fmt.Sprint(before+1)),
			expect("fsuid of the thread", fmt.Sprint(uid), "0"),
			expect("who", string(who), "2"),
			expect("owner of a lower file in the mount", owner(in("user")), fmt.Sprintf("%d:%d", base+1000, base+1001)),
			expect("owner of /etc/passwd in the mount", owner(in("etc/passwd")), root),
			as(base, "/bin/touch", in("new"), in("etc/new")),
			expect("owner of a new file in the mount", owner(in("new")), root),
			expect("owner of a new file on disk", owner(up("new")), "0:0"),
			expect("owner of a copied-up directory on disk", owner(up("etc")), "0:0"),
			as(base, "/bin/cp", in("who"), in("user2")),
			as(base, "/bin/rm", in("who")),
			whiteout(up("who")),
			as(base, "/bin/mv", "-T", in("etc"), in("etc2")),
			expect("owner of a file in a renamed directory", owner(in("etc2/passwd")), root),
		)
	})
}

func whiteout(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
		return fmt.Errorf("%q has mode %o and device %d, want a whiteout", path, st.Mode, st.Rdev)
	}
	return nil
}

func TestDirectoriesOfLayersCanBeRenamed(t *testing.T) {
	f := newFixture(t, 1)
	storagetest.Namespace(t, func() error {
		if err := mount.Tree(f.target, f.spec, mount.IDMap{}); err != nil {
			return err
		}
		// rename(2) itself, not mv, which falls back to copying.
		return os.Rename(filepath.Join(f.target, "etc"), filepath.Join(f.target, "renamed"))
	})
}

func TestOwnersStayWithoutAMap(t *testing.T) {
	f := newFixture(t, 2)
	storagetest.Namespace(t, func() error {
		if err := mount.Tree(f.target, f.spec, mount.IDMap{}); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(f.target, "new"), nil, 0o600); err != nil {
			return err
		}
		return errors.Join(
			expect("owner in the mount", owner(filepath.Join(f.target, "user")), "1000:1001"),
			expect("owner on disk", owner(filepath.Join(f.spec.Upper, "new")), "0:0"))
	})
}

func TestOneDirectory(t *testing.T) {
	for _, m := range []mount.IDMap{{}, {Base: base, Count: count}} {
		f := newFixture(t, 1)
		storagetest.Namespace(t, func() error {
			if err := mount.Tree(f.target, mount.Spec{Upper: f.spec.Lower[0]}, m); err != nil {
				return err
			}
			if err := expect("owner", owner(filepath.Join(f.target, "user")), fmt.Sprintf("%d:%d", m.Base+1000, m.Base+1001)); err != nil {
				return err
			}
			return os.Chown(filepath.Join(f.target, "user"), int(m.Base), int(m.Base))
		})
		if got := owner(filepath.Join(f.spec.Lower[0], "user")); got != "0:0" {
			t.Errorf("owner on disk after chown = %s, want 0:0", got)
		}
	}
}

func TestWithoutUpperIsReadOnly(t *testing.T) {
	for layers := 1; layers < 3; layers++ {
		f := newFixture(t, layers)
		storagetest.Namespace(t, func() error {
			if err := mount.Tree(f.target, mount.Spec{Lower: f.spec.Lower}, mount.IDMap{Base: base, Count: count}); err != nil {
				return err
			}
			err := os.WriteFile(filepath.Join(f.target, "new"), nil, 0o600)
			if !errors.Is(err, unix.EROFS) {
				return fmt.Errorf("writing = %v, want EROFS", err)
			}
			return nil
		})
	}
}

func TestManyLayers(t *testing.T) {
	f := newFixture(t, 450)
	storagetest.Namespace(t, func() error {
		if err := mount.Tree(f.target, f.spec, mount.IDMap{Base: base, Count: count}); err != nil {
			return err
		}
		_, err := os.Stat(filepath.Join(f.target, "from0"))
		return err
	})
	f.spec.Lower = append(f.spec.Lower, make([]string, 51)...)
	if err := mount.Tree(f.target, f.spec, mount.IDMap{}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Tree of 501 layers = %v, want exhausted", err)
	}
}

func TestFailureLeavesNothingMounted(t *testing.T) {
	storagetest.Namespace(t, func() error {
		before := mounts()
		var errs []error
		for what, spoil := range map[string]func(*fixture){
			"missing layer":          func(f *fixture) { f.spec.Lower[1] += "/gone" },
			"missing work":           func(f *fixture) { f.spec.Work += "/gone" },
			"missing upper":          func(f *fixture) { f.spec.Upper += "/gone" },
			"missing target":         func(f *fixture) { f.target += "/gone" },
			"file as layer":          func(f *fixture) { f.spec.Lower[0] += "/who" },
			"work on another fs":     func(f *fixture) { f.spec.Work = "/dev/shm" },
			"work in upper":          func(f *fixture) { f.spec.Work = f.spec.Upper },
			"layer through a link":   func(f *fixture) { f.spec.Lower[0] = link(f) },
			"nothing at all":         func(f *fixture) { f.spec = mount.Spec{} },
			"missing only directory": func(f *fixture) { f.spec = mount.Spec{Upper: "/gone"} },
		} {
			for _, m := range []mount.IDMap{{}, {Base: base, Count: count}} {
				f := newFixture(t, 2)
				spoil(&f)
				if err := mount.Tree(f.target, f.spec, m); err == nil {
					errs = append(errs, fmt.Errorf("%s: Tree = nil, want an error", what))
				}
				if after := mounts(); after != before {
					return fmt.Errorf("%s: %d mounts afterwards, %d before", what, after, before)
				}
			}
		}
		return errors.Join(errs...)
	})
}

func link(f *fixture) string {
	path := filepath.Join(f.dir, "link")
	os.Symlink(f.spec.Lower[0], path)
	return path
}

func BenchmarkTree(b *testing.B) {
	for _, m := range []mount.IDMap{{}, {Base: base, Count: count}} {
		b.Run(fmt.Sprintf("map=%v", m.Count > 0), func(b *testing.B) {
			f := newFixture(b, 5)
			storagetest.Namespace(b, func() error {
				var spent time.Duration // without the unmounting, which waits for the kernel's readers
				for range b.N {
					start := time.Now()
					if err := mount.Tree(f.target, f.spec, m); err != nil {
						return err
					}
					spent += time.Since(start)
					if err := unix.Unmount(f.target, 0); err != nil {
						return err
					}
				}
				b.ReportMetric(float64(spent.Microseconds())/float64(b.N), "µs/mount")
				return nil
			})
		})
	}
}
