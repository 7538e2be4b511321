package verify

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

func TestUnpackedTreeIsTheReplay(t *testing.T) {
	layers := everything(t)
	r := Compare(replay(t, layers...), scan(t, unpack(t, layers...)), On{})
	if r.Count != 0 || len(r.Allowed) != 0 {
		t.Errorf("%d differences: %+v, allowed %v", r.Count, r.Differences, r.Allowed)
	}
}

// tampering is every kind of damage that has to be found.
var tampering = map[string]struct {
	do   func(at func(string) string) error
	path string
	kind Kind
	what string
}{
	"a flipped byte": {func(at func(string) string) error {
		return quietly(at("etc/passwd"), func() error { return os.WriteFile(at("etc/passwd"), []byte("toor2"), 0) })
	}, "/etc/passwd", Changed, "content"},
	"a longer file": {func(at func(string) string) error {
		return quietly(at("empty"), func() error { return os.WriteFile(at("empty"), []byte("x"), 0) })
	}, "/empty", Changed, "size"},
	"a dropped capability": {func(at func(string) string) error {
		return unix.Removexattr(at("bin/ping"), "security.capability")
	}, "/bin/ping", Changed, "xattr security.capability"},
	"a changed attribute": {func(at func(string) string) error {
		return unix.Setxattr(at("bin/ping"), "user.mine", []byte("n"), 0)
	}, "/bin/ping", Changed, "xattr user.mine"},
	"an added attribute": {func(at func(string) string) error {
		return quietly(at(""), func() error { return unix.Setxattr(at("kept"), "trusted.overlay.opaque", []byte("y"), 0) })
	}, "/kept", Changed, "xattr trusted.overlay.opaque"},
	"a dropped access list": {func(at func(string) string) error {
		return unix.Removexattr(at("etc"), "system.posix_acl_default")
	}, "/etc", Changed, "xattr system.posix_acl_default"},
	"a split hard link": {func(at func(string) string) error {
		return quietly(at("bin"), func() error {
			return errors.Join(os.Remove(at("bin/umount")), os.WriteFile(at("bin/umount"), []byte("su"), 0o755), os.Chmod(at("bin/umount"), 0o755|os.ModeSetuid), os.Chtimes(at("bin/umount"), time.Unix(1e9, 5e8), time.Unix(1e9, 5e8)))
		})
	}, "/bin/umount", Changed, "links"},
	"joined files": {func(at func(string) string) error {
		return quietly(at("kept"), func() error {
			return errors.Join(os.Remove(at("kept/below")), os.Link(at("usr/lib/libc"), at("kept/below")), os.WriteFile(at("kept/below"), []byte("1"), 0))
		})
	}, "/usr/lib/libc", Changed, "links"},
	"a changed time": {func(at func(string) string) error {
		return os.Chtimes(at("late"), time.Time{}, time.Unix(2e9+1, 123456789))
	}, "/late", Changed, "mtime"},
	"a changed time of a link": {func(at func(string) string) error {
		ts := []unix.Timespec{{Sec: 1}, {Sec: 1}}
		return unix.UtimesNanoAt(unix.AT_FDCWD, at("lib"), ts, unix.AT_SYMLINK_NOFOLLOW)
	}, "/lib", Changed, "mtime"},
	"an added file": {func(at func(string) string) error {
		return quietly(at("etc"), func() error { return os.WriteFile(at("etc/evil"), nil, 0o644) })
	}, "/etc/evil", Extra, ""},
	"a removed file": {func(at func(string) string) error {
		return quietly(at("usr/lib"), func() error { return os.Remove(at("usr/lib/libm")) })
	}, "/usr/lib/libm", Missing, ""},
	"another owner": {func(at func(string) string) error {
		return os.Chown(at("etc/passwd"), 0, 1)
	}, "/etc/passwd", Changed, "owner"},
	"another mode": {func(at func(string) string) error {
		return os.Chmod(at("late"), 0o600)
	}, "/late", Changed, "mode"},
	"another target": {func(at func(string) string) error {
		return quietly(at(""), func() error {
			return errors.Join(os.Remove(at("lib")), os.Symlink("usr/lib2", at("lib")))
		})
	}, "/lib", Changed, "target"},
	"another type": {func(at func(string) string) error {
		return quietly(at(""), func() error { return errors.Join(os.Remove(at("pipe")), os.WriteFile(at("pipe"), nil, 0o600)) })
	}, "/pipe", Changed, "type"},
	"another device": {func(at func(string) string) error {
		return quietly(at("dev"), func() error {
			return errors.Join(os.Remove(at("dev/null")), unix.Mknod(at("dev/null"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))))
		})
	}, "/dev/null", Changed, "device"},
	"a filled hole": {func(at func(string) string) error {
		return quietly(at("sparse"), func() error { return fillHole(at("sparse")) })
	}, "/sparse", Changed, "holes"},
}

// quietly keeps the times of what it changes in, as one who hides would.
func quietly(path string, change func() error) error {
	var st unix.Stat_t
	err := errors.Join(unix.Lstat(path, &st), change())
	return errors.Join(err, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW))
}

func fillHole(path string) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteAt(make([]byte, block), block)
	return errors.Join(err, f.Sync())
}

// told tells whether a result has the one expected difference.
func told(r Result, path string, kind Kind, what string) error {
	for _, d := range r.Differences {
		if d.Path != path || d.Kind != kind {
			continue
		}
		if what == "" && len(d.What) == 0 {
			return nil
		}
		for _, f := range d.What {
			if f.Name == what && f.Want != f.Got {
				return nil
			}
		}
	}
	return fmt.Errorf("differences %+v, want %s %s (%s)", r.Differences, kind, path, what)
}

func TestEveryDamageIsFoundInATree(t *testing.T) {
	layers := everything(t)
	want := replay(t, layers...)
	for name, c := range tampering {
		t.Run(name, func(t *testing.T) {
			tree := unpack(t, layers...)
			must(t, c.do(func(n string) string { return filepath.Join(tree, n) }))
			got := scan(t, tree)
			r := Compare(want, got, On{})
			if err := told(r, c.path, c.kind, c.what); err != nil {
				t.Error(err)
			}
			if c.kind != Changed || c.what != "links" {
				if r.Count != 1 {
					t.Errorf("%d differences, want one: %+v", r.Count, r.Differences)
				}
			}
			if c.what != "holes" && got.Digest() == want.Digest() {
				t.Error("the listing is the same")
			}
			// The other way round it is a difference, too.
			if back := Compare(got, want, On{}); back.Count == 0 && c.what != "holes" {
				t.Error("the other way round there is no difference")
			}
		})
	}
}

func TestListingHoldsTheTree(t *testing.T) {
	m := replay(t, everything(t)...)
	read, err := ReadListing(bytes.NewReader(m.Listing()), Limits{})
	must(t, err)
	if r := Compare(m, read, On{}); r.Count != 0 || read.Len() != m.Len() {
		t.Errorf("%d of %d names, differences %+v", read.Len(), m.Len(), r.Differences)
	}
	if read.Digest() != m.Digest() || !strings.HasPrefix(m.Digest(), "sha256:") {
		t.Errorf("digest %s, want %s", read.Digest(), m.Digest())
	}
	text := string(m.Listing())
	for name, bad := range map[string]string{
		"nothing":    "",
		"version":    strings.Replace(text, "brig tree 1", "brig tree 2", 1),
		"a cut line": text[:len(text)-20],
		"no root":    strings.Replace(text, `"/" `, `"/r" `, 1),
		"a type":     strings.Replace(text, " d ", " x ", 1),
		"a name":     strings.Replace(text, `"/bin"`, `"/.."`, 1),
		"a number":   strings.Replace(text, " 0755 ", " 9755 ", 1),
		"twice":      text + text[strings.LastIndex(text[:len(text)-1], "\n")+1:],
	} {
		if _, err := ReadListing(strings.NewReader(bad), Limits{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if _, err := ReadListing(strings.NewReader(text), Limits{Entries: 5}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("too many lines: %v", err)
	}
}

func TestScanIsBounded(t *testing.T) {
	tree := unpack(t, everything(t)...)
	f, err := os.Open(tree)
	must(t, err)
	defer f.Close()
	if _, err := Scan(t.Context(), f, Limits{Entries: 5}); !fault.Is(err, fault.Exhausted) {
		t.Errorf("Scan of too many files: %v, want exhausted", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Scan(ctx, f, Limits{}); !fault.Is(err, fault.Cancelled) {
		t.Errorf("Scan when cancelled: %v", err)
	}
	// A file that claims to be huge costs nothing.
	must(t, os.Truncate(filepath.Join(tree, "empty"), 8<<40))
	start := time.Now()
	if m := scan(t, tree); m.root.kids["empty"].size != 8<<40 {
		t.Errorf("the huge file has %d bytes", m.root.kids["empty"].size)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("a huge hole took %s", took)
	}
}

func TestModelIsSmall(t *testing.T) {
	const files = 200_000
	p := NewReplay(Limits{})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for part := range 20 {
		entries := make([]entry, files/20)
		for i := range entries {
			entries[i] = fileOf(fmt.Sprintf("usr/share/doc/package-%d/file-%d", i/20, i+part*len(entries)), "x")
		}
		must(t, p.Layer(t.Context(), bytes.NewReader(layer(t, entries...))))
	}
	m, _ := p.Model()
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / files
	t.Logf("%d bytes for each of %d names", each, m.Len())
	if each > 500 {
		t.Errorf("each name takes %d bytes, want less than 500", each)
	}
	runtime.KeepAlive(p)
}
