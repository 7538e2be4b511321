package rootfs

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// gnuTar gives what tar makes of the directory dir.
func gnuTar(t testing.TB, dir string, args ...string) io.Reader {
	t.Helper()
	out, err := exec.Command("tar", append(append([]string{"-C", dir, "-c"}, args...), ".")...).Output()
	must(t, err)
	return bytes.NewReader(out)
}

func TestHostile9Dialects(t *testing.T) {
	needsRoot(t)
	src := t.TempDir()
	long := strings.Repeat("long-name/", 30) + "file"
	must(t, os.MkdirAll(filepath.Join(src, filepath.Dir(long)), 0o755))
	must(t, os.WriteFile(filepath.Join(src, long), []byte("content"), 0o640))
	must(t, os.Chown(filepath.Join(src, long), 3000000, 3000001))
	must(t, os.Symlink(strings.Repeat("t/", 100)+"x", filepath.Join(src, "link")))
	must(t, os.Link(filepath.Join(src, long), filepath.Join(src, "long-name", "hard")))
	must(t, filepath.WalkDir(src, func(path string, _ fs.DirEntry, _ error) error {
		whole := []unix.Timespec{{Sec: 1e9}, {Sec: 1e9}} // all that these formats can say
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, whole, unix.AT_SYMLINK_NOFOLLOW)
	}))
	for _, format := range []string{"gnu", "pax", "oldgnu"} {
		t.Run(format, func(t *testing.T) {
			s := newSandbox(t)
			s.mustApply(gnuTar(t, src, "--format="+format))
			s.compare(src)
		})
	}
}

// compare looks for differences between src and the tree: what tar makes of them
// has to be the same, byte for byte.
func (s *sandbox) compare(src string) {
	s.t.Helper()
	args := []string{"--sort=name", "--format=pax", "--pax-option=delete=atime,delete=ctime", "--numeric-owner", "--xattrs", "--xattrs-include=*"}
	want, err := io.ReadAll(gnuTar(s.t, src, args...))
	must(s.t, err)
	got, err := io.ReadAll(gnuTar(s.t, s.path, args...))
	must(s.t, err)
	if bytes.Equal(got, want) {
		return
	}
	cmd := exec.Command("tar", "-C", s.path, "--compare", "--numeric-owner", "--xattrs")
	cmd.Stdin = bytes.NewReader(want)
	out, err := cmd.CombinedOutput()
	s.t.Errorf("the tree differs: %v\n%s", err, out)
}

func TestHostile9SparseFilesStaySparse(t *testing.T) {
	needsRoot(t)
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "sparse"))
	must(t, err)
	for _, at := range []int64{0, 3 << 20, 70<<20 + 13} {
		_, err = f.WriteAt([]byte("data here"), at)
		must(t, err)
	}
	must(t, f.Truncate(100<<20))
	must(t, f.Close())
	want, err := os.Open(filepath.Join(src, "sparse"))
	must(t, err)
	defer want.Close()
	for _, args := range [][]string{
		{"--format=gnu", "--sparse"}, {"--format=pax", "--sparse", "--sparse-version=1.0"},
		{"--format=pax", "--sparse", "--sparse-version=0.1"}, {"--format=pax", "--sparse", "--sparse-version=0.0"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			s := newSandbox(t)
			s.mustApply(gnuTar(t, src, args...))
			st := s.stat("sparse")
			if st.Size != 100<<20 || st.Blocks*512 > 1<<20 {
				t.Errorf("it has %d bytes in %d, want %d in few", st.Size, st.Blocks*512, 100<<20)
			}
			got, err := os.Open(filepath.Join(s.path, "sparse"))
			must(t, err)
			defer got.Close()
			for _, at := range []int64{0, 3 << 20, 70 << 20} {
				a, b := make([]byte, 64<<10), make([]byte, 64<<10)
				if _, err := want.ReadAt(a, at); err != nil {
					t.Fatal(err)
				}
				if _, err := got.ReadAt(b, at); err != nil || !bytes.Equal(a, b) {
					t.Errorf("the content at %d differs (%v)", at, err)
				}
			}
		})
	}
}

// A hole costs the sender nothing, so that its size is a matter of limits.
func TestHostile9HugeHoleIsRefusedAtOnce(t *testing.T) {
	needsRoot(t)
	src := t.TempDir()
	f, err := os.Create(filepath.Join(src, "hole"))
	must(t, err)
	must(t, f.Truncate(1<<40))
	must(t, f.Close())
	s := newSandbox(t)
	start := time.Now()
	wantClass(t, s.apply(gnuTar(t, src, "--format=pax", "--sparse")), fault.Exhausted)
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("it took %s", took)
	}
}

func TestHostile9ArchiveEnds(t *testing.T) {
	whole, _ := io.ReadAll(layer(t, fileOf("f", "content")))
	end := len(whole) - 1024
	for name, raw := range map[string][]byte{
		"no end blocks":  whole[:end],
		"one end block":  whole[:end+512],
		"garbage behind": append(bytes.Clone(whole), "garbage"...),
		"empty":          nil,
		"only the end":   whole[end:],
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			r := NewHashReader(bytes.NewReader(raw))
			s.mustApply(r)
			if r.Digest() != digestOf(raw) {
				t.Errorf("it was not read to its end: %d of %d bytes", r.Size(), len(raw))
			}
		})
	}
	for _, cut := range []int{100, 511, 513, 515} {
		s := newSandbox(t)
		wantClass(t, s.apply(bytes.NewReader(whole[:cut])), fault.Invalid)
	}
	s := newSandbox(t)
	wantClass(t, s.apply(strings.NewReader(strings.Repeat("no tar at all", 1000))), fault.Invalid)
}

func TestHostile9GlobalHeaderIsNoFile(t *testing.T) {
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": "x"}}))
	must(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o644}))
	must(t, w.Close())
	s := newSandbox(t)
	s.mustApply(&out)
	s.want("f=")
}

func TestLimits(t *testing.T) {
	many := func(n int) []entry {
		var all []entry
		for i := range n {
			all = append(all, fileOf(fmt.Sprintf("f%d", i), "0123456789"))
		}
		return all
	}
	for name, c := range map[string]struct {
		limits  Limits
		entries []entry
		class   fault.Class
		words   string
	}{
		"entries":             {Limits{Entries: 9}, many(10), fault.Exhausted, "more than the allowed 9 entries"},
		"entries fit":         {Limits{Entries: 10}, many(10), "", ""},
		"one file":            {Limits{FileBytes: 9}, many(1), fault.Exhausted, "it has 10 bytes, more than the allowed 9"},
		"one file fits":       {Limits{FileBytes: 10}, many(1), "", ""},
		"stream":              {Limits{Bytes: 4096}, many(10), fault.Exhausted, "more than the allowed 4096 bytes"},
		"depth":               {Limits{Depth: 2}, []entry{fileOf("a/b/c/d", "")}, fault.Invalid, "more than 2 directories"},
		"depth fits":          {Limits{Depth: 3}, []entry{fileOf("a/b/c/d", "")}, "", ""},
		"depth through links": {Limits{Depth: 3}, []entry{symlinkOf("l", "a/b/c"), fileOf("l/d/e", "")}, fault.Invalid, "more than 3 directories"},
		"path":                {Limits{PathLength: 5}, []entry{fileOf("a/b/cd", "")}, fault.Invalid, "6 bytes, more than the allowed 5"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSandbox(t)
			wantClass(t, Apply(t.Context(), s.root, c.limits, layer(t, c.entries...)), c.class, c.words)
		})
	}
	t.Run("all files", func(t *testing.T) {
		s := newSandbox(t)
		u, err := New(s.root, Limits{Bytes: 1 << 20})
		must(t, err)
		defer u.Close()
		half := fileOf("f", strings.Repeat("x", 600<<10))
		must(t, u.Layer(t.Context(), layer(t, half)))
		wantClass(t, u.Layer(t.Context(), layer(t, half)), fault.Exhausted, "the image has more than the allowed 1048576 bytes")
	})
}

func TestSourceErrorKeepsItsClass(t *testing.T) {
	s := newSandbox(t)
	raw, _ := io.ReadAll(layer(t, fileOf("f", strings.Repeat("x", 10000))))
	down := fault.New(fault.Unavailable, "the registry went away")
	for _, cut := range []int{0, 512, 5000, len(raw)} {
		wantClass(t, s.apply(io.MultiReader(bytes.NewReader(raw[:cut]), iotest.ErrReader(down))), fault.Unavailable)
	}
}

func TestCancelledWhileUnpacking(t *testing.T) {
	s := newSandbox(t)
	ctx, cancel := context.WithCancel(t.Context())
	raw, _ := io.ReadAll(layer(t, fileOf("f", strings.Repeat("x", 4<<20)), fileOf("g", "")))
	r := &hookReader{r: bytes.NewReader(raw), at: 1 << 20, hook: cancel}
	wantClass(t, Apply(ctx, s.root, Limits{}, r), fault.Cancelled)
	if _, err := s.root.Lstat("g"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it went on after it was cancelled: %v", err)
	}
}

// hookReader calls hook once at bytes were read.
type hookReader struct {
	r    io.Reader
	at   int
	hook func()
}

func (h *hookReader) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	if h.at -= n; h.at < 0 {
		h.hook()
	}
	return n, err
}

func TestFullFileSystemIsExhausted(t *testing.T) {
	s := newSandbox(t)
	must(t, syscall.Mount("tmpfs", s.path, "tmpfs", 0, "size=1m"))
	t.Cleanup(func() { must(t, syscall.Unmount(s.path, 0)) })
	root, err := os.OpenRoot(s.path)
	must(t, err)
	defer root.Close()
	err = Apply(t.Context(), root, Limits{}, layer(t, fileOf("f", noise(2<<20))))
	wantClass(t, err, fault.Exhausted)
	if !strings.Contains(err.Error(), `entry "f"`) {
		t.Errorf("the error %q does not name the file", err)
	}
}

func TestManyDirectoriesKeepFewDescriptors(t *testing.T) {
	s := newSandbox(t)
	var below, above []entry
	for i := range 600 {
		below = append(below, fileOf(fmt.Sprintf("d%d/sub/f", i), "f"))
		above = append(above, fileOf(fmt.Sprintf(".wh.d%d", i), ""))
	}
	u, err := New(s.root, Limits{})
	must(t, err)
	defer u.Close()
	must(t, u.Layer(t.Context(), layer(t, below...)))
	if n := len(u.tree.byPath); n > maxOpenDirs+10 {
		t.Errorf("%d directories are open", n)
	}
	must(t, u.Layer(t.Context(), layer(t, above...)))
	must(t, u.Finish(t.Context()))
	s.want()
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	must(t, u.Close())
	left, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	if len(fds)-len(left) > maxOpenDirs+10 {
		t.Errorf("%d descriptors were open", len(fds))
	}
	for _, fd := range left {
		if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); strings.HasPrefix(to, s.path+"/") {
			t.Errorf("%s is still open", to)
		}
	}
}

func TestSync(t *testing.T) {
	root, err := os.OpenRoot(t.TempDir())
	must(t, err)
	defer root.Close()
	must(t, Sync(root))
}

// The host's own files are a real system: owners, set-id bits, links, odd names.
func TestRealFiles(t *testing.T) {
	needsRoot(t)
	for _, dir := range []string{"/etc", "/usr/sbin", "/usr/lib/systemd"} {
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		s := newSandbox(t)
		s.mustApply(gnuTar(t, dir, "--format=pax", "--xattrs", "--xattrs-include=*"))
		s.compare(dir)
	}
}
