package zfs_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/storagetest"
	"brig/storage/storagetest/lab"
	"brig/storage/zfs"
)

func inside(t testing.TB) {
	t.Helper()
	if !lab.Inside() {
		t.Skip("runs in the lab")
	}
}

func TestMain(m *testing.M) {
	storagetest.Main(m, driver("zfs", storage.Tree), driver("zfs-disk", storage.Disk))
}

func TestTrees(t *testing.T) {
	inside(t)
	t.Parallel() // most of it waits for the disk
	storagetest.Run(t, driver("zfs", storage.Tree))
}

func TestDisks(t *testing.T) {
	inside(t)
	t.Parallel() // most of it waits for the disk
	storagetest.Run(t, driver("zfs-disk", storage.Disk))
}

// driver is this driver for one of its contents. A place is the dataset of a pool.
func driver(name string, content storage.Content) storagetest.Driver {
	return storagetest.Driver{
		Name:    name,
		Content: content,
		Limits:  true,
		Twin:    content == storage.Disk,
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
		Place: func(t *testing.T) string { return makePlace(t, zpool(t)+"/"+unique()) },
		Small: smallPlace,
		Files: files,
	}
}

// opened are the pools of a place, to be closed before it goes.
var opened = struct {
	sync.Mutex
	pools map[string][]*zfs.Pool
}{pools: map[string][]*zfs.Pool{}}

func open(place string, step func(string)) (*zfs.Pool, error) {
	p, err := zfs.Open(contextOf, zfs.Options{Dataset: place, Dir: dirOf(place), Step: step})
	if err == nil {
		opened.Lock()
		opened.pools[place] = append(opened.pools[place], p)
		opened.Unlock()
	}
	return p, err
}

// dirOf is where the datasets of a place are mounted.
func dirOf(place string) string {
	return filepath.Join("/run/zfstest", strings.ReplaceAll(place, "/", "."))
}

// makePlace makes a pool, which goes with the test.
func makePlace(t testing.TB, dataset string) string {
	t.Helper()
	if _, _, err := zfs.Make(t.Context(), dataset, dirOf(dataset)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { removePlace(t, dataset) })
	return dataset
}

func removePlace(t testing.TB, dataset string) {
	opened.Lock()
	for _, p := range opened.pools[dataset] {
		p.Close()
	}
	delete(opened.pools, dataset)
	opened.Unlock()
	record := storage.Record{Name: filepath.Base(dirOf(dataset)), Config: map[string]string{
		"volatile.zfs.dataset": dataset, "volatile.zfs.made": "dataset",
	}}
	if err := (zfs.Driver{Mounts: "/run/zfstest"}).Destroy(contextOf, record); err != nil {
		t.Error(err)
	}
}

// zpool gives the name of the zpool of these tests.
func zpool(t testing.TB) string {
	t.Helper()
	makeZpool.Do(func() {
		// The texts of the suite take no space when they are compressed.
		tool(t, "zpool", "create", "-f", "-O", "mountpoint=none", "-O", "compression=off", "tank", lab.Disk(0))
	})
	return "tank"
}

var makeZpool sync.Once

// smallPlace makes a zpool that is full after about 64 MiB, and gives this test a
// thread with a mount namespace of its own.
func smallPlace(t *testing.T) string {
	t.Helper()
	runtime.LockOSThread()
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS|unix.CLONE_FS), unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "small")
	// ZFS keeps half of so small a pool for itself.
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 200<<20)); err != nil {
		t.Fatal(err)
	}
	name := unique()
	tool(t, "zpool", "create", "-O", "mountpoint=none", "-O", "compression=off", name, file)
	t.Cleanup(func() { tool(t, "zpool", "destroy", name) })
	return makePlace(t, name+"/brig")
}

// files names what there is in a pool: its files, datasets and snapshots.
func files(place string) ([]string, error) {
	var names []string
	own := filepath.Join(dirOf(place), "pool")
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
	out, err := run.Output(contextOf, "zfs", "list", "-H", "-r", "-t", "all", "-o", "name", place)
	return append(names, strings.Fields(string(out))...), err
}

func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := run.Output(contextOf, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
