package rootfs

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"brig/instance/fault"
)

const (
	ociPlain = "application/vnd.oci.image.layer.v1.tar"
	ociGzip  = ociPlain + "+gzip"
	ociZstd  = ociPlain + "+zstd"
)

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// entry is one entry of a test's layer; the zero value of a field is a sensible one.
type entry struct {
	name  string
	kind  byte // 0: a directory if the name ends in a slash, else a file
	link  string
	data  string
	mode  int64
	uid   int
	gid   int
	mtime time.Time
	major int64
	minor int64
	pax   map[string]string
}

func dirOf(name string) entry          { return entry{name: name, kind: tar.TypeDir} }
func fileOf(name, data string) entry   { return entry{name: name, data: data} }
func symlinkOf(name, to string) entry  { return entry{name: name, kind: tar.TypeSymlink, link: to} }
func hardlinkOf(name, to string) entry { return entry{name: name, kind: tar.TypeLink, link: to} }
func charOf(name string, a, b int64) entry {
	return entry{name: name, kind: tar.TypeChar, major: a, minor: b}
}

func layer(t testing.TB, entries ...entry) *bytes.Reader {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, e := range entries {
		hdr := &tar.Header{
			Name: e.name, Typeflag: e.kind, Linkname: e.link, Mode: e.mode, Uid: e.uid, Gid: e.gid,
			ModTime: e.mtime, Devmajor: e.major, Devminor: e.minor, PAXRecords: e.pax, Size: int64(len(e.data)),
		}
		if e.pax != nil || !e.mtime.IsZero() {
			hdr.Format = tar.FormatPAX
		}
		if hdr.Typeflag == 0 {
			hdr.Typeflag = tar.TypeReg
			if strings.HasSuffix(e.name, "/") {
				hdr.Typeflag = tar.TypeDir
			}
		}
		if hdr.Mode == 0 {
			hdr.Mode = 0o644
			if hdr.Typeflag == tar.TypeDir {
				hdr.Mode = 0o755
			}
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatalf("cannot make test entry %q: %v", e.name, err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return bytes.NewReader(out.Bytes())
}

// sandbox is a root with a canary tree beside it: whatever is unpacked into the
// root, the canary has to stay as it is.
type sandbox struct {
	t      testing.TB
	root   *os.Root
	path   string // of root
	canary string
	before string
}

func newSandbox(t testing.TB) *sandbox {
	t.Helper()
	needsRoot(t)
	top := t.TempDir()
	s := &sandbox{t: t, path: filepath.Join(top, "root"), canary: filepath.Join(top, "canary")}
	must(t, os.Mkdir(s.path, 0o700))
	must(t, os.MkdirAll(filepath.Join(s.canary, "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(s.canary, "secret"), []byte("secret"), 0o600))
	must(t, os.WriteFile(filepath.Join(s.canary, "dir", "file"), []byte("file"), 0o644))
	must(t, os.Symlink("secret", filepath.Join(s.canary, "link")))
	must(t, os.WriteFile(filepath.Join(top, "passwd"), []byte("beside"), 0o644))
	root, err := os.OpenRoot(s.path)
	must(t, err)
	s.root = root
	s.before = s.outside()
	t.Cleanup(func() {
		s.root.Close()
		if after := s.outside(); after != s.before {
			t.Errorf("what lies outside of the root changed\nbefore:\n%s\nafter:\n%s", s.before, after)
		}
	})
	return s
}

// reopen takes what was mounted on the root for the root.
func (s *sandbox) reopen() {
	s.t.Helper()
	s.root.Close()
	var err error
	s.root, err = os.OpenRoot(s.path)
	must(s.t, err)
}

func (s *sandbox) names(dir string) []string {
	s.t.Helper()
	d, err := s.root.Open(dir)
	must(s.t, err)
	defer d.Close()
	names, err := d.Readdirnames(-1)
	must(s.t, err)
	return names
}

// outside describes all that lies beside the root, inode numbers included.
func (s *sandbox) outside() string {
	return describe(s.t, filepath.Dir(s.path), func(path string) bool { return path == s.path })
}

// describe lists a tree with all that can change in it.
func describe(t testing.TB, top string, skip func(string) bool) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if skip(path) {
			return filepath.SkipDir
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		content := ""
		switch {
		case info.Mode().IsRegular():
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			content = digestOf(data)
		case info.Mode().Type() == fs.ModeSymlink:
			content, err = os.Readlink(path)
		}
		out.WriteString(strings.Join([]string{
			path, info.Mode().String(), fmt.Sprint(st.Ino, st.Uid, st.Gid, st.Nlink),
			info.ModTime().Format(time.RFC3339Nano), content,
		}, " ") + "\n")
		return err
	})
	must(t, err)
	return out.String()
}

func (s *sandbox) apply(layers ...io.Reader) error {
	s.t.Helper()
	return Apply(s.t.Context(), s.root, Limits{}, layers...)
}

func (s *sandbox) mustApply(layers ...io.Reader) {
	s.t.Helper()
	must(s.t, s.apply(layers...))
}

// want compares the tree below the root with lines like "usr/lib/", "a=content",
// "lib -> usr/lib" and "dev/null (char device)", in order.
func (s *sandbox) want(lines ...string) {
	s.t.Helper()
	got := s.list()
	if strings.Join(got, "\n") != strings.Join(lines, "\n") {
		s.t.Errorf("the tree has\n\t%s\nwant\n\t%s", strings.Join(got, "\n\t"), strings.Join(lines, "\n\t"))
	}
}

func (s *sandbox) list() []string {
	s.t.Helper()
	var got []string
	err := filepath.WalkDir(s.path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == s.path {
			return err
		}
		name, _ := filepath.Rel(s.path, path)
		switch d.Type() {
		case fs.ModeDir:
			got = append(got, name+"/")
		case fs.ModeSymlink:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			got = append(got, name+" -> "+to)
		case 0:
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			got = append(got, name+"="+string(data))
		case fs.ModeNamedPipe:
			got = append(got, name+" (pipe)")
		case fs.ModeDevice:
			got = append(got, name+" (block device)")
		default:
			got = append(got, name+" (char device)")
		}
		return nil
	})
	must(s.t, err)
	return got
}

func (s *sandbox) stat(name string) *syscall.Stat_t {
	s.t.Helper()
	var st syscall.Stat_t
	must(s.t, syscall.Lstat(filepath.Join(s.path, name), &st))
	return &st
}

// wantClass checks the class of an error, and that it says why in these words.
func wantClass(t testing.TB, err error, class fault.Class, words ...string) {
	t.Helper()
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("the error %q does not say %q", err, w)
		}
	}
	if fault.Of(err) != class {
		t.Errorf("the error is %v of class %q, want class %q", err, fault.Of(err), class)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func needsRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
}
