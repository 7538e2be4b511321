package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"brig/instance/fault"
)

// bzImage is the head of a kernel image of a version.
func bzImage(version string) []byte {
	b := make([]byte, 4096)
	copy(b[magicAt:], magic)
	binary.LittleEndian.PutUint16(b[versionAt:], 0x400)
	copy(b[0x600:], version+" (somebody) #1 SMP\x00")
	return b
}

// ko is a module that depends on others.
func ko(depends string) []byte {
	return []byte("\x7fELF code \x00license=GPL\x00depends=" + depends + "\x00name=x\x00data")
}

// kernelTree makes a root file system with a kernel in dir.
func kernelTree(t *testing.T, dir, version string) {
	t.Helper()
	z, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	modules := "lib/modules/" + version + "/"
	for name, data := range map[string][]byte{
		"boot/vmlinuz-" + version:                               bzImage(version),
		modules + "kernel/drivers/virtio/virtio_pci.ko":         ko("virtio,virtio-ring"),
		modules + "kernel/drivers/virtio/virtio.ko":             ko("virtio_ring"),
		modules + "kernel/drivers/virtio/virtio_ring.ko":        ko(""),
		modules + "kernel/drivers/block/virtio_blk.ko.zst":      z.EncodeAll(ko("virtio,virtio_ring"), nil),
		modules + "kernel/drivers/char/virtio_console.ko":       ko("virtio"),
		modules + "kernel/drivers/char/hw_random/virtio-rng.ko": ko("virtio"),
		modules + "kernel/drivers/firmware/qemu_fw_cfg.ko":      ko(""),
		modules + "kernel/sound/loud.ko":                        ko(""),
		modules + "modules.builtin":                             []byte("kernel/fs/ext4/ext4.ko\n"),
		"etc/passwd":                                            []byte("root"),
	} {
		put(t, filepath.Join(dir, name), data)
	}
}

func put(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// store is a Store on a host whose own kernels are below the second result.
func store(t *testing.T) (*Store, string) {
	s := New(filepath.Join(t.TempDir(), "kernels"))
	s.host = t.TempDir()
	return s, s.host
}

// debian packs a tree as a Debian package.
func debian(t *testing.T, tree string) string {
	t.Helper()
	put(t, filepath.Join(tree, "DEBIAN/control"), []byte("Package: linux-image-x\nVersion: 1\nArchitecture: amd64\nMaintainer: x <x@example.org>\nDescription: x\n"))
	deb := filepath.Join(t.TempDir(), "kernel.deb")
	if out, err := exec.Command("dpkg-deb", "-Zgzip", "--root-owner-group", "-b", tree, deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	return deb
}

func TestImport(t *testing.T) {
	tree := t.TempDir()
	kernelTree(t, tree, "6.1.0-9-cloud-amd64")
	deb := debian(t, tree)
	for name, from := range map[string]string{"package": deb, "directory": tree} {
		t.Run(name, func(t *testing.T) {
			s, _ := store(t)
			info, err := s.Import(t.Context(), from, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if info.Name != "6.1.0-9-cloud-amd64" || info.Version != info.Name || info.Source != SourceImport || info.ImportedAt.IsZero() {
				t.Errorf("Import = %+v", info)
			}
			if got, err := os.ReadFile(info.Image); err != nil || !bytes.Equal(got, bzImage(info.Version)) {
				t.Errorf("image differs from what was imported (%v)", err)
			}
			m, err := readModules(os.DirFS(info.Modules))
			if err != nil || len(m.paths) != 8 || !m.builtin["ext4"] {
				t.Errorf("modules are %v, builtin %v (%v)", m.paths, m.builtin, err)
			}
			if _, err := s.Import(t.Context(), from, ImportOptions{}); !fault.Is(err, fault.AlreadyExists) {
				t.Errorf("second Import = %v, want already-exists", err)
			}
			if _, err := s.Import(t.Context(), from, ImportOptions{Name: "mine"}); err != nil {
				t.Errorf("Import by another name: %v", err)
			}
			if k, err := s.Ensure(t.Context(), nil); err != nil || k.Version != info.Version {
				t.Errorf("Ensure = %+v, %v, want the imported kernel", k, err)
			}
			if err := s.Delete(t.Context(), "mine"); err != nil {
				t.Error(err)
			}
			assertNames(t, s, info.Name)
		})
	}
}

func assertNames(t *testing.T, s *Store, want ...string) {
	t.Helper()
	list, err := s.List()
	var got []string
	for _, info := range list {
		got = append(got, info.Name)
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("List = %q, %v, want %q", got, err, want)
	}
	if left, _ := filepath.Glob(filepath.Join(s.dir, stagingName+"*")); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
}

func TestBadImportsLeaveNothing(t *testing.T) {
	noDriver := t.TempDir()
	kernelTree(t, noDriver, "6.2")
	if err := os.Remove(filepath.Join(noDriver, "lib/modules/6.2/kernel/drivers/block/virtio_blk.ko.zst")); err != nil {
		t.Fatal(err)
	}
	good := t.TempDir()
	kernelTree(t, good, "6.3")
	text := filepath.Join(t.TempDir(), "-x.deb")
	put(t, text, []byte("no package"))
	escape := t.TempDir()
	if err := os.MkdirAll(filepath.Join(escape, "boot"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(good, "boot/vmlinuz-6.3"), filepath.Join(escape, "boot/vmlinuz-6.3")); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		from, as string
		want     fault.Class
	}{
		"missing":     {filepath.Join(good, "nothing"), "", fault.NotFound},
		"not a deb":   {text, "", fault.Invalid},
		"empty":       {t.TempDir(), "", fault.Invalid},
		"no driver":   {noDriver, "", fault.Unsupported},
		"bad name":    {good, "../x", fault.Invalid},
		"hidden name": {good, ".new-x", fault.Invalid},
		"symlink out": {escape, "", fault.Invalid},
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := store(t)
			if _, err := s.Import(t.Context(), tt.from, ImportOptions{Name: tt.as}); !fault.Is(err, tt.want) {
				t.Errorf("Import = %v, want class %s", err, tt.want)
			}
			assertNames(t, s)
		})
	}
}

func TestChoice(t *testing.T) {
	s, host := store(t)
	kernelTree(t, host, "6.1.0-9-amd64")
	kernelTree(t, host, "6.1.0-10-amd64")
	put(t, filepath.Join(host, "boot/vmlinuz-7.0"), bzImage("7.0")) // without modules
	k, err := s.Ensure(t.Context(), nil)
	if err != nil || k.Name != "host-6.1.0-10-amd64" {
		t.Errorf("Ensure = %+v, %v, want the newest of the host that has modules", k, err)
	}
	own := t.TempDir()
	kernelTree(t, own, "8.0")
	tree, err := os.OpenRoot(own)
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	for range 2 {
		if k, err = s.FromTree(t.Context(), tree, "image-0123"); err != nil || k.Version != "8.0" || k.Name != "image-0123" {
			t.Errorf("FromTree = %+v, %v", k, err)
		}
	}
	if _, err := os.Stat(filepath.Join(k.Modules, "kernel/sound/loud.ko")); err == nil {
		t.Error("FromTree copied a module that no machine loads")
	}
	old := t.TempDir()
	kernelTree(t, old, "5.10")
	if _, err := s.Import(t.Context(), old, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	if k, err = s.Ensure(t.Context(), nil); err != nil || k.Name != "5.10" {
		t.Errorf("Ensure = %+v, %v, want the imported kernel, before those of images and of the host", k, err)
	}
	own2, err := s.For(t.Context(), tree, "image-0123", nil)
	if err != nil || own2.Version != "8.0" {
		t.Errorf("For an image with a kernel = %+v, %v", own2, err)
	}
	if other, err := s.For(t.Context(), nil, "image-1", nil); err != nil || other.Name != "5.10" {
		t.Errorf("For an image without a kernel = %+v, %v", other, err)
	}
	if info, err := s.Import(t.Context(), filepath.Join(host, "boot/vmlinuz-6.1.0-9-amd64"), ImportOptions{Name: "mine"}); err != nil || info.Version != "6.1.0-9-amd64" || info.Modules == "" {
		t.Errorf("Import of an image of the host = %+v, %v", info, err)
	}
	if _, err := s.Import(t.Context(), filepath.Join(host, "boot/vmlinuz-7.0"), ImportOptions{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Import of an image without modules = %v, want invalid", err)
	}
	list, err := s.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		if info.Default != (info.Name == "mine") || info.Size != 4096 {
			t.Errorf("List has %+v, want mine as the only default", info)
		}
	}
	if err := s.Delete(t.Context(), "mine"); err != nil {
		t.Fatal(err)
	}
	assertNames(t, s, "image-0123", "host-6.1.0-10-amd64", "host-6.1.0-9-amd64", "5.10")
}

func TestTreesWithoutAKernel(t *testing.T) {
	s, _ := store(t)
	noModules := t.TempDir()
	put(t, filepath.Join(noModules, "lib/modules/6.1/modules.builtin"), []byte("kernel/x.ko\n"))
	put(t, filepath.Join(noModules, "boot/vmlinuz-6.1"), bzImage("6.1"))
	for _, dir := range []string{t.TempDir(), noModules} {
		tree, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer tree.Close()
		if _, err := s.FromTree(t.Context(), tree, "image-1"); !fault.Is(err, fault.NotFound) {
			t.Errorf("FromTree = %v, want not-found", err)
		}
	}
	assertNames(t, s)
}

func TestDeadImportsAreCleanedUp(t *testing.T) {
	s, host := store(t)
	put(t, filepath.Join(s.dir, stagingName+"123", "vmlinuz"), bzImage("1"))
	kernelTree(t, host, "6.1")
	if _, err := s.Import(t.Context(), host, ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	assertNames(t, s, "6.1", "host-6.1")
}

func TestABusyStoreIsWaitedForUntilTheContextEnds(t *testing.T) {
	s, host := store(t)
	unlock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := s.Import(ctx, host, ImportOptions{}); !fault.Is(err, fault.Timeout) {
		t.Errorf("Import = %v, want a timeout", err)
	}
}

func TestInitramfs(t *testing.T) {
	s, host := store(t)
	kernelTree(t, host, "6.1")
	info, err := s.Import(t.Context(), host, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	guest := filepath.Join(t.TempDir(), "brig-guest")
	put(t, guest, []byte("program"))
	path, err := s.Initramfs(t.Context(), info.Kernel(), guest)
	if err != nil {
		t.Fatal(err)
	}
	again, err := s.Initramfs(t.Context(), info.Kernel(), guest)
	if err != nil || again != path {
		t.Errorf("Initramfs again = %q, %v, want the cached %q", again, err, path)
	}
	out := t.TempDir()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("cpio", "--extract", "--quiet", "--no-absolute-filenames", "--nonmatching", "dev/*")
	cmd.Dir, cmd.Stdin = out, f
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio cannot read it: %v\n%s", err, b)
	}
	list, err := os.ReadFile(filepath.Join(out, "modules.list"))
	want := []string{"virtio_ring", "virtio", "virtio_pci", "virtio_blk", "virtio_console", "qemu_fw_cfg", "virtio_rng"}
	if got := strings.Fields(string(list)); err != nil || len(got) != len(want) {
		t.Fatalf("modules.list is %q, %v, want %q", got, err, want)
	} else {
		for i, name := range want {
			if got[i] != "modules/"+name+".ko" {
				t.Errorf("module %d is %q, want %q", i, got[i], name)
			}
		}
	}
	if b, err := os.ReadFile(filepath.Join(out, "modules/virtio_blk.ko")); err != nil || !bytes.Equal(b, ko("virtio,virtio_ring")) {
		t.Errorf("virtio_blk is %q, %v, want it inflated", b, err)
	}
	if st, err := os.Stat(filepath.Join(out, "init")); err != nil || st.Mode().Perm() != 0o755 || st.Size() != 7 {
		t.Errorf("init is %v, %v", st, err)
	}
	if err := os.Rename(guest, guest+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Initramfs(t.Context(), info.Kernel(), guest); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Initramfs without brig-guest = %v, want unavailable", err)
	}
	put(t, guest, []byte("another"))
	if other, err := s.Initramfs(t.Context(), info.Kernel(), guest); err != nil || other == path {
		t.Errorf("Initramfs with a new brig-guest = %q, %v, want another one", other, err)
	}
}

func TestHostileModulesAndImages(t *testing.T) {
	for _, data := range []string{"", "\x00depends=", "\x00depends=\x00", "\x00depends=" + strings.Repeat("a", 5000) + "\x00"} {
		if got := dependencies([]byte(data)); got != nil {
			t.Errorf("dependencies(%.20q) = %q, want none", data, got)
		}
	}
	loop := t.TempDir()
	put(t, filepath.Join(loop, "virtio_pci.ko"), ko("virtio_blk"))
	put(t, filepath.Join(loop, "virtio_blk.ko"), ko("virtio_pci"))
	m, err := readModules(os.DirFS(loop))
	if err != nil {
		t.Fatal(err)
	}
	if list, err := m.closure(t.Context()); err != nil || len(list) != 2 {
		t.Errorf("closure of a loop = %d modules, %v, want 2", len(list), err)
	}
	short := bzImage("6.1")[:0x210]
	for _, head := range [][]byte{nil, short, bzImage("../6.1"), bzImage(""), bytes.Repeat([]byte{0xff}, 4096)} {
		if v, err := versionIn(head); !fault.Is(err, fault.Invalid) {
			t.Errorf("versionIn = %q, %v, want invalid", v, err)
		}
	}
}

func TestCompareVersions(t *testing.T) {
	sorted := []string{"5.10", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-10-cloud-amd64", "6.12.3"}
	for i := range sorted {
		for j := range sorted {
			if got := compareVersions(sorted[i], sorted[j]); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("compareVersions(%q, %q) = %d", sorted[i], sorted[j], got)
			}
		}
	}
}

func TestParseDepends(t *testing.T) {
	const debian = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\nlinux-image-6.1.0-56-cloud-amd64\n  Depends: kmod\nkmod\nlinux-base\n"
	if got := parseDepends([]byte(debian)); !slices.Equal(got, []string{"linux-image-6.1.0-56-cloud-amd64"}) {
		t.Errorf("parseDepends(Debian) = %q", got)
	}
	const ubuntu = "linux-image-virtual\n  Depends: linux-image-6.8.0-31-generic\nlinux-modules-6.8.0-31-generic\nlinux-image-6.8.0-31-generic\n"
	if got := parseDepends([]byte(ubuntu)); !slices.Equal(got, []string{"linux-image-6.8.0-31-generic", "linux-modules-6.8.0-31-generic"}) {
		t.Errorf("parseDepends(Ubuntu) = %q", got)
	}
	if got := parseDepends([]byte("linux-image-x\n")); got != nil {
		t.Errorf("parseDepends = %q, want none", got)
	}
}
