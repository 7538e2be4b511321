package treediff_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/treecopy"
	"brig/storage/treediff"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func diff(t *testing.T, ctx context.Context, a, b string) ([]string, error) {
	t.Helper()
	var dirs [2]*os.File
	for i, path := range []string{a, b} {
		dir, err := os.Open(path)
		must(t, err)
		defer dir.Close()
		dirs[i] = dir
	}
	var got []string
	err := treediff.Walk(ctx, int(dirs[0].Fd()), int(dirs[1].Fd()), func(c treediff.Change) error {
		got = append(got, strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Kind, c.Path, strings.Join(c.What, "+"))))
		return nil
	})
	return got, err
}

// fill makes a tree with something of everything that needs no root.
func fill(t *testing.T, dir string) {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("etc/deep/er"), 0o755), os.MkdirAll(at("empty"), 0o755), os.MkdirAll(at("turns"), 0o755))
	for _, name := range []string{"etc/a", "etc/b", "etc/deep/er/c", "turns/x", "zz"} {
		must(t, os.WriteFile(at(name), []byte("text of "+name), 0o644))
	}
	must(t, os.Symlink("/etc/a", at("link")), unix.Mkfifo(at("pipe"), 0o600))
	f, err := os.Create(at("sparse"))
	must(t, err, f.Truncate(1<<40))
	_, err = f.WriteAt([]byte("end"), 1<<40-3)
	must(t, err, f.Close())
}

func TestSameTreesDoNotDiffer(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	fill(t, a)
	must(t, treecopy.Copy(t.Context(), a, b))
	must(t, os.Chtimes(filepath.Join(b, "etc/a"), time.Now(), time.Unix(1, 0)))
	if got, err := diff(t, t.Context(), a, b); err != nil || len(got) > 0 {
		t.Errorf("Walk = %q, %v, want nothing", got, err)
	}
	if got, err := diff(t, t.Context(), a, a); err != nil || len(got) > 0 {
		t.Errorf("Walk of a tree and itself = %q, %v, want nothing", got, err)
	}
}

func TestEveryDifferenceIsTold(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	fill(t, a)
	must(t, treecopy.Copy(t.Context(), a, b))
	at := func(name string) string { return filepath.Join(b, name) }
	st, err := os.Stat(at("etc/a"))
	must(t, err)
	must(t,
		os.WriteFile(at("etc/a"), []byte("TEXT of etc/a"), 0o644), os.Chtimes(at("etc/a"), st.ModTime(), st.ModTime()), // of one size and time
		os.Chmod(at("etc/b"), 0o4600),
		os.RemoveAll(at("etc/deep")),
		os.MkdirAll(at("new/dir"), 0o755), os.WriteFile(at("new/dir/file"), nil, 0o644),
		os.Remove(at("link")), os.Symlink("/etc/b", at("link")),
		os.RemoveAll(at("turns")), os.WriteFile(at("turns"), nil, 0o644),
		os.Remove(at("pipe")), os.Mkdir(at("pipe"), 0o755), os.WriteFile(at("pipe/in"), nil, 0o644),
		os.Chmod(at("empty"), 0o700),
		unix.Setxattr(at("zz"), "user.note", []byte("x"), 0),
	)
	f, err := os.OpenFile(at("sparse"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("mid"), 1<<39)
	must(t, err, f.Close())
	got, err := diff(t, t.Context(), a, b)
	want := []string{
		"changed /empty mode",
		"changed /etc/a content",
		"changed /etc/b mode",
		"removed /etc/deep",
		"removed /etc/deep/er",
		"removed /etc/deep/er/c",
		"changed /link target",
		"added /new",
		"added /new/dir",
		"added /new/dir/file",
		"changed /pipe type",
		"added /pipe/in",
		"changed /sparse content",
		"changed /turns type",
		"removed /turns/x",
		"changed /zz attributes",
	}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("Walk = %v\n%s\nwant\n%s", err, strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestOwnersAndDevices(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: changes owners")
	}
	a, b := t.TempDir(), t.TempDir()
	for i, dir := range []string{a, b} {
		must(t, unix.Mknod(filepath.Join(dir, "node"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, uint32(3+2*i)))))
		must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Chown(filepath.Join(dir, "file"), i, 0))
	}
	got, err := diff(t, t.Context(), a, b)
	if want := []string{"changed /file owner", "changed /node device"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Walk = %q, %v, want %q", got, err, want)
	}
}

func TestHostileTrees(t *testing.T) {
	a, b := t.TempDir(), t.TempDir()
	must(t, os.Symlink("/", filepath.Join(a, "root")), os.Symlink("root", filepath.Join(a, "loop")))
	got, err := diff(t, t.Context(), a, b)
	if want := []string{"removed /loop", "removed /root"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Walk of links = %q, %v, want %q", got, err, want)
	}

	// Deeper than a path can name: made from within.
	dir, err := os.Open(b)
	must(t, err)
	for range 600 {
		must(t, unix.Mkdirat(int(dir.Fd()), "d", 0o755))
		fd, err := unix.Openat(int(dir.Fd()), "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		must(t, err, dir.Close())
		dir = os.NewFile(uintptr(fd), "d")
	}
	dir.Close()
	if _, err := diff(t, t.Context(), a, b); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Walk of a deep tree = %v, want exhausted", err)
	}
}

func TestWalkStops(t *testing.T) {
	a := t.TempDir()
	fill(t, a)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := diff(t, ctx, a, t.TempDir()); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Walk = %v, want cancelled", err)
	}
}
