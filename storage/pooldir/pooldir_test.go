package pooldir_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

var web = storage.Key{Class: storage.Instances, Name: "web"}

// newDir makes the directory of a pool.
func newDir(t *testing.T) *pooldir.Dir {
	t.Helper()
	d, err := pooldir.OpenFolder(filepath.Join(t.TempDir(), "pool"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	names := []string{pooldir.Staging, pooldir.Trash}
	for _, class := range pooldir.Classes() {
		names = append(names, string(class))
	}
	for _, name := range names {
		if err := d.Mkdir(name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

func write(t *testing.T, d *pooldir.Dir, name, text string) {
	t.Helper()
	if err := d.MkdirAll(path.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestAMissingFolderIsMadeOrUnavailable(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "a", "b")
	if _, err := pooldir.OpenFolder(folder, false); !fault.Is(err, fault.Unavailable) {
		t.Errorf("OpenFolder of what is not there = %v, want unavailable", err)
	}
	d, err := pooldir.OpenFolder(folder, true)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if st, err := os.Stat(folder); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder is %v, %v, want one that is the owner's alone", st, err)
	}
}

func TestReadTakesRegularFilesInThePoolOnly(t *testing.T) {
	d := newDir(t)
	write(t, d, "images/file", "text")
	outside := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"images/link": "file", "images/out": outside, "images/up": ".."} {
		if err := d.Symlink(target, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(d.Name(), "images", "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Read("images/file", 4); string(b) != "text" || err != nil {
		t.Errorf("Read = %q, %v", b, err)
	}
	for _, bad := range []string{"images/link", "images/out", "images/up/images/file", "../" + filepath.Base(d.Name()) + "/images/file", "images/fifo", "images"} {
		if b, err := d.Read(bad, 100); err == nil {
			t.Errorf("Read(%q) = %q, want an error", bad, b)
		}
	}
	if _, err := d.Read("images/file", 3); err == nil {
		t.Error("Read of a file that is too large = nil")
	}
	if _, err := d.Read("images/none", 3); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Read of a missing file = %v", err)
	}
}

func TestReadRecordTellsDamageFromAbsence(t *testing.T) {
	d := newDir(t)
	var got struct{ A int }
	write(t, d, "good", `{"A": 7}`)
	if err := d.ReadRecord("good", &got); err != nil || got.A != 7 {
		t.Errorf("ReadRecord = %v, %v", got, err)
	}
	for name, text := range map[string]string{"empty": "", "half": `{"A": `, "large": `{"A": 7}` + strings.Repeat(" ", 9<<20)} {
		write(t, d, name, text)
		if err := d.ReadRecord(name, &got); !fault.Is(err, fault.Unavailable) {
			t.Errorf("ReadRecord of the %s file = %v, want unavailable", name, err)
		}
	}
	if err := d.ReadRecord("none", &got); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("ReadRecord of a missing file = %v", err)
	}
}

func TestNamesOfVolumes(t *testing.T) {
	d := newDir(t)
	for _, name := range []string{"b", "a", ".gone-1"} {
		write(t, d, path.Join(string(web.Class), name, "meta", "x"), "")
	}
	if got, err := d.List(t.Context(), web.Class); !slices.Equal(got, []string{"a", "b"}) || err != nil {
		t.Errorf("List = %q, %v", got, err)
	}
	if _, err := d.List(t.Context(), "../x"); !fault.Is(err, fault.Invalid) {
		t.Errorf("List of no class = %v", err)
	}
	for name, want := range map[string]fault.Class{"a": fault.AlreadyExists, "c": "", "../c": fault.Invalid} {
		if err := d.CheckNew(t.Context(), storage.Key{Class: web.Class, Name: name}); fault.Of(err) != want {
			t.Errorf("CheckNew(%q) = %v, want %q", name, err, want)
		}
	}
	if b, err := d.ReadMeta(storage.Key{Class: web.Class, Name: "a"}, "x", 10); len(b) > 0 || err != nil {
		t.Errorf("ReadMeta = %q, %v", b, err)
	}
	if _, err := d.ReadMeta(storage.Key{Class: web.Class, Name: "a"}, "../meta/x", 10); !fault.Is(err, fault.Invalid) {
		t.Errorf("ReadMeta of a path = %v, want invalid", err)
	}
	if _, err := d.OpenMeta(web); !fault.Is(err, fault.NotFound) {
		t.Errorf("OpenMeta of a missing volume = %v, want not-found", err)
	}
	if err := d.RemoveAll(string(web.Class)); err != nil {
		t.Fatal(err)
	}
	for what, err := range map[string]error{"Missing": d.Missing(web), "CheckNew": d.CheckNew(t.Context(), web)} {
		if !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s without the class's directory = %v, want unavailable", what, err)
		}
	}
}

// TestHoldFollowsTheName has the directory replaced while somebody waits for it.
func TestHoldFollowsTheName(t *testing.T) {
	d := newDir(t)
	write(t, d, web.String()+"/old", "")
	first, err := d.HoldVolume(t.Context(), web, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := d.HoldVolume(ctx, web, unix.LOCK_EX); !fault.Is(err, fault.Timeout) {
		t.Errorf("HoldVolume of a held one = %v, want a timeout", err)
	}
	second := make(chan error, 1)
	go func() {
		h, err := d.HoldVolume(t.Context(), web, unix.LOCK_EX)
		if err == nil {
			_, err = h.Stat("new")
			h.Close()
		}
		second <- err
	}()
	// At once, so that there is a directory whenever the other one looks.
	write(t, d, pooldir.Staging+"/web/new", "")
	fd := int(d.File.Fd())
	if err := unix.Renameat2(fd, pooldir.Staging+"/web", fd, web.String(), unix.RENAME_EXCHANGE); err != nil {
		t.Fatal(err)
	}
	first.Close()
	if err := <-second; err != nil {
		t.Errorf("whoever waited got another directory than the one with the name: %v", err)
	}
	if err := d.RemoveAll(web.String()); err != nil {
		t.Fatal(err)
	}
	if _, err := d.HoldVolume(t.Context(), web, unix.LOCK_SH); !fault.Is(err, fault.NotFound) {
		t.Errorf("HoldVolume of a missing one = %v, want not-found", err)
	}
}

func TestOnlyDeadChangesAreDead(t *testing.T) {
	d := newDir(t)
	live, err := d.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer live.Close()
	if d.Pending() || len(d.Dead()) > 0 {
		t.Error("a change that goes on counts as dead")
	}
	died, err := d.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	meta, err := died.MakeVolume()
	if err != nil || meta.Close() != nil {
		t.Fatal(err)
	}
	died.Close()
	if !d.Pending() {
		t.Error("nothing is pending after a change died")
	}
	dead := d.Dead()
	if len(dead) != 1 || dead[0].ID() != died.ID() || dead[0].Path(pooldir.NewVolume) != path.Join(pooldir.Staging, died.ID(), pooldir.NewVolume) {
		t.Fatalf("Dead = %v, want the one that died", dead)
	}
	id, err := d.ThrowAway(dead[0].Path())
	dead[0].Close()
	if err != nil || !slices.Equal(d.Trashed(), []string{id}) || !d.Pending() {
		t.Errorf("ThrowAway = %q, %v; the trash has %q", id, err, d.Trashed())
	}
	if _, err := d.ThrowAway("staging/none"); err != nil {
		t.Errorf("ThrowAway of what is gone = %v", err)
	}
}

func TestIDs(t *testing.T) {
	if a, b := pooldir.NewID(), pooldir.NewID(); a == b || !pooldir.ValidID(a) {
		t.Errorf("NewID = %q and %q", a, b)
	}
	for _, bad := range []string{"", "..", "0123456789abcde", "0123456789abcdef0", "0123456789abcdeF", "0123456789abcde/", "../0123456789abc", "0123456789abcdef\n"} {
		if pooldir.ValidID(bad) {
			t.Errorf("ValidID(%q)", bad)
		}
	}
}

func TestMoveReplacesAFile(t *testing.T) {
	d := newDir(t)
	c, err := d.Stage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	write(t, d, web.String()+"/record", "old")
	h, err := d.HoldVolume(t.Context(), web, unix.LOCK_EX)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := errors.Join(pooldir.Write(c, "record", []byte("new")), pooldir.Move(c, "record", h, "record"), pooldir.Sync(h, ".")); err != nil {
		t.Fatal(err)
	}
	if b, err := d.Read(web.String()+"/record", 10); string(b) != "new" || err != nil {
		t.Errorf("the record is %q, %v", b, err)
	}
	if err := pooldir.Move(c, "record", h, "record"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Move of what is gone = %v", err)
	}
}

func TestCheckFilled(t *testing.T) {
	cases := []struct {
		what    string
		content storage.Content
		fill    func(dir *os.Root) error
		want    string // the name of the data; empty: it is refused
	}{
		{"a tree", storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) }, storage.RootName},
		{"a disk", storage.Disk, func(dir *os.Root) error { return dir.WriteFile(storage.DiskRaw, []byte("x"), 0o600) }, storage.DiskRaw},
		{"nothing", storage.Tree, func(dir *os.Root) error { return nil }, ""},
		{"a disk for a tree", storage.Tree, func(dir *os.Root) error { return dir.WriteFile(storage.DiskRaw, []byte("x"), 0o600) }, ""},
		{"an empty disk", storage.Disk, func(dir *os.Root) error { return dir.WriteFile(storage.DiskRaw, nil, 0o600) }, ""},
		{"no qcow2", storage.Disk, func(dir *os.Root) error { return dir.WriteFile(storage.DiskQcow2, []byte("x"), 0o600) }, ""},
		{"a link to a tree", storage.Tree, func(dir *os.Root) error { return dir.Symlink("/", storage.RootName) }, ""},
		{"a link to a disk", storage.Disk, func(dir *os.Root) error { return dir.Symlink("/etc/passwd", storage.DiskRaw) }, ""},
		{"both", storage.Tree, func(dir *os.Root) error {
			return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile(storage.DiskRaw, []byte("x"), 0o600))
		}, ""},
	}
	for _, c := range cases {
		t.Run(c.what, func(t *testing.T) {
			dir, err := os.OpenRoot(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := c.fill(dir); err != nil {
				t.Fatal(err)
			}
			name, err := pooldir.CheckFilled(dir, c.content)
			if name != c.want && err == nil || (err == nil) != (c.want != "") || err != nil && !fault.Is(err, fault.Invalid) {
				t.Errorf("CheckFilled = %q, %v, want %q", name, err, c.want)
			}
			if c.want != storage.DiskRaw {
				return
			}
			if st, err := dir.Stat(name); err != nil || st.Size() != 512 {
				t.Errorf("the disk has %d bytes, want a whole sector", st.Size())
			}
		})
	}
}

func TestCopyMetaCopiesMetadataFilesOnly(t *testing.T) {
	d := newDir(t)
	for _, name := range []string{"from/instance.json", "from/disk.raw", "from/rootfs/x", "to/x"} {
		write(t, d, name, name)
	}
	if err := errors.Join(d.Chmod("from/instance.json", 0o640), d.Remove("to/x"), d.Symlink("/etc/passwd", "from/link")); err != nil {
		t.Fatal(err)
	}
	from, err1 := d.OpenRoot("from")
	to, err2 := d.OpenRoot("to")
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	defer to.Close()
	if err := pooldir.CopyMeta(from, to); err != nil {
		t.Fatal(err)
	}
	if names, err := pooldir.Names(to, "."); !slices.Equal(names, []string{"instance.json"}) || err != nil {
		t.Errorf("CopyMeta made %q, %v", names, err)
	}
	b, err := to.ReadFile("instance.json")
	if st, _ := to.Stat("instance.json"); string(b) != "from/instance.json" || err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("the copy is %q, %v, %v", b, err, st)
	}
	for i := range 64 {
		write(t, d, fmt.Sprintf("from/%d", i), "")
	}
	if err := pooldir.CopyMeta(from, to); !fault.Is(err, fault.Invalid) {
		t.Errorf("CopyMeta of 65 files = %v, want invalid", err)
	}
	if err := from.Remove("0"); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(from.Name(), "1"), 128<<20+1); err != nil {
		t.Fatal(err)
	}
	if err := to.Remove("instance.json"); err != nil {
		t.Fatal(err)
	}
	if err := pooldir.CopyMeta(from, to); !fault.Is(err, fault.Invalid) {
		t.Errorf("CopyMeta of a file that is too large = %v, want invalid", err)
	}
}
