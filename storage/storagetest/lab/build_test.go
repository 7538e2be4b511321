package lab

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"brig/instance/fault"
)

func TestSourcesFollowTheHost(t *testing.T) {
	got, err := sourcesOf([]byte("http://a.example/debian bookworm main\nhttp://a.example/debian bookworm non-free\n" +
		"http://a.example/debian bookworm-updates main\nhttp://b.example/sec bookworm-security main\n" +
		"https://other.example/apt stable main\nhttp://a.example/debian bookworm main\n"))
	want := "deb http://a.example/debian bookworm main contrib\ndeb http://a.example/debian bookworm-backports main contrib\n" +
		"deb http://a.example/debian bookworm-updates main contrib\ndeb http://b.example/sec bookworm-security main contrib\n"
	if err != nil || string(got) != want {
		t.Errorf("sourcesOf = %q, %v, want %q", got, err, want)
	}
	wantUnstable := "deb [check-valid-until=no] http://a.example/debian sid main\n"
	if got := unstable(string(got)); got != wantUnstable {
		t.Errorf("unstable = %q, want %q", got, wantUnstable)
	}
	if _, err := sourcesOf([]byte("http://a.example/ubuntu noble main\n")); !fault.Is(err, fault.Unsupported) {
		t.Errorf("sourcesOf a host with another system = %v, want unsupported", err)
	}
}

func TestCandidates(t *testing.T) {
	for policy, want := range map[string]string{
		"a:\n  Installed: 1\n  Candidate: 1.2-3\n  Version table:\nb:\n  Candidate: (none)\n": "1.2-3 (none) ",
		"a:\n  Installed: (none)\n  Candidate: (none)\n":                                      "",
		"": "",
	} {
		if got := candidates([]byte(policy)); got != want {
			t.Errorf("candidates(%q) = %q, want %q", policy, got, want)
		}
	}
}

// made is a thing whose building is counted.
func made(recipe, versions string, count *atomic.Int32) thing {
	return thing{kind: "guest", recipe: []string{recipe}, versions: versions, build: func(_ context.Context, dir string) error {
		count.Add(1)
		return os.Mkdir(filepath.Join(dir, "out"), 0o755)
	}}
}

func TestThingsAreBuiltOnce(t *testing.T) {
	c := cache{filepath.Join(t.TempDir(), "cache")}
	var count atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if dir, err := c.get(t.Context(), made("r", "1", &count)); err != nil || !exists(dir) {
				t.Errorf("get = %q, %v", dir, err)
			}
		})
	}
	wg.Wait()
	if count.Load() != 1 {
		t.Errorf("the same thing was built %d times", count.Load())
	}
	for _, other := range []struct {
		recipe, versions string
		builds           int32
	}{
		{"r", "", 1},  // any version will do
		{"r", "2", 2}, // newer packages
		{"s", "2", 3}, // another recipe
		{"r", "1", 3}, // is there still
	} {
		if _, err := c.get(t.Context(), made(other.recipe, other.versions, &count)); err != nil || count.Load() != other.builds {
			t.Errorf("get of %+v = %v after %d builds", other, err, count.Load())
		}
	}
}

func TestNothingHalfMadeStays(t *testing.T) {
	c := cache{t.TempDir()}
	var count atomic.Int32
	broken := made("r", "", &count)
	cause := errors.New("no network")
	broken.build = func(_ context.Context, dir string) error {
		return errors.Join(cause, os.Mkdir(filepath.Join(dir, "out"), 0o755))
	}
	if _, err := c.get(t.Context(), broken); !errors.Is(err, cause) {
		t.Errorf("get = %v, want the cause", err)
	}
	// Of one that was killed, and one that nobody uses.
	killed, old := filepath.Join(c.dir, staging+"guest-123"), filepath.Join(c.dir, "guest-0-any")
	for _, dir := range []string{filepath.Join(killed, "tree/etc"), old} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	long := time.Now().Add(-2 * unusedFor)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	if _, err := c.get(t.Context(), made("r", "", &count)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(c.dir)
	if err != nil || len(entries) != 2 { // the thing and the lock
		t.Errorf("the cache holds %v, %v", entries, err)
	}
}

func TestAWaitingBuildObeysItsContext(t *testing.T) {
	c := cache{t.TempDir()}
	building, release := make(chan struct{}), make(chan struct{})
	slow := thing{kind: "guest", build: func(_ context.Context, dir string) error {
		close(building)
		<-release
		return os.Mkdir(filepath.Join(dir, "out"), 0o755)
	}}
	done := make(chan error, 1)
	go func() {
		_, err := c.get(t.Context(), slow)
		done <- err
	}()
	<-building
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var count atomic.Int32
	if _, err := c.get(ctx, made("", "", &count)); !errors.Is(err, context.Canceled) {
		t.Errorf("get = %v, want cancelled", err)
	}
	close(release)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestModulesLoadAfterWhatTheyNeed(t *testing.T) {
	dir := t.TempDir()
	deps := "kernel/a/virtio.ko: kernel/a/virtio_ring.ko\nkernel/a/virtio_ring.ko:\n" +
		"kernel/b/virtio_blk.ko: kernel/a/virtio.ko kernel/a/virtio_ring.ko\nkernel/c/sound.ko:\n"
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(deps), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := loadOrder(dir)
	want := []string{dir + "/kernel/a/virtio_ring.ko", dir + "/kernel/a/virtio.ko", dir + "/kernel/b/virtio_blk.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("loadOrder = %q, %v, want %q", got, err, want)
	}
}

func TestDisksOfAKernelThatIsAProgramAreInOrder(t *testing.T) {
	m := machine{
		kind: User, image: Image{Disk: "/cache/root.raw", ModDisk: "/cache/modules.raw"}, dir: "/boot",
		disks: []int64{1, 2}, trees: []string{"bin"},
	}
	got := strings.Join(m.kernelArguments(), " ")
	for _, want := range []string{
		"mem=2048M initrd=/boot/initramfs ", " con0=null,fd:1 ", " ssl0=null,fd:3 ",
		" ubd0c=/boot/root.cow,/cache/root.raw ubd1rc=/cache/modules.raw ubd2=/boot/share.raw ubd3=/boot/tree-bin ubd4=/boot/disk0 ubd5=/boot/disk1 " +
			"lab.disks=root,modules,share,tree-bin,disk0,disk1 ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the kernel gets %q, want %q in it", got, want)
		}
	}
}

func TestFoldersOfKilledBootsGo(t *testing.T) {
	in := t.TempDir()
	killed, fresh := filepath.Join(in, bootPrefix+"1"), filepath.Join(in, bootPrefix+"2")
	if err := errors.Join(os.MkdirAll(filepath.Join(killed, "share"), 0o755), os.Mkdir(fresh, 0o755)); err != nil {
		t.Fatal(err)
	}
	dir, remove, err := bootDir(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "disk0"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, removeOther, err := bootDir(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	if exists(killed) || !exists(fresh) || !exists(filepath.Join(dir, "disk0")) {
		t.Error("want what is held, and what is empty, to stay, and nothing else")
	}
	remove()
	removeOther()
	if exists(dir) {
		t.Error("the folder is there after its boot")
	}
}
