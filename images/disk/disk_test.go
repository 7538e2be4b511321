package disk

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl says: user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// makeTree makes a tree with one of everything.
func makeTree(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	tree := filepath.Join(t.TempDir(), "tree")
	at := func(name string) string { return filepath.Join(tree, name) }
	must(t, os.MkdirAll(at("a/b"), 0o755))
	must(t, os.WriteFile(at("a/ping"), []byte("ping"), 0o755))
	must(t, os.Chown(at("a/ping"), 8, 300000))
	must(t, unix.Setxattr(at("a/ping"), "security.capability", []byte(capNetRaw), 0))
	must(t, unix.Setxattr(at("a/ping"), "user.mine", []byte("y"), 0))
	must(t, unix.Setxattr(at("a/b"), "trusted.mine", []byte("y"), 0))
	must(t, os.WriteFile(at("a/acl"), []byte("acl"), 0o640))
	must(t, unix.Setxattr(at("a/acl"), "system.posix_acl_access", []byte(acl), 0))
	must(t, unix.Setxattr(at("a"), "system.posix_acl_default", []byte(acl), 0))
	must(t, os.WriteFile(at("suid"), []byte(strings.Repeat("x", 100_000)), 0o755))
	must(t, os.Chmod(at("suid"), 0o755|fs.ModeSetuid|fs.ModeSetgid))
	must(t, os.Link(at("suid"), at("a/b/hard")))
	must(t, os.Symlink("/etc/passwd", at("out")))
	must(t, os.Symlink(strings.Repeat("long/", 50), at("longlink")))
	must(t, unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("pipe"), unix.S_IFIFO|0o600, 0))
	must(t, os.WriteFile(at("-L odd\nname"), nil, 0o600))
	f, err := os.Create(at("sparse"))
	must(t, err)
	_, err = f.WriteAt([]byte("end"), 24<<20)
	must(t, err)
	must(t, f.Close())
	must(t, os.Chmod(tree, 0o711))
	must(t, os.Chown(tree, 3, 300000))
	must(t, filepath.WalkDir(tree, func(path string, _ fs.DirEntry, _ error) error {
		whole := []unix.Timespec{{Sec: 1e9}, {Sec: 1e10, Nsec: 123456789}} // in 2286
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, whole, unix.AT_SYMLINK_NOFOLLOW)
	}))
	return tree
}

const tarTree = `exec tar -C "$1" --sort=name --format=pax --pax-option=delete=atime,delete=ctime --numeric-owner --xattrs --xattrs-include='*' --exclude=./lost+found -c .`

func TestDiskHoldsTheTree(t *testing.T) {
	tree := makeTree(t)
	dst := filepath.Join(t.TempDir(), "disk.raw")
	must(t, Make(t.Context(), tree, dst, Options{Size: 1 << 30, Label: "root"}))

	var st syscall.Stat_t
	must(t, syscall.Stat(dst, &st))
	if st.Size != 1<<30 || st.Blocks*512 > 12<<20 {
		t.Errorf("the disk has %d bytes in %d, want %d in few", st.Size, st.Blocks*512, 1<<30)
	}
	if out, err := exec.Command("e2fsck", "-fn", dst).CombinedOutput(); err != nil {
		t.Errorf("e2fsck: %v\n%s", err, out)
	}
	want, err := exec.Command("sh", "-c", tarTree, "tar", tree).Output()
	must(t, err)
	cmd := exec.Command("sh", "-c", `mount -o loop,ro,noload "$2" "$1" && `+tarTree, "tar", t.TempDir(), dst)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	got, err := cmd.Output()
	if err != nil {
		t.Fatalf("cannot read the disk: %v: %s", err, &stderr)
	}
	if !slices.Equal(entriesOf(t, got), entriesOf(t, want)) {
		t.Errorf("the disk differs from the tree:\n%s\nwant\n%s", listTar(t, got), listTar(t, want))
	}
}

// entriesOf tells all that a tar says of files: attributes come in the order in which
// a file system lists them.
func entriesOf(t *testing.T, raw []byte) []string {
	t.Helper()
	var all []string
	for r := tar.NewReader(bytes.NewReader(raw)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		must(t, err)
		data, err := io.ReadAll(r)
		must(t, err)
		h.Format = tar.FormatUnknown
		all = append(all, fmt.Sprintf("%+v %x", *h, sha256.Sum256(data)))
	}
}

func listTar(t *testing.T, raw []byte) string {
	t.Helper()
	cmd := exec.Command("tar", "--xattrs", "--numeric-owner", "--full-time", "-tvvf", "-")
	cmd.Stdin = bytes.NewReader(raw)
	out, err := cmd.CombinedOutput()
	must(t, err)
	return string(out)
}

func TestGuestHasNoTablesToZero(t *testing.T) {
	dst := filepath.Join(t.TempDir(), "disk.raw")
	must(t, Make(t.Context(), makeTree(t), dst, Options{Size: 1 << 30}))
	out, err := exec.Command("dumpe2fs", dst).Output()
	must(t, err)
	groups, zeroed := len(regexp.MustCompile(`(?m)^Group \d+:`).FindAll(out, -1)), bytes.Count(out, []byte("ITABLE_ZEROED"))
	if groups != zeroed || groups == 0 {
		t.Errorf("%d of %d groups have tables that need no zeroing", zeroed, groups)
	}
}

func TestSameTreeGivesSameDisk(t *testing.T) {
	tree, dir := makeTree(t), t.TempDir()
	var disks [2][]byte
	o := Options{Size: 64 << 20, UUID: UUIDFor("3f2a")}
	for i := range disks {
		// Reading a file may change its time of access: once.
		dst := filepath.Join(dir, fmt.Sprint(i))
		must(t, Make(t.Context(), tree, dst, o))
		if i == 0 {
			must(t, os.Remove(dst))
			must(t, Make(t.Context(), tree, dst, o))
		}
		var err error
		disks[i], err = os.ReadFile(dst)
		must(t, err)
	}
	if !bytes.Equal(disks[0], disks[1]) {
		t.Errorf("two disks of one tree differ")
	}
	if !bytes.Contains(disks[0][:4096], []byte{0xef}) {
		t.Errorf("the disk holds no file system")
	}
}

func TestSizes(t *testing.T) {
	tree := makeTree(t)
	for _, c := range []struct {
		size, want int64
		class      fault.Class
	}{
		{0, 10 << 30, ""}, {3 << 30, 3 << 30, ""}, {-1, 0, fault.Invalid}, {64 << 10, 0, fault.Exhausted}, {1 << 20, 0, ""}, {1 << 62, 0, fault.Invalid},
	} {
		dst := filepath.Join(t.TempDir(), "disk.raw")
		err := Make(t.Context(), tree, dst, Options{Size: c.size})
		if c.want == 0 && c.class == "" {
			if err != nil && !fault.Is(err, fault.Exhausted) {
				t.Errorf("Make of %d bytes: %v", c.size, err)
			}
			continue
		}
		if fault.Of(err) != c.class {
			t.Errorf("Make of %d bytes: %v of class %q, want %q", c.size, err, fault.Of(err), c.class)
		}
		info, err := os.Stat(dst)
		switch {
		case c.class != "" && !errors.Is(err, fs.ErrNotExist):
			t.Errorf("Make of %d bytes failed and left %v", c.size, info)
		case c.class == "" && info.Size() != c.want:
			t.Errorf("Make of %d bytes made %d, want %d", c.size, info.Size(), c.want)
		}
	}
}

func TestManySmallFilesFit(t *testing.T) {
	tree := makeTree(t)
	for i := range 3000 {
		must(t, os.WriteFile(filepath.Join(tree, fmt.Sprint("f", i)), nil, 0o600))
	}
	dst := filepath.Join(t.TempDir(), "disk.raw")
	must(t, Make(t.Context(), tree, dst, Options{Size: 32 << 20}))
}

func TestNothingIsLeftAfterFailure(t *testing.T) {
	tree := makeTree(t)
	dir := t.TempDir()
	dst := filepath.Join(dir, "disk.raw")
	gone := filepath.Join(dir, "gone")
	if err := Make(t.Context(), gone, dst, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Make of a missing tree: %v", err)
	}
	if err := Make(t.Context(), filepath.Join(tree, "suid"), dst, Options{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Make of a file: %v", err)
	}
	if err := Make(t.Context(), tree, dst, Options{Label: "longer than sixteen"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Make with a long label: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Make(ctx, tree, dst, Options{}); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Make when cancelled: %v", err)
	}
	t.Run("without tools", func(t *testing.T) {
		t.Setenv("PATH", dir)
		err := Make(t.Context(), tree, dst, Options{})
		if !fault.Is(err, fault.Unsupported) || !strings.Contains(err.Error(), "e2fsprogs") {
			t.Errorf("Make without mkfs.ext4: %v", err)
		}
	})
	t.Run("full host", func(t *testing.T) {
		must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"))
		err := Make(t.Context(), tree, filepath.Join(dir, "full.raw"), Options{})
		left, _ := os.ReadDir(dir)
		must(t, syscall.Unmount(dir, 0))
		if !fault.Is(err, fault.Exhausted) {
			t.Errorf("Make on a full file system: %v", err)
		}
		if len(left) > 0 {
			t.Errorf("Make on a full file system left %v", left)
		}
	})
	if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("there is a disk after all these failures: %v", err)
	}
	must(t, os.WriteFile(dst, []byte("mine"), 0o600))
	if err := Make(t.Context(), tree, dst, Options{}); !fault.Is(err, fault.AlreadyExists) {
		t.Errorf("Make over a file: %v", err)
	}
	if got, _ := os.ReadFile(dst); string(got) != "mine" {
		t.Errorf("Make over a file changed it")
	}
}

// ending is a context whose time is over when it has been asked so often.
type ending struct {
	context.Context
	asked, after int
}

func (c *ending) Err() error {
	if c.asked++; c.asked > c.after {
		return context.DeadlineExceeded
	}
	return nil
}

func TestCancelledHalfWay(t *testing.T) {
	tree := makeTree(t)
	must(t, os.WriteFile(filepath.Join(tree, "big"), bytes.Repeat([]byte("x"), 8<<20), 0o600))
	dst := filepath.Join(t.TempDir(), "disk.raw")
	whole := &ending{Context: t.Context(), after: 1 << 30}
	must(t, Make(whole, tree, dst, Options{}))
	must(t, os.Remove(dst))
	for _, after := range []int{0, 1, whole.asked / 2, whole.asked * 3 / 4, whole.asked - 1} {
		ctx := &ending{Context: t.Context(), after: after}
		if err := Make(ctx, tree, dst, Options{}); !fault.Is(err, fault.Timeout) {
			t.Errorf("Make, ended at %d of %d: %v, want a timeout", after, whole.asked, err)
		}
		if _, err := os.Lstat(dst); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("ended at %d of %d, the half-made disk is still there: %v", after, whole.asked, err)
		}
	}
}
