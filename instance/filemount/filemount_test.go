package filemount

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/guest/files"
	"brig/instance/guest/wire"
)

// served connects to a directory as a running instance would.
func served(t *testing.T, dir string) func(context.Context) (*Conn, error) {
	return func(context.Context) (*Conn, error) {
		root, err := os.Open(dir)
		if err != nil {
			return nil, err
		}
		ours, theirs := net.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			files.Serve(theirs, root)
			theirs.Close()
		}()
		return &Conn{files.NewClient(ours), func() error { <-done; return root.Close() }}, nil
	}
}

// mounted serves at a directory until the test ends, or the stop it gives is called.
func mounted(t *testing.T, o Options) (dir string, stop func() error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	o.Target = t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- Serve(ctx, o, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	stop = func() error {
		cancel()
		select {
		case err := <-ended:
			ended <- err
			return err
		case <-time.After(20 * time.Second):
			return errors.New("it does not end")
		}
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
		if left, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(left), o.Target) {
			unix.Unmount(o.Target, unix.MNT_DETACH)
			t.Errorf("it is still mounted at %s", o.Target)
		}
	})
	return o.Target, stop
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFilesAreWhatTheyAreInside(t *testing.T) {
	inside := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(inside, "etc/deep"), 0o755))
	must(t, os.WriteFile(filepath.Join(inside, "etc/conf"), []byte("one"), 0o640))
	must(t, os.Chown(filepath.Join(inside, "etc/conf"), 1000, 1001))
	large := bytes.Repeat([]byte("0123456789abcdef"), 300<<10)
	must(t, os.WriteFile(filepath.Join(inside, "etc/large"), large, 0o644))
	at, _ := mounted(t, Options{Source: "web", Path: "etc", Connect: served(t, inside)})

	got, err := os.ReadFile(filepath.Join(at, "conf"))
	if err != nil || string(got) != "one" {
		t.Errorf("conf holds %q, %v", got, err)
	}
	st, err := os.Stat(filepath.Join(at, "conf"))
	must(t, err)
	if s := st.Sys().(*syscall.Stat_t); s.Uid != 1000 || s.Gid != 1001 || st.Mode() != 0o640 || st.Size() != 3 {
		t.Errorf("conf is %v of %d:%d", st.Mode(), s.Uid, s.Gid)
	}
	if got, err := os.ReadFile(filepath.Join(at, "large")); err != nil || !bytes.Equal(got, large) {
		t.Errorf("large holds %d bytes, %v", len(got), err)
	}
	// What is written arrives, with the owner and mode of what was there.
	must(t, os.WriteFile(filepath.Join(at, "conf"), []byte("changed"), 0o600))
	f, err := os.OpenFile(filepath.Join(at, "conf"), os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString(" twice")
	must(t, errors.Join(err, f.Close()))
	got, err = os.ReadFile(filepath.Join(inside, "etc/conf"))
	st, _ = os.Stat(filepath.Join(inside, "etc/conf"))
	if s := st.Sys().(*syscall.Stat_t); err != nil || string(got) != "changed twice" || s.Uid != 1000 || st.Mode() != 0o640 {
		t.Errorf("inside, conf holds %q and is %v of %d, %v", got, st.Mode(), s.Uid, err)
	}
	must(t, os.WriteFile(filepath.Join(at, "new"), large, 0o600))
	if got, err := os.ReadFile(filepath.Join(inside, "etc/new")); err != nil || !bytes.Equal(got, large) {
		t.Errorf("inside, new holds %d bytes, %v", len(got), err)
	}
	must(t, os.Truncate(filepath.Join(at, "new"), 5))
	must(t, os.Chmod(filepath.Join(at, "new"), 0o444))
	must(t, os.Chown(filepath.Join(at, "new"), 7, -1))
	must(t, os.Chtimes(filepath.Join(at, "new"), time.Unix(9, 0), time.Unix(10, 0)))
	st, _ = os.Stat(filepath.Join(inside, "etc/new"))
	if s := st.Sys().(*syscall.Stat_t); st.Size() != 5 || st.Mode() != 0o444 || s.Uid != 7 || st.ModTime().Unix() != 10 {
		t.Errorf("inside, new is %v of %d with %d bytes, at %v", st.Mode(), s.Uid, st.Size(), st.ModTime())
	}
	must(t, os.Mkdir(filepath.Join(at, "dir"), 0o700))
	if err := os.Remove(filepath.Join(at, "dir")); err != nil {
		t.Errorf("rmdir: %v", err)
	}
	if err := unix.Rmdir(filepath.Join(at, "nosuch")); err != unix.ENOENT {
		t.Errorf("rmdir of nothing: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(at, "deep/file"), []byte("x"), 0o600))
	if err := unix.Rmdir(filepath.Join(at, "deep")); err == nil {
		t.Error("a directory that is not empty was removed")
	}
	if out, err := exec.Command("mv", filepath.Join(at, "new"), filepath.Join(at, "moved")).CombinedOutput(); err != nil {
		t.Errorf("mv: %v: %s", err, out)
	}
	must(t, os.Remove(filepath.Join(at, "large")))
	entries, err := os.ReadDir(at)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if want := []string{"conf", "deep", "moved"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("there are %q, %v, want %q", names, err, want)
	}
	if _, err := os.ReadFile(filepath.Join(at, "nosuch")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("reading nothing: %v", err)
	}
}

// TestNothingLeadsOutside plants what could lead a program of the host to its own files.
func TestNothingLeadsOutside(t *testing.T) {
	inside, secret := t.TempDir(), filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(secret, []byte("secret"), 0o644))
	must(t, os.Symlink(secret, filepath.Join(inside, "file")))
	must(t, os.Symlink(filepath.Dir(secret), filepath.Join(inside, "dir")))
	must(t, os.WriteFile(filepath.Join(inside, "suid"), []byte("#!/bin/sh\n"), 0o755))
	must(t, os.Chmod(filepath.Join(inside, "suid"), 0o4755|os.ModeSetuid))
	must(t, unix.Mkfifo(filepath.Join(inside, "pipe"), 0o644))
	must(t, unix.Mknod(filepath.Join(inside, "disk"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 5))))
	at, _ := mounted(t, Options{Source: "web", Connect: served(t, inside)})
	if target, err := os.Readlink(filepath.Join(at, "file")); err != nil || target != secret {
		t.Errorf("the link is shown as %q, %v", target, err)
	}
	for _, name := range []string{"file", "dir/secret", "dir/../file"} {
		if got, err := os.ReadFile(filepath.Join(at, name)); err == nil {
			t.Errorf("%s holds %q", name, got)
		}
	}
	if err := os.WriteFile(filepath.Join(at, "file"), []byte("x"), 0o600); err == nil {
		t.Error("a link could be written through")
	}
	for _, name := range []string{"pipe", "disk"} {
		st, err := os.Lstat(filepath.Join(at, name))
		if err != nil || !st.Mode().IsRegular() || st.Size() != 0 {
			t.Errorf("%s is %v, %v, want an empty file", name, st, err)
		}
		if _, err := os.Open(filepath.Join(at, name)); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("open %s: %v", name, err)
		}
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(at, &st))
	if want := int64(unix.ST_NOSUID | unix.ST_NODEV); st.Flags&want != want {
		t.Errorf("the mount has the flags %#x", st.Flags)
	}
	if got, _ := os.ReadFile(secret); string(got) != "secret" {
		t.Errorf("the secret is %q now", got)
	}
}

// hostile connects to a guest that answers as do does.
func hostile(do func(conn net.Conn, q files.Request)) func(context.Context) (*Conn, error) {
	return func(context.Context) (*Conn, error) {
		ours, theirs := net.Pipe()
		go func() {
			defer theirs.Close()
			for {
				var q files.Request
				if wire.Read(theirs, &q) != nil {
					return
				}
				do(theirs, q)
			}
		}()
		return &Conn{files.NewClient(ours), func() error { return nil }}, nil
	}
}

// TestAGuestThatHangsDoesNotHangTheHost has the guest answer at first, then not, and
// then again.
func TestAGuestThatHangsDoesNotHangTheHost(t *testing.T) {
	var hangs atomic.Bool
	over := make(chan struct{})
	defer close(over)
	guest := hostile(func(conn net.Conn, q files.Request) {
		if hangs.Load() {
			<-over
		}
		i := files.Info{Type: files.Directory, Mode: 0o755}
		if string(q.Path) != "/" {
			i = files.Info{Type: files.Regular, Mode: 0o644}
		}
		switch q.Op {
		case files.OpRead:
			w := wire.NewFrameWriter(conn)
			wire.Write(conn, files.Reply{Info: &i})
			w.Data(wire.FrameEnd, nil)
			wire.Write(conn, files.Reply{})
		default:
			wire.Write(conn, files.Reply{Info: &i})
		}
	})
	at, stop := mounted(t, Options{Source: "web", Answer: 300 * time.Millisecond, Connect: guest})
	held, err := os.Open(filepath.Join(at, "file"))
	must(t, err)
	defer held.Close()
	hangs.Store(true)
	began := time.Now()
	for name, do := range map[string]func() error{
		"list":  func() error { _, err := os.ReadDir(at); return err },
		"stat":  func() error { _, err := os.Stat(filepath.Join(at, "other")); return err },
		"write": func() error { return os.WriteFile(filepath.Join(at, "new"), nil, 0o600) },
		"open":  func() error { _, err := os.Open(filepath.Join(at, "third")); return err },
	} {
		if err := do(); !errors.Is(err, unix.EIO) {
			t.Errorf("%s of a guest that hangs: %v, want an input/output error", name, err)
		}
	}
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("four questions took %v", took)
	}
	hangs.Store(false)
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(at, "again")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a guest that answers again is not asked")
		}
	}
	// The mount can be taken away while it is in use and the guest hangs.
	hangs.Store(true)
	began = time.Now()
	if err := stop(); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("unmounting took %v: %v", time.Since(began), err)
	}
}

func TestHostileAnswers(t *testing.T) {
	dir := files.Info{Type: files.Directory, Mode: 0o755}
	reply := func(conn net.Conn, r files.Reply) { wire.Write(conn, r) }
	at, _ := mounted(t, Options{Source: "web", Answer: time.Second, Connect: hostile(func(conn net.Conn, q files.Request) {
		name := filepath.Base(string(q.Path))
		switch {
		case q.Op == files.OpList:
			reply(conn, files.Reply{List: []files.Info{{Name: []byte("../../etc"), Type: files.Directory}}})
		case q.Op == files.OpRead:
			reply(conn, files.Reply{Info: &files.Info{Type: files.Regular, Size: 1 << 62}})
			w := wire.NewFrameWriter(conn)
			w.Hole(1 << 61)
			w.Data(wire.FrameData, []byte("x"))
			w.Data(wire.FrameEnd, nil)
			reply(conn, files.Reply{})
		case name == "huge":
			reply(conn, files.Reply{Info: &files.Info{Type: files.Regular, Size: 1 << 62, Mode: 0o644}})
		case name == "negative":
			reply(conn, files.Reply{Info: &files.Info{Type: files.Regular, Size: -1}})
		case name == "mode":
			reply(conn, files.Reply{Info: &files.Info{Type: files.Regular, Mode: 0o177777}})
		case name == "none":
			reply(conn, files.Reply{})
		default:
			i := dir
			reply(conn, files.Reply{Info: &i})
		}
	})})
	if entries, err := os.ReadDir(at); err == nil {
		t.Errorf("a name with slashes is listed: %v", entries)
	}
	for _, name := range []string{"negative", "mode", "none"} {
		if _, err := os.Stat(filepath.Join(at, name)); err == nil {
			t.Errorf("%s: it is believed", name)
		}
	}
	began := time.Now()
	if _, err := os.Open(filepath.Join(at, "huge")); err == nil || time.Since(began) > 5*time.Second {
		t.Errorf("a file of 4 EiB: %v after %v", err, time.Since(began))
	}
}

func TestTargets(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	inside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(inside, "file"), nil, 0o644))
	for _, c := range []struct {
		target, path string
		class        fault.Class
	}{
		{"/nosuch/dir", "", fault.NotFound},
		{filepath.Join(inside, "file"), "", fault.Invalid},
		{t.TempDir(), "file", fault.Invalid},
		{t.TempDir(), "nosuch", fault.NotFound},
	} {
		err := Serve(t.Context(), Options{Target: c.target, Path: c.path, Connect: served(t, inside)}, func() { t.Error("ready") })
		if !fault.Is(err, c.class) {
			t.Errorf("%s of %q: %v, want %s", c.target, c.path, err, c.class)
		}
	}
	at, _ := mounted(t, Options{Source: "web", ReadOnly: true, Connect: served(t, inside)})
	if err := os.WriteFile(filepath.Join(at, "file"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("writing where nothing can change: %v", err)
	}
	// Who unmounts it ends it.
	must(t, unix.Unmount(at, 0))
}

// TestWhoUnmountsEndsIt is about a race: of many, none may go unnoticed.
func TestWhoUnmountsEndsIt(t *testing.T) {
	inside := t.TempDir()
	for range 30 {
		at, _ := mounted(t, Options{Source: "web", Connect: served(t, inside)})
		ended := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			ended <- untilUnmounted(ctx, at)
		}()
		if _, err := os.ReadDir(at); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(5*time.Millisecond, func() { unix.Unmount(at, 0) })
		select {
		case err := <-ended:
			must(t, err)
		case <-time.After(5 * time.Second):
			t.Fatal("nobody noticed that it was unmounted")
		}
	}
}
