package squashfs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"brig/images/rootfs"
	"brig/instance/fault"
)

// sample makes a tree with everything that an image can hold.
func sample(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, data []byte) {
		must(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
		must(os.WriteFile(filepath.Join(dir, name), data, 0o640))
	}
	random := rand.New(rand.NewSource(1))
	noise := make([]byte, 700_001)
	random.Read(noise)
	write("big", noise)
	write("text", bytes.Repeat([]byte("the same again and again\n"), 40_000))
	write("small/.wh.literal", []byte("no whiteout"))
	for i := range 600 { // more names than one run of a directory holds
		write(fmt.Sprintf("many/file-%03d", i), []byte(strings.Repeat("x", i)))
	}
	write("empty", nil)
	must(os.Mkdir(filepath.Join(dir, "hollow"), 0o700))
	must(os.Link(filepath.Join(dir, "big"), filepath.Join(dir, "small/again")))
	must(os.Symlink("/etc/../nowhere", filepath.Join(dir, "link")))
	f, err := os.Create(filepath.Join(dir, "sparse"))
	must(err)
	must(f.Truncate(5 << 20))
	_, err = f.WriteAt([]byte("at the end"), 5<<20-10)
	must(err)
	must(f.Close())
	must(unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600))
	must(unix.Lsetxattr(filepath.Join(dir, "text"), "user.note", []byte("kept"), 0))
	must(unix.Lsetxattr(filepath.Join(dir, "many"), "user.note", []byte("kept too"), 0))
	if os.Getuid() == 0 {
		must(unix.Mknod(filepath.Join(dir, "null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 300))))
		must(unix.Mknod(filepath.Join(dir, "disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(259, 7))))
		must(os.Lchown(filepath.Join(dir, "small"), 1234, 60_000))
		must(os.Lchown(filepath.Join(dir, "link"), 7, 8))
		capability := []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		must(unix.Lsetxattr(filepath.Join(dir, "empty"), "security.capability", capability, 0))
	}
	must(os.Chmod(filepath.Join(dir, "small"), 0o751|fs.ModeSticky))
	return dir
}

// pack makes an image of a tree.
func pack(t testing.TB, dir string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath("mksquashfs"); err != nil {
		t.Skip("needs mksquashfs, of the package squashfs-tools")
	}
	file := filepath.Join(t.TempDir(), "image")
	out, err := exec.Command("mksquashfs", append([]string{dir, file, "-quiet", "-no-progress"}, args...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("mksquashfs: %v\n%s", err, out)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func unpack(t testing.TB, data []byte, l rootfs.Limits) (string, error) {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return dir, Unpack(t.Context(), root, l, bytes.NewReader(data), int64(len(data)))
}

// describe lists a tree with all that an image tells of it.
func describe(t testing.TB, dir string) []string {
	t.Helper()
	var all []string
	names := map[uint64]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		line := fmt.Sprintf("%s %o %d:%d %d", name, st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", st.Size, len(data)) + string(data[:min(len(data), 8)])
			line += fmt.Sprint(" ", slices.Contains(data, 'k'), bytes.Count(data, []byte{7}))
			if first, ok := names[st.Ino]; ok {
				line += " = " + first
			}
			names[st.Ino] = name
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + target
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		buf := make([]byte, 4096)
		n, _ := unix.Llistxattr(path, buf)
		for attr := range strings.SplitSeq(string(buf[:n]), "\x00") {
			if attr == "" {
				continue
			}
			value := make([]byte, 256)
			m, err := unix.Lgetxattr(path, attr, value)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %s=%x", attr, value[:m])
		}
		all = append(all, line)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestTreeComesOutAsItWas(t *testing.T) {
	dir := sample(t)
	want := describe(t, dir)
	for _, args := range [][]string{
		{"-comp", "gzip"}, {"-comp", "xz"}, {"-comp", "zstd"}, {"-comp", "xz", "-b", "1M", "-Xdict-size", "100%"},
		{"-comp", "xz", "-Xbcj", "x86"}, {"-comp", "gzip", "-b", "4K"}, {"-comp", "gzip", "-no-fragments"},
		{"-comp", "gzip", "-always-use-fragments"}, {"-comp", "zstd", "-noI", "-noD", "-noF", "-noX"}, {"-comp", "gzip", "-no-exports", "-no-duplicates"},
	} {
		t.Run(strings.Join(args, ""), func(t *testing.T) {
			out, err := unpack(t, pack(t, dir, args...), rootfs.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			got := describe(t, out)
			for i := range max(len(got), len(want)) {
				var g, w string
				if i < len(got) {
					g = got[i]
				}
				if i < len(want) {
					w = want[i]
				}
				if g != w {
					t.Fatalf("line %d = %q, want %q", i, g, w)
				}
			}
			var st syscall.Stat_t
			if err := syscall.Stat(filepath.Join(out, "sparse"), &st); err != nil || st.Blocks*512 >= 1<<20 {
				t.Errorf("the sparse file takes %d bytes (%v), want its holes kept", st.Blocks*512, err)
			}
		})
	}
}

func TestEmptyTree(t *testing.T) {
	out, err := unpack(t, pack(t, t.TempDir()), rootfs.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got := describe(t, out); len(got) != 1 {
		t.Errorf("the tree = %q, want the root alone", got)
	}
}

func TestUnknownCompressionIsUnsupported(t *testing.T) {
	data := pack(t, t.TempDir())
	for id, class := range map[uint16]fault.Class{2: fault.Unsupported, 3: fault.Unsupported, 5: fault.Unsupported, 9: fault.Invalid} {
		data := slices.Clone(data)
		binary.LittleEndian.PutUint16(data[20:], id)
		if _, err := unpack(t, data, rootfs.Limits{}); fault.Of(err) != class {
			t.Errorf("compression %d: %v, want %s", id, err, class)
		}
	}
}

func TestTruncatedImageIsInvalid(t *testing.T) {
	data := pack(t, sample(t), "-comp", "zstd", "-b", "16K")
	for _, n := range []int{0, 50, 96, 1000, len(data) / 2, len(data) - 5000} {
		if _, err := unpack(t, data[:n], rootfs.Limits{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%d of %d bytes: %v, want invalid", n, len(data), err)
		}
	}
}

// TestDirectoryThatHoldsItselfIsInvalid makes the entry of a directory refer to
// the directory above it.
func TestDirectoryThatHoldsItselfIsInvalid(t *testing.T) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "loop"), 0o755); err != nil {
		t.Fatal(err)
	}
	data := pack(t, dir, "-noI")
	root := binary.LittleEndian.Uint64(data[32:])
	table := binary.LittleEndian.Uint64(data[72:])
	entry := data[table+2+12:]
	binary.LittleEndian.PutUint16(entry, uint16(root))
	if _, err := unpack(t, data, rootfs.Limits{}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "twice") {
		t.Errorf("Unpack = %v, want invalid: it is in it twice", err)
	}
}

func TestNameWithSlashesIsInvalid(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "abcdef"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	data := pack(t, dir, "-noI")
	copy(data[bytes.Index(data, []byte("abcdef")):], "../../")
	if _, err := unpack(t, data, rootfs.Limits{}); !fault.Is(err, fault.Invalid) {
		t.Errorf("Unpack = %v, want invalid", err)
	}
}

func TestLimitsHold(t *testing.T) {
	data := pack(t, sample(t), "-comp", "zstd")
	for what, l := range map[string]rootfs.Limits{
		"entries": {Entries: 100},
		"bytes":   {Bytes: 1 << 20},
		"file":    {FileBytes: 1 << 20},
		"ratio":   {Ratio: 1, RatioFrom: 1 << 10},
	} {
		if _, err := unpack(t, data, l); !fault.Is(err, fault.Exhausted) {
			t.Errorf("limit of %s: %v, want exhausted", what, err)
		}
	}
}

// TestDamagedImagesNeverCrash flips bytes everywhere.
func TestDamagedImagesNeverCrash(t *testing.T) {
	dir := sample(t)
	if err := os.RemoveAll(filepath.Join(dir, "many")); err != nil { // quick to unpack
		t.Fatal(err)
	}
	data := pack(t, dir, "-comp", "gzip", "-b", "64K", "-noI", "-noX")
	random := rand.New(rand.NewSource(2))
	for range 150 {
		bad := slices.Clone(data)
		for range 1 + random.Intn(4) {
			// The tables, at the end, are where it hurts; some hit the header.
			at := len(bad) - 1 - random.Intn(2000)
			if random.Intn(4) == 0 {
				at = random.Intn(96)
			}
			bad[at] = byte(random.Int())
		}
		_, err := unpack(t, bad, rootfs.Limits{Bytes: 64 << 20, RatioFrom: 64 << 20, Entries: 5000})
		if fault.Of(err) == fault.Internal {
			t.Errorf("Unpack = %v, want an error of a class", err)
		}
	}
}

func FuzzImage(f *testing.F) {
	dir := f.TempDir()
	for name, text := range map[string]string{"a": "alpha", "b/c": strings.Repeat("beta", 5000)} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			f.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			f.Fatal(err)
		}
	}
	for _, args := range [][]string{{"-comp", "gzip"}, {"-comp", "xz"}, {"-comp", "zstd"}, {"-noI", "-noD", "-noF", "-noX"}} {
		f.Add(pack(f, dir, append(args, "-nopad", "-all-root", "-all-time", "0")...))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		_, err := unpack(t, data, rootfs.Limits{Bytes: 8 << 20, RatioFrom: 8 << 20, Entries: 1000})
		if fault.Of(err) == fault.Internal {
			t.Errorf("Unpack = %v, want an error of a class", err)
		}
	})
}

// BenchmarkUnpack compares with unsquashfs on the tree that BRIG_TEST_SQUASHFS is
// an image of.
func BenchmarkUnpack(b *testing.B) {
	path := os.Getenv("BRIG_TEST_SQUASHFS")
	if path == "" {
		b.Skip("needs BRIG_TEST_SQUASHFS, the path of an image")
	}
	b.Run("here", func(b *testing.B) {
		for b.Loop() {
			f, err := os.Open(path)
			if err != nil {
				b.Fatal(err)
			}
			st, err := f.Stat()
			if err != nil {
				b.Fatal(err)
			}
			root, err := os.OpenRoot(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			if err := Unpack(b.Context(), root, rootfs.Limits{}, f, st.Size()); err != nil {
				b.Fatal(err)
			}
			root.Close()
			f.Close()
		}
	})
	b.Run("unsquashfs", func(b *testing.B) {
		for b.Loop() {
			if out, err := exec.Command("unsquashfs", "-quiet", "-no-progress", "-d", filepath.Join(b.TempDir(), "x"), path).CombinedOutput(); err != nil {
				b.Fatalf("%v\n%s", err, out)
			}
		}
	})
}
