package storagetest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/mount"
)

func testLive(t *testing.T, d Driver) {
	if d.Content == storage.Disk {
		d.run(t, "Snapshot", func(t *testing.T) { testLiveDisk(t, d) })
		d.run(t, "SwitchFails", func(t *testing.T) { testSwitchFails(t, d) })
		return
	}
	d.run(t, "Snapshot", func(t *testing.T) { testLiveTree(t, d) })
	d.run(t, "Faithful", func(t *testing.T) { testFaithful(t, d) })
}

// writers counts how often the writers of a tree were stopped and let go.
type writers struct {
	frozen, thawed int
	then           func() error // called while they stand
}

func (w *writers) live() *storage.Live {
	return &storage.Live{Freeze: func(context.Context) (func() error, error) {
		w.frozen++
		thaw := func() error { w.thawed++; return nil }
		if w.then != nil {
			if err := w.then(); err != nil {
				return nil, err
			}
		}
		return thaw, nil
	}}
}

// testLiveTree takes snapshots and clones of a tree that stays mounted and is
// written to between them.
func testLiveTree(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base", "b": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	before := web.Root()
	w := &writers{}
	var copied storage.Volume
	target := t.TempDir()
	Namespace(t, func() error {
		write := func(name, text string) error {
			return os.WriteFile(filepath.Join(target, name), []byte(text), 0o644)
		}
		return first(
			func() error {
				return mount.Tree(target, mount.Spec{Lower: before.Lower, Upper: before.Upper, Work: before.Work}, mount.IDMap{})
			},
			func() error { return web.Snapshot(ctx, "zero", storage.SnapshotOptions{Live: w.live()}) },
			func() error { return write("a", "one") },
			func() error { return os.Remove(filepath.Join(target, "b")) },
			func() error { return web.Snapshot(ctx, "one", storage.SnapshotOptions{Live: w.live()}) },
			func() error { return write("a", "two") },
			func() (err error) {
				copied, err = p.Clone(ctx, storage.Source{Key: web.Key()}, instance("copy"), storage.CloneOptions{Live: w.live()})
				return err
			},
			func() error { return p.Sweep(ctx) },
			// The mounted tree is still the volume's.
			func() error { return write("a", "three") },
			func() error { return unix.Unmount(target, 0) },
		)
	})
	if w.frozen != 3 || w.thawed != 3 {
		t.Errorf("writers were stopped %d times and let go %d times, want 3 and 3", w.frozen, w.thawed)
	}
	p.holds(t, copied, map[string]string{"a": "two", "b": ""})
	p.holds(t, web, map[string]string{"a": "three", "b": ""})
	restore(t, web, "one")
	p.holds(t, web, map[string]string{"a": "one", "b": ""})
	restore(t, web, "zero")
	p.holds(t, web, map[string]string{"a": "base", "b": "base"})

	// Whatever fails, the writers go on and nothing is left.
	p.write(t, web, map[string]string{"a": "four"})
	p.sweep(t)
	files := p.files(t)
	broken := errors.New("they do not stop")
	err := web.Snapshot(ctx, "bad", storage.SnapshotOptions{Live: &storage.Live{
		Freeze: func(context.Context) (func() error, error) { return nil, broken },
	}})
	if !errors.Is(err, broken) {
		t.Errorf("Snapshot = %v, want the error of Freeze", err)
	}
	during, cancel := context.WithCancel(ctx)
	w = &writers{then: func() error { cancel(); return nil }}
	wants(t, "Snapshot cancelled while writers stand", web.Snapshot(during, "bad", storage.SnapshotOptions{Live: w.live()}), fault.Cancelled)
	if w.thawed != 1 {
		t.Errorf("writers were let go %d times after a cancellation, want 1", w.thawed)
	}
	p.sweep(t)
	if diff := p.changed(t, files); diff != "" {
		t.Errorf("failed snapshots left %s", diff)
	}
	p.clear(t)
}

// testFaithful takes a live snapshot of a tree with everything that a tree can
// have, and compares.
func testFaithful(t *testing.T, d Driver) {
	p := newPool(t, d)
	base := p.create(t, image("base"), map[string]string{"lower/file": "x", "renamed/file": "x", "replaced/file": "x", "linked": "x"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	source, target := t.TempDir(), t.TempDir()
	spec := func(v storage.Volume) mount.Spec {
		r := v.Root()
		return mount.Spec{Lower: r.Lower, Upper: r.Upper, Work: r.Work}
	}
	Namespace(t, func() error {
		if err := first(
			func() error { return mount.Tree(source, spec(web), mount.IDMap{}) },
			func() error { return everything(source) },
			func() error {
				return web.Snapshot(t.Context(), "s", storage.SnapshotOptions{Live: (&writers{}).live()})
			},
		); err != nil {
			return err
		}
		copied, err := p.Clone(t.Context(), storage.Source{Key: web.Key(), Snapshot: "s"}, instance("copy"), storage.CloneOptions{})
		if err != nil {
			return err
		}
		if err := mount.Tree(target, spec(copied), mount.IDMap{}); err != nil {
			return err
		}
		want, err := describe(source)
		if err != nil {
			return err
		}
		got, err := describe(target)
		for _, path := range slices.Sorted(maps.Keys(want)) {
			if got[path] != want[path] {
				t.Errorf("%s is\n%s\nwant\n%s", path, got[path], want[path])
			}
			delete(got, path)
		}
		for path := range got {
			t.Errorf("%s is there and should not", path)
		}
		return err
	})
	p.clear(t)
}

// everything makes files of all kinds in a mounted tree.
func everything(dir string) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	capability := string([]byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0})
	old := []unix.Timespec{{Sec: 1, Nsec: 999999999}, {Sec: -86400 * 365 * 10, Nsec: 123456789}}
	deep := strings.Repeat("d/", 300)
	return first(
		func() error { return os.WriteFile(in("plain"), []byte("plain"), 0o640) },
		func() error { return os.Lchown(in("plain"), 1000, 2000) },
		func() error { return unix.Setxattr(in("plain"), "user.note", []byte("hello"), 0) },
		func() error { return unix.Setxattr(in("plain"), "trusted.note", []byte("hidden"), 0) },
		func() error { return unix.UtimesNanoAt(unix.AT_FDCWD, in("plain"), old, 0) },
		func() error { return os.WriteFile(in("setuid"), []byte("x"), 0o755) },
		func() error { return os.Lchown(in("setuid"), 5, 6) },
		func() error { return unix.Setxattr(in("setuid"), "security.capability", []byte(capability), 0) },
		func() error { return unix.Chmod(in("setuid"), 0o6755) },
		func() error { return os.Link(in("setuid"), in("hard")) },
		func() error { return os.Mkdir(in("new"), 0o1777) },
		func() error { return unix.Chmod(in("new"), 0o1777) },
		func() error { return os.Link(in("setuid"), in("new/hard")) },
		func() error { return os.Symlink("/etc/../nowhere\n", in("new/link")) },
		func() error { return os.Lchown(in("new/link"), 7, 8) },
		func() error { return unix.Mkfifo(in("new/fifo"), 0o600) },
		func() error { return unix.Mknod(in("new/null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))) },
		func() error { return unix.Mknod(in("new/disk"), unix.S_IFBLK|0o660, int(unix.Mkdev(8, 0))) },
		func() error { return unix.Mknod(in("new/socket"), unix.S_IFSOCK|0o600, 0) },
		func() error { return os.WriteFile(in("new/\xff\xfe name\n"), nil, 0o000) },
		func() error { return os.WriteFile(in("lower/file"), []byte("copied up"), 0o644) },
		func() error { return os.Rename(in("renamed"), in("moved")) },
		func() error { return os.RemoveAll(in("replaced")) },
		func() error { return os.Mkdir(in("replaced"), 0o700) }, // opaque: shows nothing of what is below
		func() error { return os.Remove(in("linked")) },
		func() error { return sparse(in("sparse")) },
		func() error { return os.MkdirAll(in(deep), 0o755) },
		func() error { return os.WriteFile(in(deep+"file"), []byte("deep"), 0o644) },
		func() error { return unix.Chmod(dir, 0o751) },
	)
}

func sparse(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	_, err1 := f.WriteAt([]byte("one"), 10<<20)
	_, err2 := f.WriteAt([]byte("two"), 500<<20)
	return errors.Join(err1, err2, f.Truncate(1<<30), f.Close())
}

// describe tells all about each file of a tree.
func describe(dir string) (map[string]string, error) {
	files := map[string]string{}
	links := map[uint64]string{}
	return files, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		name := "." + strings.TrimPrefix(path, dir)
		text := fmt.Sprintf("mode %o owner %d:%d device %d modified %d.%09d", st.Mode, st.Uid, st.Gid, st.Rdev, st.Mtim.Sec, st.Mtim.Nsec)
		if !e.IsDir() {
			text += fmt.Sprintf(" size %d links %d", st.Size, st.Nlink)
			if links[st.Ino] == "" {
				links[st.Ino] = name
			}
			if st.Nlink > 1 {
				text += " same as " + links[st.Ino]
			}
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			to, err := os.Readlink(path)
			files[name] = text + " to " + to
			return err
		case unix.S_IFREG:
			if st.Size > 1<<20 {
				text += fmt.Sprintf(" few blocks: %v", st.Blocks < 1<<10)
				break
			}
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" content %x", sha256.Sum256(b))
		}
		buf := make([]byte, 4096)
		n, err := unix.Llistxattr(path, buf)
		if err != nil {
			return err
		}
		attrs := strings.Split(strings.TrimRight(string(buf[:n]), "\x00"), "\x00")
		slices.Sort(attrs)
		for _, attr := range slices.DeleteFunc(attrs, func(a string) bool { return a == "" }) {
			n, err := unix.Lgetxattr(path, attr, buf)
			if err != nil {
				return err
			}
			text += fmt.Sprintf(" %s=%x", attr, buf[:n])
		}
		files[name] = text
		return nil
	})
}
