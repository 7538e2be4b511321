package lvm_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/instancetest"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/lvm"
	"brig/storage/storagetest"
	"brig/storage/storagetest/lab"
)

// TestLab runs the tests of this package where there is a device mapper. Some of them
// are run by
//
//	go run ./cmd/internal/lab test -user brig/storage/lvm -test.run=NAME
//
// without -user for instances, and with BRIG_TEST_BIN naming a folder with the programs
// and the probe, and for the virtual machine BRIG_TEST_CACHE one with kernels, as the tests of cmd/brig leave it.
func TestLab(t *testing.T) {
	if lab.Inside() {
		t.Skip("is in the lab")
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: builds the lab")
	}
	if testing.Short() {
		t.Skip("boots a machine")
	}
	disks := []int64{4 << 30, 4 << 30}
	lab.Run(t, lab.Options{
		Kind:  lab.User,
		Tests: []lab.Binary{{Package: "brig/storage/lvm", Args: []string{"-test.parallel=2", "-test.skip=" + keeping}}},
		Disks: disks,
	})
	if os.Getenv(lab.Env) == lab.Full {
		bin := t.TempDir()
		if err := instancetest.Build(bin); err != nil {
			t.Fatal(err)
		}
		lab.Run(t, lab.Options{
			Tests: []lab.Binary{{Package: "brig/storage/lvm", Run: keeping}},
			Disks: disks,
			Trees: map[string]string{"bin": bin},
			Env:   []string{"BRIG_TEST_BIN=" + lab.Tree("bin")},
		})
	}
}

// keeping are the tests that keep instances. The quick kernel has no nftables of the family
// that their network needs.
const keeping = "^TestPets"

func inside(t testing.TB) {
	t.Helper()
	if !lab.Inside() {
		t.Skip("runs in the lab")
	}
}

// hostConfig makes LVM quicker where a processor is emulated: it locks less memory, and
// tells nobody what it does.
const hostConfig = `activation { reserved_memory=1024 reserved_stack=64 monitoring=0 }
global { notify_dbus=0 }
`

func TestMain(m *testing.M) {
	if lab.Inside() {
		if err := os.WriteFile("/etc/lvm/lvmlocal.conf", []byte(hostConfig), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	storagetest.Main(m, driver("lvm", storage.Tree), driver("lvm-disk", storage.Disk))
}

func TestTrees(t *testing.T) {
	inside(t)
	storagetest.Run(t, driver("lvm", storage.Tree))
}

func TestDisks(t *testing.T) {
	inside(t)
	storagetest.Run(t, driver("lvm-disk", storage.Disk))
}

// driver is this driver for one of its contents. A place is a volume group, a thin
// pool in it and the id of a pool, with slashes between.
func driver(name string, content storage.Content) storagetest.Driver {
	return storagetest.Driver{
		Name:    name,
		Content: content,
		Twin:    content == storage.Disk,
		Limits:  content == storage.Tree,
		Grows:   content == storage.Disk,
		Capabilities: storage.Capabilities{
			Contents:      []storage.Content{storage.Tree, storage.Disk},
			InstantClone:  true,
			LiveSnapshots: true,
		},
		Open: func(place string, step func(string)) (storage.Pool, error) {
			p, err := open(place, step)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
		Place: func(t *testing.T) string {
			// The suite looks at what a crash leaves of many pools. Each group of them has
			// a thin pool of its own, because LVM does one thing at a time in one.
			return makePlace(t, group(t, int(counter.Add(1))%2), "pool")
		},
		Small: smallPlace,
		Files: files,
	}
}

var counter atomic.Int64

// opened are the pools of a place, to be closed before it goes.
var opened = struct {
	sync.Mutex
	pools map[string][]*lvm.Pool
}{pools: map[string][]*lvm.Pool{}}

// options are those of a place.
func options(place string) lvm.Options {
	f := strings.Split(place, "/")
	return lvm.Options{VG: f[0], Thin: f[1], ID: f[2], Dir: filepath.Join("/run/lvmtest", f[2])}
}

func open(place string, step func(string)) (*lvm.Pool, error) {
	o := options(place)
	o.Step = step
	p, err := lvm.Open(context.Background(), o)
	if err == nil {
		opened.Lock()
		opened.pools[place] = append(opened.pools[place], p)
		opened.Unlock()
	}
	return p, err
}

// makePlace makes a pool, which goes with the test.
func makePlace(t testing.TB, vg, thin string) string {
	t.Helper()
	place := fmt.Sprintf("%s/%s/brig%08x", vg, thin, counter.Add(1))
	if err := lvm.Make(t.Context(), options(place)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePlace(t, place) })
	return place
}

func removePlace(t testing.TB, place string) {
	opened.Lock()
	for _, p := range opened.pools[place] {
		p.Close()
	}
	delete(opened.pools, place)
	opened.Unlock()
	o := options(place)
	record := storage.Record{Name: o.ID, Config: map[string]string{
		"volatile.lvm.vg": o.VG, "volatile.lvm.thinpool": o.Thin, "volatile.lvm.id": o.ID, "volatile.lvm.made": "nothing",
	}}
	if err := (lvm.Driver{Mounts: "/run/lvmtest"}).Destroy(context.Background(), record); err != nil {
		t.Error(err)
	}
}

var groups [2]sync.Once

// group gives a volume group of these tests, with the thin pool "pool" in it.
func group(t testing.TB, i int) string {
	t.Helper()
	name := fmt.Sprintf("group%d", i)
	groups[i].Do(func() {
		tool(t, "vgcreate", name, lab.Disk(i))
		thinPool(t, name, "pool", "2500M")
	})
	return name
}

func thinPool(t testing.TB, vg, name, size string) {
	t.Helper()
	tool(t, "lvcreate", "--type", "thin-pool", "-Zy", "-L", size, "-n", name, vg)
	tool(t, "lvchange", "--errorwhenfull", "y", vg+"/"+name)
}

// smallPlace makes a thin pool that is full after about 64 MiB, and gives this test a
// thread with a mount namespace of its own.
func smallPlace(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")); err != nil {
		t.Fatal(err)
	}
	vg, name := group(t, 0), fmt.Sprintf("small%d", counter.Add(1))
	thinPool(t, vg, name, "160M")
	t.Cleanup(func() { tool(t, "lvremove", "-y", vg+"/"+name) })
	return makePlace(t, vg, name)
}

// files names what there is in a pool: its files and logical volumes.
func files(place string) ([]string, error) {
	var names []string
	o := options(place)
	own := filepath.Join(o.Dir, "pool")
	err := filepath.WalkDir(own, func(path string, _ os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		names = append(names, strings.TrimPrefix(path, own))
		return err
	})
	if err != nil {
		return nil, err
	}
	out, err := run.Output(context.Background(), "lvs", "--noheadings", "-o", "lv_name", "--select", "lv_name=~^"+o.ID, o.VG)
	return append(names, strings.Fields(string(out))...), err
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run.Output(context.Background(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
