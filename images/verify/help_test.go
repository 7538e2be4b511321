package verify

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"brig/images/rootfs"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes files of any owner")
	}
}

// capNetRaw is a file capability.
const capNetRaw = "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// acl says: user::rw-, user:1000:r--, group::r--, mask::r--, other::---.
const acl = "\x02\x00\x00\x00" + "\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xe8\x03\x00\x00" +
	"\x04\x00\x04\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"

// entry is one of a layer. Its owner is root and its time some time ago, unless
// it says otherwise.
type entry struct {
	tar.Header
	content string
}

func fileOf(name, content string) entry {
	return entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, content}
}

func dirOf(name string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755}}
}

func symlinkOf(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target}}
}

func hardlinkOf(name, target string) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target}}
}

func deviceOf(name string, kind byte, major, minor int64) entry {
	return entry{Header: tar.Header{Name: name, Typeflag: kind, Mode: 0o600, Devmajor: major, Devminor: minor}}
}

func (e entry) with(xattr, value string) entry {
	records := map[string]string{"SCHILY.xattr." + xattr: value}
	for k, v := range e.PAXRecords {
		records[k] = v
	}
	e.PAXRecords = records
	return e
}

func (e entry) of(uid, gid int, mode int64) entry {
	e.Uid, e.Gid, e.Mode = uid, gid, mode
	return e
}

// layer is the tar of a layer.
func layer(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		hdr := e.Header
		hdr.Size, hdr.Format = int64(len(e.content)), tar.FormatPAX
		if hdr.ModTime.IsZero() {
			hdr.ModTime = time.Unix(1e9, 5e8)
		}
		must(t, w.WriteHeader(&hdr))
		_, err := io.WriteString(w, e.content)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func replay(t testing.TB, layers ...[]byte) *Model {
	t.Helper()
	p := NewReplay(Limits{})
	for _, l := range layers {
		must(t, p.Layer(t.Context(), bytes.NewReader(l)))
	}
	m, _ := p.Model()
	return m
}

// unpack makes the tree of layers.
func unpack(t testing.TB, layers ...[]byte) string {
	t.Helper()
	return unpackIn(t, t.TempDir(), layers...)
}

func unpackIn(t testing.TB, dir string, layers ...[]byte) string {
	t.Helper()
	needsRoot(t)
	path := filepath.Join(dir, "tree")
	must(t, os.Mkdir(path, 0o700))
	root, err := os.OpenRoot(path)
	must(t, err)
	defer root.Close()
	var readers []io.Reader
	for _, l := range layers {
		readers = append(readers, bytes.NewReader(l))
	}
	must(t, rootfs.Apply(t.Context(), root, rootfs.Limits{}, readers...))
	return path
}

func scan(t testing.TB, path string) *Model {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	m, err := Scan(t.Context(), f, Limits{})
	must(t, err)
	return m
}

// everything is an image of two layers with one of everything in it.
func everything(t testing.TB) [][]byte {
	late := fileOf("late", "x")
	late.ModTime = time.Unix(2e9, 123456789)
	return [][]byte{
		layer(t,
			dirOf("./").of(0, 0, 0o751),
			dirOf("etc").of(1, 2, 0o2775).with("system.posix_acl_default", acl),
			fileOf("etc/passwd", "root"), fileOf("etc/shadow", "!").of(0, 42, 0o640).with("system.posix_acl_access", acl),
			dirOf("bin"), fileOf("bin/ping", "ping").of(0, 0, 0o755).with("security.capability", capNetRaw).with("user.mine", "y"),
			fileOf("bin/su", "su").of(0, 0, 0o4755), hardlinkOf("bin/mount", "bin/su"),
			fileOf("gone", "x"), dirOf("old"), fileOf("old/a", "a"), fileOf("old/b", "b"), dirOf("old/sub"), fileOf("old/sub/c", "c"),
			symlinkOf("lib", "usr/lib"), fileOf("usr/lib/libc", "c"), dirOf("kept"), fileOf("kept/below", "1"),
			deviceOf("dev/null", tar.TypeChar, 1, 3), deviceOf("dev/loop", tar.TypeBlock, 7, 0), deviceOf("pipe", tar.TypeFifo, 0, 0),
			fileOf("sparse", string(make([]byte, 3*block))+"end"+string(make([]byte, block))), fileOf("zeros", string(make([]byte, 1<<20))),
			fileOf("odd\nname \xff", "o"), fileOf("empty", ""),
		),
		layer(t,
			fileOf(".wh.gone", ""), fileOf("old/new", "n"), fileOf("old/.wh..wh..opq", ""), fileOf("old/sub/d", "d"),
			fileOf("lib/libm", "m"), late, dirOf("kept").of(5, 6, 0o700).with("trusted.mine", "z"),
			hardlinkOf("bin/umount", "bin/mount"), fileOf("usr/bin/.wh.none", ""),
			fileOf("etc/passwd", "root2"),
		),
	}
}
