package manager

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/files"
)

// guestTree makes the files of a guest that means harm.
func guestTree(t *testing.T) *os.File {
	t.Helper()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	err := errors.Join(
		os.MkdirAll(at("etc/deep"), 0o755),
		os.WriteFile(at("etc/passwd"), []byte("guest"), 0o640),
		os.Chtimes(at("etc/passwd"), time.Unix(5, 0), time.Unix(5, 0)),
		os.WriteFile(at("etc/suid"), []byte("x"), 0o755), os.Chmod(at("etc/suid"), fs.ModeSetuid|0o755),
		os.WriteFile(at("etc/deep/file"), []byte("deep"), 0o600),
		os.Symlink("/etc/passwd", at("absolute")),
		os.Symlink("../../../../etc/passwd", at("upward")),
		os.Symlink("/", at("etc/deep/root")),
		os.Symlink("loop", at("loop")),
		unix.Mkfifo(at("etc/deep/fifo"), 0o600),
	)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// serveFiles connects a client to the files below dir.
func serveFiles(t *testing.T, dir *os.File) *files.Client {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		files.Serve(theirs, dir)
		theirs.Close()
	}()
	c := files.NewClient(ours)
	t.Cleanup(func() { c.Close(); <-done })
	return c
}

func pullInto(t *testing.T, dir *os.File, r FileRequest) (*puller, error) {
	t.Helper()
	p := &puller{ctx: t.Context(), from: serveFiles(t, dir)}
	return p, p.pull(r.Path, r)
}

func TestPullFollowsLinksAsTheGuestDoes(t *testing.T) {
	dir := guestTree(t)
	for _, path := range []string{"/etc/passwd", "absolute", "/upward", "../../etc/passwd", "etc/deep/root/etc/passwd"} {
		var out bytes.Buffer
		if _, err := pullInto(t, dir, FileRequest{Path: path, Output: &out}); err != nil || out.String() != "guest" {
			t.Errorf("pull of %q = %q, %v, want the guest's", path, out.String(), err)
		}
	}
	for path, class := range map[string]fault.Class{"none": fault.NotFound, "etc/passwd/x": fault.NotFound, "etc/deep/fifo": fault.Invalid, "etc": fault.Invalid} {
		if _, err := pullInto(t, dir, FileRequest{Path: path, Target: t.TempDir()}); !fault.Is(err, class) {
			t.Errorf("pull of %q = %v, want %s", path, err, class)
		}
	}
	if _, err := pullInto(t, dir, FileRequest{Path: "loop", Target: t.TempDir()}); err == nil {
		t.Error("a link to itself was copied")
	}
}

func TestPullWritesOnlyWhereItIsTold(t *testing.T) {
	dir, to := guestTree(t), t.TempDir()
	victim := filepath.Join(t.TempDir(), "victim")
	if err := os.WriteFile(victim, []byte("host"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A link in the way is replaced and not written through.
	if err := errors.Join(os.Symlink(victim, filepath.Join(to, "passwd")), os.MkdirAll(filepath.Join(to, "etc"), 0o755), os.Symlink(victim, filepath.Join(to, "etc/passwd"))); err != nil {
		t.Fatal(err)
	}
	if _, err := pullInto(t, dir, FileRequest{Path: "absolute", Target: filepath.Join(to, "copy")}); err != nil {
		t.Error(err)
	}
	if _, err := pullInto(t, dir, FileRequest{Path: "etc/passwd", Target: to}); err != nil {
		t.Error(err)
	}
	p, err := pullInto(t, dir, FileRequest{Path: "etc", Target: to, Recursive: true})
	if err != nil || p.left != 1 {
		t.Errorf("pull of a directory = %v with %d left out, want 1", err, p.left)
	}
	if b, err := os.ReadFile(victim); err != nil || string(b) != "host" {
		t.Errorf("the victim holds %q, %v", b, err)
	}
	for name, want := range map[string]string{"passwd": "guest", "copy": "guest", "etc/passwd": "guest", "etc/deep/file": "deep"} {
		if b, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(b) != want {
			t.Errorf("%s holds %q, %v, want %q", name, b, err, want)
		}
	}
	st, err := os.Stat(filepath.Join(to, "passwd"))
	if err != nil || st.Mode() != 0o640 || !st.ModTime().Equal(time.Unix(5, 0)) {
		t.Errorf("passwd is %v of %v, %v", st.Mode(), st.ModTime(), err)
	}
	if st, err := os.Stat(filepath.Join(to, "etc/suid")); err != nil || st.Mode() != 0o755 {
		t.Errorf("suid is %v, %v, want no more than 0755", st.Mode(), err)
	}
	if link, err := os.Readlink(filepath.Join(to, "etc/deep/root")); err != nil || link != "/" {
		t.Errorf("a link arrived as %q, %v", link, err)
	}
	left, err := filepath.Glob(filepath.Join(to, ".brig-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %q, %v", left, err)
	}
}

func TestPullStops(t *testing.T) {
	dir, to := guestTree(t), t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	p := &puller{ctx: ctx, from: serveFiles(t, dir)}
	if err := p.pull("etc", FileRequest{Path: "etc", Target: to, Recursive: true}); !fault.Is(err, fault.Cancelled) {
		t.Errorf("pull = %v, want cancelled", err)
	}
}

// The kernel does not resolve ".." below a root while a rename goes on anywhere.
func TestPullBesideRenames(t *testing.T) {
	dir, busy := guestTree(t), t.TempDir()
	a, b := filepath.Join(busy, "a"), filepath.Join(busy, "b")
	if err := os.Mkdir(a, 0o700); err != nil {
		t.Fatal(err)
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				os.Rename(a, b)
				os.Rename(b, a)
			}
		}
	}()
	c := serveFiles(t, dir)
	for range 3000 {
		if _, err := c.Stat(t.Context(), "upward", false); err != nil {
			t.Errorf("opening beside renames = %v", err)
			break
		}
	}
	close(done)
	<-ended
}
