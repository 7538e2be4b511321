package zfs_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/storagetest/lab"
	"brig/storage/zfs"
)

var (
	web = storage.Key{Class: storage.Instances, Name: "web"}
	db  = storage.Key{Class: storage.Instances, Name: "db"}
)

// site is a driver with folders of its own, and a pool in a zpool that it made in a
// file there.
type site struct {
	zfs.Driver
	record storage.Record
	pool   *zfs.Pool
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{Driver: zfs.Driver{Mounts: filepath.Join("/run/zfstest", unique()), Files: t.TempDir()}}
	s.record = s.create(t, map[string]string{"size": "300MiB"})
	s.pool = s.open(t)
	t.Cleanup(func() {
		s.pool.Close()
		if err := s.Destroy(contextOf, s.record); err != nil {
			t.Error(err)
		}
	})
	return s
}

// create makes a pool and gives its record.
func (s *site) create(t *testing.T, config map[string]string) storage.Record {
	t.Helper()
	r := storage.Record{Name: unique(), Driver: "zfs", Config: config}
	config, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.Config = config
	return r
}

func (s *site) open(t *testing.T) *zfs.Pool {
	t.Helper()
	p, err := s.Open(t.Context(), s.record)
	if err != nil {
		t.Fatal(err)
	}
	return p.(*zfs.Pool)
}

func (s *site) zpool() string   { return s.record.Config["zfs.pool_name"] }
func (s *site) dataset() string { return s.record.Config["volatile.zfs.dataset"] }

// dir is where the pool's datasets are mounted.
func (s *site) dir() string { return filepath.Join(s.Mounts, s.record.Name) }

// reboot takes away what does not outlive one: what is open and mounted.
func (s *site) reboot(t *testing.T) {
	t.Helper()
	s.pool.Close()
	volumes, err := filepath.Glob(filepath.Join(s.dir(), "volumes", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, point := range append(volumes, filepath.Join(s.dir(), "pool")) {
		// Not all of them are mounted.
		if err := unix.Unmount(point, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			t.Fatalf("%s: %v", point, err)
		}
	}
}

// is checks the class of an error, and that it has all of words in it.
func is(t *testing.T, what string, err error, class fault.Class, words ...string) {
	t.Helper()
	if !fault.Is(err, class) {
		t.Errorf("%s = %v (%s), want %s", what, err, fault.Of(err), class)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%s = %v, want %q in it", what, err, word)
		}
	}
}

// makeVolume makes a volume that holds a file.
func makeVolume(t *testing.T, p storage.Pool, key storage.Key, text string) storage.Volume {
	t.Helper()
	v, err := p.Create(t.Context(), key, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("instance.json", []byte(text), 0o600),
			dir.WriteFile(storage.RootName+"/file", []byte(text), 0o644))
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// says checks what the file of a volume says.
func says(t *testing.T, v storage.Volume, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(v.Root().Upper, "file"))
	if err != nil || string(got) != want {
		t.Errorf("%s says %q, %v, want %q", v.Key(), got, err, want)
	}
}

// datasetOf gives the dataset of a volume.
func datasetOf(t *testing.T, pool string, key storage.Key) string {
	t.Helper()
	for line := range strings.Lines(tool(t, "zfs", "list", "-H", "-r", "-t", "filesystem", "-o", "name,brig:volume", pool)) {
		if name, volume, _ := strings.Cut(strings.TrimSpace(line), "\t"); volume == key.String() {
			return name
		}
	}
	t.Fatalf("no dataset says that it is %s", key)
	return ""
}

func property(t *testing.T, name, dataset string) string {
	t.Helper()
	return tool(t, "zfs", "get", "-Hp", "-o", "value", name, dataset)
}

func TestPoolInAFile(t *testing.T) {
	inside(t)
	s := newSite(t)
	file := s.record.Config["source"]
	if filepath.Dir(file) != s.Files {
		t.Errorf("the file is %q, want one in %q", file, s.Files)
	}
	makeVolume(t, s.pool, web, "here")
	for name, want := range map[string]string{"brig:volume": "instances/web", "brig:content": "filesystem", "brig:version": "1", "mountpoint": "legacy", "canmount": "noauto", "atime": "off", "acltype": "posix"} {
		if got := property(t, name, datasetOf(t, s.dataset(), web)); got != want {
			t.Errorf("%s of the volume's dataset = %q, want %q", name, got, want)
		}
	}

	// Not imported by the host after a reboot: brig does it.
	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	s.pool = s.open(t)
	v, err := s.pool.Open(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	says(t, v, "here")

	tool(t, "zfs", "create", s.zpool()+"/mine")
	is(t, "Destroy of a zpool with something else in it", s.Destroy(t.Context(), s.record), fault.WrongState, s.zpool()+"/mine")
	tool(t, "zfs", "destroy", s.zpool()+"/mine")

	s.reboot(t)
	tool(t, "zpool", "export", s.zpool())
	if err := os.Rename(file, file+".away"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Open(t.Context(), s.record)
	is(t, "Open without the file", err, fault.Unavailable, "gone", file)
	if err := os.Rename(file+".away", file); err != nil {
		t.Fatal(err)
	}
	s.pool = s.open(t)
}

func TestPoolOnADevice(t *testing.T) {
	inside(t)
	s := &site{Driver: zfs.Driver{Mounts: filepath.Join("/run/zfstest", unique()), Files: t.TempDir()}}
	device := lab.Disk(1)
	tool(t, "mkfs.ext4", "-q", "-F", device)
	bad := storage.Record{Name: unique(), Config: map[string]string{"source": device}}
	_, err := s.Create(t.Context(), bad)
	is(t, "Create on a device that is in use", err, fault.WrongState, device)
	tool(t, "wipefs", "-qa", device)
	s.record = s.create(t, map[string]string{"source": device})
	s.pool = s.open(t)
	makeVolume(t, s.pool, web, "here")
	if err := s.pool.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Destroy(t.Context(), s.record); err != nil {
		t.Error(err)
	}
	if _, err := run.Output(t.Context(), "zpool", "list", s.zpool()); err == nil {
		t.Error("the zpool is there after Destroy")
	}
}

func TestPoolInADatasetThatIsThere(t *testing.T) {
	inside(t)
	s := &site{Driver: zfs.Driver{Mounts: filepath.Join("/run/zfstest", unique()), Files: t.TempDir()}}
	mine := zpool(t) + "/" + unique()
	tool(t, "zfs", "create", "-o", "mountpoint=legacy", mine)
	t.Cleanup(func() { tool(t, "zfs", "destroy", "-r", mine) })
	tool(t, "zfs", "create", mine+"/child")
	config := func() map[string]string { return map[string]string{"source": mine} }
	_, err := s.Create(t.Context(), storage.Record{Name: unique(), Config: config()})
	is(t, "Create in a dataset with others in it", err, fault.WrongState, mine+"/child")
	tool(t, "zfs", "destroy", mine+"/child")
	tool(t, "zfs", "create", "-V", "1M", mine+"/zvol")
	_, err = s.Create(t.Context(), storage.Record{Name: unique(), Config: map[string]string{"source": mine + "/zvol"}})
	is(t, "Create in a zvol", err, fault.WrongState, "file system")
	tool(t, "zfs", "destroy", mine+"/zvol")

	s.record = s.create(t, config())
	s.pool = s.open(t)
	makeVolume(t, s.pool, web, "here")
	// Its brig is gone, another one takes it over as it is.
	s.reboot(t)
	again := s.create(t, config())
	p, err := s.Open(t.Context(), again)
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Open(t.Context(), web)
	if err != nil {
		t.Fatal(err)
	}
	says(t, v, "here")
	if err := p.(*zfs.Pool).Close(); err != nil {
		t.Error(err)
	}
	if err := s.Destroy(t.Context(), again); err != nil {
		t.Fatal(err)
	}
	if got := tool(t, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", mine); got != mine {
		t.Errorf("after Destroy there is %q, want %q alone", got, mine)
	}
	for _, name := range []string{"brig:pool", "refreservation"} {
		if got := property(t, name, mine); got != "-" && got != "0" {
			t.Errorf("after Destroy its %s = %q, want none", name, got)
		}
	}
}

func TestWithoutTheCommands(t *testing.T) {
	t.Setenv("PATH", "")
	d := zfs.Driver{Mounts: t.TempDir(), Files: t.TempDir()}
	_, err := d.Create(t.Context(), storage.Record{Name: "tank", Config: map[string]string{"size": "1GiB"}})
	is(t, "Create without zfs", err, fault.Unsupported, "install zfsutils-linux")
	if files, err := os.ReadDir(d.Files); err != nil || len(files) > 0 {
		t.Errorf("it left the files %v, %v", files, err)
	}
}

func TestWithoutTheModule(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if b, err := os.ReadFile("/proc/filesystems"); err != nil || strings.Contains(string(b), "\tzfs\n") {
		t.Skip("this kernel has ZFS")
	}
	d := zfs.Driver{Mounts: t.TempDir(), Files: t.TempDir()}
	_, err := d.Open(t.Context(), storage.Record{Name: "tank", Config: map[string]string{"volatile.zfs.dataset": "tank/brig"}})
	is(t, "Open without ZFS in the kernel", err, fault.Unsupported, "zfs-dkms", "modprobe zfs")
}

func TestBadPools(t *testing.T) {
	inside(t)
	d := zfs.Driver{Mounts: t.TempDir(), Files: t.TempDir()}
	for _, test := range []struct {
		config map[string]string
		class  fault.Class
		word   string
	}{
		{nil, fault.Invalid, "size=20GiB"},
		{map[string]string{"size": "1GB0"}, fault.Invalid, "1GB0"},
		{map[string]string{"size": "10MiB"}, fault.Invalid, "256MiB"},
		{map[string]string{"colour": "red"}, fault.Invalid, "colour"},
		{map[string]string{"source": "nowhere/brig"}, fault.NotFound, "nowhere"},
		{map[string]string{"source": "a b"}, fault.Invalid, "a b"},
		{map[string]string{"source": "-r"}, fault.Invalid, "-r"},
		{map[string]string{"source": zpool(t), "size": "1GiB"}, fault.Invalid, "size"},
		{map[string]string{"source": "/etc/passwd"}, fault.WrongState, "/etc/passwd"},
		{map[string]string{"size": "300MiB", "zfs.pool_name": zpool(t)}, fault.AlreadyExists, "source=" + zpool(t)},
		{map[string]string{"size": "300MiB", "zfs.pool_name": "mirror"}, fault.Invalid, "zfs.pool_name"},
	} {
		_, err := d.Create(t.Context(), storage.Record{Name: "bad", Config: test.config})
		is(t, strings.Join(append([]string{"Create"}, flat(test.config)...), " "), err, test.class, test.word)
	}
	if files, err := os.ReadDir(d.Files); err != nil || len(files) > 0 {
		t.Errorf("bad pools left the files %v, %v", files, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := d.Create(ctx, storage.Record{Name: "late", Config: map[string]string{"size": "300MiB"}}); err == nil {
		t.Error("a cancelled Create = nil")
	}
}

func flat(config map[string]string) []string {
	var all []string
	for key, value := range config {
		all = append(all, key+"="+value)
	}
	return all
}
