package overlay_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/overlay"
)

// setFlags sets the inode flags of a file.
func setFlags(path string, flags int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags)
}

// TestSweepRemovesWhateverAGuestMade makes a tree that is deeper than any path or
// stack of descriptors, with files that root cannot remove just like that.
func TestSweepRemovesWhateverAGuestMade(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes files immutable")
	}
	ctx := t.Context()
	place := filepath.Join(t.TempDir(), "pool")
	p, err := overlay.Open(place, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := storage.Key{Class: storage.Instances, Name: "web"}
	v, err := p.Create(ctx, key, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
	if err != nil {
		t.Fatal(err)
	}
	upper := v.Root().Upper
	const depth = 3000
	fd, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	for range depth {
		if err != nil {
			t.Fatal(err)
		}
		err = unix.Mkdirat(fd, "d", 0o000)
		if err == nil {
			var next int
			next, err = unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
			unix.Close(fd)
			fd = next
		}
	}
	unix.Close(fd)
	const immutable, appendOnly = 0x10, 0x20
	err = errors.Join(
		os.Mkdir(filepath.Join(upper, "fixed"), 0o700),
		os.WriteFile(filepath.Join(upper, "fixed", "file"), nil, 0o600),
		os.WriteFile(filepath.Join(upper, "log"), nil, 0o600),
		unix.Mkfifo(filepath.Join(upper, "fifo"), 0o600),
		os.Symlink("/etc", filepath.Join(upper, "etc")),
		setFlags(filepath.Join(upper, "fixed", "file"), immutable),
		setFlags(filepath.Join(upper, "fixed"), immutable),
		setFlags(filepath.Join(upper, "log"), appendOnly),
	)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.Usage(ctx); err != nil {
		t.Errorf("Usage = %v", err)
	}
	if err := errors.Join(p.Delete(ctx, key), p.Sweep(ctx)); err != nil {
		t.Fatalf("Delete and Sweep = %v", err)
	}
	for _, dir := range []string{"layers", "trash", "staging", "instances"} {
		if names, err := os.ReadDir(filepath.Join(place, dir)); err != nil || len(names) > 0 {
			t.Errorf("%s holds %v, %v", dir, names, err)
		}
	}
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Error(err)
	}
}

func TestOpenTakesOnlyItsOwn(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "precious")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := overlay.Open(dir, overlay.Options{}); !fault.Is(err, fault.WrongState) {
		t.Errorf("Open of a directory with something else = %v, want wrong-state", err)
	}
	if _, err := overlay.Open(file, overlay.Options{}); err == nil {
		t.Error("Open of a file = nil, want an error")
	}
	for text, class := range map[string]fault.Class{
		`{"version":1,"driver":"zfs"}`:      fault.Unsupported,
		`{"version":99,"driver":"overlay"}`: fault.Unsupported,
		`{"vers`:                            fault.Unavailable,
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "pool.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := overlay.Open(dir, overlay.Options{}); !fault.Is(err, class) {
			t.Errorf("Open with pool.json %q = %v, want %s", text, err, class)
		}
	}
}

// TestDamagedRecords makes sure that a record cannot name anything but layers, and
// that nothing is collected while nobody knows what a damaged one named.
func TestDamagedRecords(t *testing.T) {
	ctx := t.Context()
	place := filepath.Join(t.TempDir(), "pool")
	p, err := overlay.Open(place, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key := storage.Key{Class: storage.Instances, Name: "web"}
	for _, k := range []storage.Key{key, {Class: storage.Instances, Name: "gone"}} {
		_, err := p.Create(ctx, k, storage.Disk, func(dir *os.Root) error {
			return dir.WriteFile(storage.DiskRaw, make([]byte, 512), 0o600)
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Delete(ctx, storage.Key{Class: storage.Instances, Name: "gone"}); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadDir(filepath.Join(place, "layers"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{``, `{`, `[]`, `{"layers":[]}`, `{"layers":["../../../etc"]}`, `{"layers":["0123456789abcdef"],"active":"x"}`} {
		if err := os.WriteFile(filepath.Join(place, "instances/web/volume.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := p.Open(ctx, key); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Open with the record %q = %v, want unavailable", text, err)
		}
		if err := p.Sweep(ctx); !fault.Is(err, fault.Unavailable) {
			t.Errorf("Sweep with the record %q = %v, want unavailable", text, err)
		}
		if after, err := os.ReadDir(filepath.Join(place, "layers")); err != nil || len(after) != len(before) {
			t.Errorf("with the record %q there are %d layers, %v, before there were %d", text, len(after), err, len(before))
		}
	}
	if err := errors.Join(p.Delete(ctx, key), p.Sweep(ctx)); err != nil {
		t.Errorf("Delete of a damaged volume, and Sweep = %v", err)
	}
}

// TestOneLostLayerTakesNoOther clones a volume whose layer has lost what it holds. That
// fails, and other volumes keep theirs.
func TestOneLostLayerTakesNoOther(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: makes trees")
	}
	ctx := t.Context()
	place := filepath.Join(t.TempDir(), "pool")
	p, err := overlay.Open(place, overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	make := func(name string) (storage.Key, string) {
		t.Helper()
		key := storage.Key{Class: storage.Instances, Name: name}
		v, err := p.Create(ctx, key, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
		if err != nil {
			t.Fatal(err)
		}
		upper := v.Root().Upper
		if err := errors.Join(os.WriteFile(filepath.Join(upper, "file"), []byte(name), 0o600), v.Snapshot(ctx, "s1", storage.SnapshotOptions{})); err != nil {
			t.Fatal(err)
		}
		return key, upper
	}
	_, kept := make("web")
	lost, upper := make("db")
	if err := os.RemoveAll(upper); err != nil {
		t.Fatal(err)
	}
	late := storage.Key{Class: storage.Instances, Name: "late"}
	if _, err := p.Clone(ctx, storage.Source{Key: lost, Snapshot: "s1"}, late, storage.CloneOptions{}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("Clone of what is lost = %v, want unavailable", err)
	}
	if data, err := os.ReadFile(filepath.Join(kept, "file")); err != nil || string(data) != "web" {
		t.Errorf("another volume has %q, %v", data, err)
	}
	if err := p.Sweep(ctx); err != nil {
		t.Error(err)
	}
}
