package pack

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/images/rootfs"
)

// packed gives the tree in dir as a tar stream.
func packed(t *testing.T, dir string, write func(*Writer) error) []byte {
	t.Helper()
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var b bytes.Buffer
	w := NewWriter(t.Context(), &b, root, "")
	if err := errors.Join(write(w), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func unpacked(t *testing.T, layers ...[]byte) string {
	t.Helper()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var readers []io.Reader
	for _, l := range layers {
		readers = append(readers, bytes.NewReader(l))
	}
	if err := rootfs.Apply(t.Context(), root, rootfs.Limits{}, readers...); err != nil {
		t.Fatal(err)
	}
	return dir
}

// tree makes a tree with everything in it that this caller may make.
func tree(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	must(os.MkdirAll(at("a/deep/er"), 0o755))
	must(os.Mkdir(at("empty"), 0o1777))
	must(os.WriteFile(at("a/file"), []byte("content"), 0o640))
	must(os.Link(at("a/file"), at("a/second name")))
	must(os.Symlink("/etc/passwd", at("a/link")))
	must(os.Symlink("..", at("up")))
	must(os.Link(at("up"), at("a/up too")))
	must(os.WriteFile(at("a/deep/er/"+strings.Repeat("n", 200)), nil, 0o600))
	must(os.WriteFile(at("a/ünï\ncode"), bytes.Repeat([]byte("x"), 70000), 0o755))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(unix.Lsetxattr(at("a/file"), "user.note", []byte("text\x00with zero"), 0))
	socket, err := net.Listen("unix", at("socket"))
	must(err)
	defer socket.Close()
	if os.Getuid() == 0 {
		must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
		must(os.Lchown(at("a/link"), 1000, 70000))
		must(unix.Lsetxattr(at("a/file"), "security.capability", []byte("\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"), 0))
		must(unix.Lsetxattr(at("empty"), "trusted.overlay.opaque", []byte("y"), 0))
	}
	for _, name := range []string{"a/file", "a/deep/er", "a/deep", "a", "fifo", "."} {
		must(os.Chtimes(at(name), time.Time{}, time.Unix(1234567890, 123456789)))
	}
	return dir
}

func TestWhatIsPackedIsUnpackedAsItWas(t *testing.T) {
	dir := tree(t)
	first := packed(t, dir, (*Writer).Tree)
	if again := packed(t, dir, (*Writer).Tree); !bytes.Equal(first, again) {
		t.Error("the same tree gives other bytes")
	}
	out := unpacked(t, first)
	if again := packed(t, out, (*Writer).Tree); !bytes.Equal(first, again) {
		t.Errorf("the unpacked tree gives other bytes:\n%v\nwant\n%v", headers(t, again), headers(t, first))
	}
	list := headers(t, first)
	if slices.ContainsFunc(list, func(s string) bool { return strings.Contains(s, "socket") || strings.Contains(s, "trusted.") }) {
		t.Errorf("there is a socket, or an attribute of the host, in %v", list)
	}
	if info, err := os.Stat(filepath.Join(out, "a/file")); err != nil || !info.ModTime().Equal(time.Unix(1234567890, 123456789)) {
		t.Errorf("a/file is from %v, %v", info.ModTime(), err)
	}
}

func headers(t *testing.T, data []byte) (list []string) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(data))
	for {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		s := hdr.Name + " " + hdr.Linkname
		for k, v := range hdr.PAXRecords {
			s += " " + k + "=" + v
		}
		list = append(list, s)
	}
}

func TestALayerOfChanges(t *testing.T) {
	dir := tree(t)
	below := packed(t, dir, (*Writer).Tree)
	for name, content := range map[string]string{"a/file": "other", "a/deep/new": "new"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(filepath.Join(dir, "empty")); err != nil {
		t.Fatal(err)
	}
	layer := packed(t, dir, func(w *Writer) error {
		return errors.Join(w.Path("a/deep/new"), w.Path("a/file"), w.Path("a/second name"), w.Whiteout("empty"))
	})
	if n := len(headers(t, layer)); n != 4 {
		t.Errorf("the layer has %d entries, want 4", n)
	}
	out := unpacked(t, below, layer)
	for name, want := range map[string]string{"a/file": "other", "a/second name": "other", "a/deep/new": "new", "a/link": ""} {
		if got, _ := os.ReadFile(filepath.Join(out, name)); want != "" && string(got) != want {
			t.Errorf("%s holds %q, want %q", name, got, want)
		}
	}
	if _, err := os.Lstat(filepath.Join(out, "empty")); !os.IsNotExist(err) {
		t.Errorf("empty = %v, want it gone", err)
	}
}

func TestNothingIsFollowed(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/", filepath.Join(dir, "host")); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	w := NewWriter(t.Context(), io.Discard, root, "")
	for _, name := range []string{"host/etc/passwd", "../x", "/etc/passwd"} {
		if err := w.Path(name); err == nil {
			t.Errorf("Path(%q) is written", name)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := NewWriter(ctx, io.Discard, root, "").Tree(); !errors.Is(err, context.Canceled) {
		t.Errorf("Tree() = %v after cancelling", err)
	}
}
