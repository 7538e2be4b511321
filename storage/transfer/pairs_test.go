package transfer_test

import (
	"bytes"
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
	"brig/instance/run"
	"brig/storage"
	"brig/storage/btrfs"
	"brig/storage/transfer"
)

// pools makes pools of every kind that this host can have: two on one btrfs, and
// one on another.
func pools(t *testing.T) map[string]storage.Pool {
	t.Helper()
	all := map[string]storage.Pool{"overlay": newPool(t), "overlay2": newPool(t)}
	one, two := newBtrfs(t, 512<<20), newBtrfs(t, 512<<20)
	for name, dir := range map[string]string{"btrfs": one + "/a", "btrfs-beside": one + "/b", "btrfs-far": two + "/a"} {
		p, err := btrfs.Open(dir, btrfs.Options{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		all[name] = p
	}
	return all
}

func btrfsPool(t *testing.T) storage.Pool {
	t.Helper()
	p, err := btrfs.Open(newBtrfs(t, 512<<20)+"/pool", btrfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// newBtrfs mounts a new btrfs.
func newBtrfs(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts a btrfs")
	}
	file, place := filepath.Join(t.TempDir(), "file"), t.TempDir()
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, size)); err != nil {
		t.Fatal(err)
	}
	for _, cmd := range [][]string{{"mkfs.btrfs", "-q", file}, {"mount", "-o", "loop,nobarrier", file, place}} {
		if _, err := run.Output(t.Context(), cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(place, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return place
}

// diskSource makes a disk with the snapshots one and two, and something after them.
func diskSource(t *testing.T, p storage.Pool) storage.Volume {
	t.Helper()
	ctx := t.Context()
	v, err := p.Create(ctx, web, storage.Disk, func(dir *os.Root) error {
		return errors.Join(dir.WriteFile("instance.json", []byte("first"), 0o600), sh(t, dir.Name(), `
			dd if=/dev/urandom of=disk.raw bs=64k count=40 status=none; truncate -s 32M disk.raw`))
	})
	if err != nil {
		t.Fatal(err)
	}
	snap(t, v, "one", year)
	io(t, v, "write -P 1 8M 128k")
	snap(t, v, "two", year.Add(time.Hour))
	io(t, v, "write -P 2 16M 128k", "write -z 64k 64k")
	return v
}

func snap(t *testing.T, v storage.Volume, name string, at time.Time) {
	t.Helper()
	if err := v.Snapshot(t.Context(), name, storage.SnapshotOptions{CreatedAt: at, Description: "it is " + name}); err != nil {
		t.Fatal(err)
	}
}

// io writes to the disk of a volume as its machine would.
func io(t *testing.T, v storage.Volume, commands ...string) {
	t.Helper()
	root := v.Root()
	args := []string{"-f", root.DiskFormat}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	if _, err := run.Output(t.Context(), "qemu-io", append(args, root.DiskPath)...); err != nil {
		t.Fatal(err)
	}
}

// same compares all data of every state of two volumes.
func same(t *testing.T, a, b storage.Volume, states ...string) {
	t.Helper()
	for _, name := range states {
		x, y := a.Root(), b.Root()
		if name != "" {
			var errA, errB error
			x, errA = a.SnapshotRoot(t.Context(), name)
			y, errB = b.SnapshotRoot(t.Context(), name)
			if err := errors.Join(errA, errB); err != nil {
				t.Fatalf("state %q: %v", name, err)
			}
		}
		if a.Content() == storage.Tree {
			if digest(t, x) != digest(t, y) {
				t.Errorf("state %q differs in the copy", name)
			}
			continue
		}
		if out, err := run.Output(t.Context(), "qemu-img", "compare", "-f", x.DiskFormat, "-F", y.DiskFormat, x.DiskPath, y.DiskPath); err != nil {
			t.Errorf("state %q differs in the copy: %s %v", name, out, err)
		}
	}
}

// isMark tells marks from what a person has taken.
func isMark(s storage.Snapshot) bool { return strings.HasPrefix(s.Name, "mark") }

// listed gives the snapshots that are no marks.
func listed(t *testing.T, v storage.Volume) []storage.Snapshot {
	t.Helper()
	list, err := v.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(list, isMark)
}

func marks(t *testing.T, v storage.Volume) (names []string) {
	t.Helper()
	list, err := v.Snapshots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range list {
		if isMark(s) {
			names = append(names, s.Name)
		}
	}
	return names
}

// refresh brings a copy up to date, all of it.
func refresh(t *testing.T, ctx context.Context, r transfer.RefreshRequest, mark string) (transfer.Plan, error) {
	t.Helper()
	var err error
	if r.Plan, err = transfer.NewPlan(ctx, r.Source, r.Copy, mark, transfer.PlanOptions{Hidden: isMark}); err != nil {
		return r.Plan, err
	}
	r.Dir, r.Work = t.TempDir(), storage.Key{Class: storage.Instances, Name: "work"}
	if err := transfer.Refresh(ctx, r); err != nil {
		return r.Plan, err
	}
	return r.Plan, errors.Join(r.Copy.Restore(ctx, mark), r.Plan.Settle(ctx, r.Copy), r.Plan.Settle(ctx, r.Copy),
		r.Plan.Forget(ctx, r.Source, r.Copy), r.Plan.Forget(ctx, r.Source, r.Copy))
}

// TestEveryPair copies from every pool to every other, and keeps the copy up to
// date.
func TestEveryPair(t *testing.T) {
	names := []string{"btrfs", "btrfs-beside", "btrfs-far", "overlay", "overlay2"}
	for _, content := range []storage.Content{storage.Tree, storage.Disk} {
		for _, from := range names {
			for _, to := range names {
				t.Run(fmt.Sprintf("%s/%s/%s", content, from, to), func(t *testing.T) {
					all := pools(t)
					kinds := strings.TrimRight(from, "2")
					alike := strings.HasPrefix(to, kinds[:5])
					pair(t, all[from], counted(all[to], alike), content, from == to)
				})
			}
		}
	}
}

// counting is a pool that lets no volume be made but the first, so that nothing is
// copied by its files.
type counting struct {
	storage.Pool
	made int
}

func counted(p storage.Pool, limited bool) storage.Pool {
	if limited {
		return &counting{Pool: p}
	}
	return p
}

func (c *counting) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (storage.Volume, error) {
	if c.made++; c.made > 1 {
		return nil, fmt.Errorf("the quick way was not taken")
	}
	return c.Pool.Create(ctx, key, content, fill)
}

func (c *counting) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (storage.Volume, error) {
	if c.made++; c.made > 1 {
		return nil, fmt.Errorf("the quick way was not taken")
	}
	return c.Pool.Clone(ctx, from, key, o)
}

func pair(t *testing.T, from, to storage.Pool, content storage.Content, inPlace bool) {
	ctx := t.Context()
	var v storage.Volume
	if content == storage.Tree {
		v = source(t, from)
	} else {
		v = diskSource(t, from)
	}
	r := transfer.Request{
		Source: v, Pool: to, Same: inPlace, Key: far, Dir: t.TempDir(), Skip: isMark,
		Mark: transfer.Mark{Name: "mark1", Description: "x"}, Keep: !inPlace,
	}
	if err := transfer.Copy(ctx, r); err != nil {
		t.Fatalf("Copy = %v", err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	same(t, v, made, "one", "two", "")
	if got, want := listed(t, made), listed(t, v); !slices.Equal(got, want) {
		t.Errorf("snapshots %+v, want %+v", got, want)
	}
	change3(t, v)
	plan, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: to}, "mark2")
	if err != nil {
		t.Fatalf("Refresh = %v", err)
	}
	if len(plan.New) != 1 || plan.New[0].Snapshot.Name != "three" || !slices.Equal(plan.Gone, []string{"one"}) || plan.New[0].Base == "" {
		t.Errorf("plan %+v", plan)
	}
	refreshed(t, v, made)

	// Whatever became of the copy, and nothing new at the source.
	spoil(t, made)
	if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: to, Verify: true}, "mark3"); err != nil {
		t.Fatalf("Refresh = %v", err)
	}
	refreshed(t, v, made)

	// Without what both have in common, all is compared.
	for _, name := range append(marks(t, v), "two", "three") {
		if err := v.DeleteSnapshot(ctx, name); err != nil {
			t.Fatal(err)
		}
	}
	spoil(t, made)
	if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: to}, "mark4"); err != nil {
		t.Fatalf("Refresh = %v", err)
	}
	same(t, v, made, "")
	if got := listed(t, made); len(got) != 0 {
		t.Errorf("snapshots %+v, want none", got)
	}
	if names, err := to.List(ctx, storage.Instances); err != nil || len(names) > 2 || slices.Contains(names, "work") {
		t.Errorf("left in the pool: %v, %v", names, err)
	}
	if err := errors.Join(from.Sweep(ctx), to.Sweep(ctx)); err != nil {
		t.Fatal(err)
	}
	same(t, v, made, "")
}

// change3 changes a source in ways that are hard to see, takes a snapshot, changes it
// again, and drops one.
func change3(t *testing.T, v storage.Volume) {
	t.Helper()
	if v.Content() == storage.Tree {
		change(t, v.Root(), func(dir string) error {
			return sh(t, dir, `
				touch -r gone/y ../stamp; echo w >gone/y; touch -r ../stamp gone/y
				touch -r kept/large ../stamp; printf changed | dd of=kept/large bs=1 seek=2000000 conv=notrunc status=none; touch -r ../stamp kept/large
				rm ../stamp; mv moved elsewhere; mkdir -p deep/er; ln new deep/er/link; rm kept/sparse; truncate -s 1M kept/sparse`)
		})
	} else {
		io(t, v, "write -P 3 24M 64k", "write -P 4 0 4k", "write -z 16M 64k")
	}
	setMeta(t, v, "fourth")
	snap(t, v, "three", year.Add(2*time.Hour))
	if v.Content() == storage.Tree {
		change(t, v.Root(), func(dir string) error {
			return sh(t, dir, `rm deep/er/link; mkdir deep/er/link; chmod 700 gone; truncate -s 3000000 kept/large; chown 5:6 gone/y`)
		})
	} else {
		io(t, v, "write -P 5 1M 64k", "write -z 0 4k")
	}
	if err := v.DeleteSnapshot(t.Context(), "one"); err != nil {
		t.Fatal(err)
	}
}

// spoil changes a copy behind everybody's back.
func spoil(t *testing.T, v storage.Volume) {
	t.Helper()
	if v.Content() == storage.Tree {
		change(t, v.Root(), func(dir string) error { return sh(t, dir, `echo spoilt >gone/y; rm -r kept; echo >more`) })
		return
	}
	io(t, v, "write -P 9 8M 1M", "write -P 9 30M 64k")
}

func refreshed(t *testing.T, v, made storage.Volume) {
	t.Helper()
	same(t, v, made, "two", "three", "")
	if got, want := listed(t, made), listed(t, v); !slices.Equal(got, want) {
		t.Errorf("snapshots %+v, want %+v", got, want)
	}
	if a, b := marks(t, v), marks(t, made); !slices.Equal(a, b) || len(a) > 1 {
		t.Errorf("marks %q at the source and %q in the copy, want the same, one at most", a, b)
	}
	dir, err := made.SnapshotDir(t.Context(), "three")
	if text := meta(t, dir, err); text != "fourth" {
		t.Errorf("metadata of snapshot three: %q", text)
	}
}

func TestFullCopyLeavesNothing(t *testing.T) {
	all := pools(t)
	small, err := btrfs.Open(newBtrfs(t, 112<<20)+"/p", btrfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { small.Close() })
	for _, name := range []string{"overlay", "btrfs"} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			v := source(t, all[name])
			change(t, v.Root(), func(dir string) error {
				return sh(t, dir, `dd if=/dev/urandom of=big bs=1M count=200 status=none`)
			})
			err := transfer.Copy(ctx, transfer.Request{Source: v, Pool: small, Key: far, Dir: t.TempDir(), Mark: transfer.Mark{Name: "mark"}, Keep: true})
			if !fault.Is(err, fault.Exhausted) {
				t.Errorf("Copy = %v, want exhausted", err)
			}
			if list, err := small.List(ctx, storage.Instances); err != nil || len(list) != 0 {
				t.Errorf("left in the pool: %v, %v", list, err)
			}
			if got := marks(t, v); len(got) != 0 {
				t.Errorf("left at the source: %q", got)
			}
			if err := small.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestMergedLayersAreNotCopiedAgain refreshes a copy again and again, while the
// layers of the source are merged behind it.
func TestMergedLayersAreNotCopiedAgain(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v := source(t, from)
	if err := transfer.Copy(ctx, transfer.Request{Source: v, Pool: to, Key: far, Dir: t.TempDir(), Mark: transfer.Mark{Name: "mark"}, Keep: true}); err != nil {
		t.Fatal(err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	change(t, v.Root(), func(dir string) error {
		return sh(t, dir, `mkdir big; for i in 1 2 3 4 5 6 7 8; do dd if=/dev/urandom of=big/$i bs=1M count=1 status=none; done`)
	})
	merged := 0
	for i := range 12 {
		change(t, v.Root(), func(dir string) error {
			return sh(t, dir, fmt.Sprintf("echo %d >big/%d; mkdir -p d%d; mv d%d/* big/8 d%d || true", i, 1+i%3, i, max(0, i-1), i))
		})
		if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: to}, fmt.Sprintf("mark%d", i)); err != nil {
			t.Fatal(err)
		}
		same(t, v, made, "one", "two", "")
		before := len(v.Root().Lower)
		for _, p := range []storage.Pool{from, to} {
			for _, w := range []storage.Volume{v, made} {
				at, err := p.Open(ctx, w.Key())
				if fault.Is(err, fault.NotFound) {
					continue
				}
				if err != nil {
					t.Fatal(err)
				}
				if err := at.(storage.Shortener).Shorten(ctx, func(context.Context) (*storage.Live, func(), error) { return nil, func() {}, nil }); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.Sweep(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if len(v.Root().Lower) < before {
			merged++
		}
		same(t, v, made, "one", "two", "")
	}
	if merged < 2 {
		t.Errorf("layers were merged %d times: there is nothing to see", merged)
	}
	space := func(v storage.Volume) int64 {
		t.Helper()
		usage, err := v.Usage(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return usage.Used
	}
	if a, b := space(v), space(made); b > a+6<<20 {
		t.Errorf("the copy takes %d MiB and its source %d MiB", b>>20, a>>20)
	}
}

// TestCancelledRefresh stops refreshes at every call that makes a snapshot visible,
// and takes them back.
func TestCancelledRefresh(t *testing.T) {
	all := pools(t)
	for _, to := range []string{"overlay2", "btrfs", "btrfs-far"} {
		from := "overlay"
		if to == "btrfs-far" {
			from = "btrfs"
		}
		t.Run(from+" "+to, func(t *testing.T) {
			ctx := t.Context()
			v := source(t, all[from])
			defer all[from].Delete(ctx, web)
			key := storage.Key{Class: storage.Instances, Name: "copy-of-" + from}
			if err := transfer.Copy(ctx, transfer.Request{Source: v, Pool: all[to], Key: key, Dir: t.TempDir(), Mark: transfer.Mark{Name: "mark1"}, Keep: true}); err != nil {
				t.Fatal(err)
			}
			made, err := all[to].Open(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			was, snapshots := digest(t, made.Root()), listed(t, made)
			change3(t, v)
			stopped, cancel := context.WithCancel(ctx)
			edit := func(*os.Root, string) error { cancel(); return nil }
			if from == "btrfs" { // what is sent is not edited
				cancel()
			}
			plan, err := transfer.NewPlan(ctx, v, made, "mark2", transfer.PlanOptions{Hidden: isMark})
			if err != nil {
				t.Fatal(err)
			}
			err = transfer.Refresh(stopped, transfer.RefreshRequest{Plan: plan, Source: v, Copy: made, Pool: all[to], Work: storage.Key{Class: storage.Instances, Name: "work"}, Dir: t.TempDir(), Edit: edit})
			if !fault.Is(err, fault.Cancelled) {
				t.Errorf("Refresh = %v, want cancelled", err)
			}
			if done, err := plan.Complete(ctx, made); done || err != nil {
				t.Errorf("Complete = %t, %v", done, err)
			}
			if err := errors.Join(plan.Undo(ctx, v, made), plan.Undo(ctx, v, made)); err != nil {
				t.Fatal(err)
			}
			if digest(t, made.Root()) != was || !slices.Equal(listed(t, made), snapshots) {
				t.Errorf("the copy has changed: snapshots %+v", listed(t, made))
			}
			if names, err := all[to].List(ctx, storage.Instances); err != nil || slices.Contains(names, "work") {
				t.Errorf("left in the pool: %v, %v", names, err)
			}
			if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: all[to]}, "mark3"); err != nil {
				t.Fatal(err)
			}
			same(t, v, made, "two", "three", "")
		})
	}
}

// TestWrongBase has a copy whose snapshot of the same name is another one.
func TestWrongBase(t *testing.T) {
	all := pools(t)
	for _, to := range []string{"overlay", "btrfs", "btrfs-far"} {
		t.Run(to, func(t *testing.T) {
			ctx := t.Context()
			key := storage.Key{Class: storage.Instances, Name: "web-" + to}
			v := source(t, all["btrfs"])
			defer all["btrfs"].Delete(ctx, web)
			same := to == "btrfs"
			if err := transfer.Copy(ctx, transfer.Request{Source: v, Same: same, Pool: all[to], Key: key, Dir: t.TempDir(), Mark: transfer.Mark{Name: "mark1"}, Keep: !same}); err != nil {
				t.Fatal(err)
			}
			made, err := all[to].Open(ctx, key)
			if err != nil {
				t.Fatal(err)
			}
			// Snapshots with the names and dates of the source's, and other data.
			list := append(listed(t, made), storage.Snapshot{Name: "mark1"})
			spoil(t, made)
			for _, s := range list {
				if err := made.DeleteSnapshot(ctx, s.Name); err != nil && !fault.Is(err, fault.NotFound) {
					t.Fatal(err)
				}
				if s.Name != "mark1" {
					s.CreatedAt = s.CreatedAt.Add(time.Millisecond)
				}
				if err := made.Snapshot(ctx, s.Name, storage.SnapshotOptions{CreatedAt: s.CreatedAt, Description: s.Description, ExpiresAt: s.ExpiresAt, Auto: s.Auto}); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := refresh(t, ctx, transfer.RefreshRequest{Source: v, Copy: made, Pool: all[to]}, "mark2"); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"one", "two", ""} {
				samePair(t, v, made, name)
			}
		})
	}
}

func samePair(t *testing.T, a, b storage.Volume, name string) { t.Helper(); same(t, a, b, name) }

// TestBrokenStreams gives a volume streams with every kind of damage.
func TestBrokenStreams(t *testing.T) {
	all := pools(t)
	ctx := t.Context()
	v := source(t, all["btrfs"])
	made, err := all["btrfs-far"].Create(ctx, far, storage.Tree, func(dir *os.Root) error { return dir.Mkdir(storage.RootName, 0o755) })
	if err != nil {
		t.Fatal(err)
	}
	into := made.(storage.Streamer)
	full := sent(t, v.(storage.Streamer), "one", "")
	part := sent(t, v.(storage.Streamer), "two", "one")
	for name, c := range map[string]struct {
		base   string
		stream []byte
		class  fault.Class
	}{
		"nothing":     {"", nil, fault.Invalid},
		"cut off":     {"", full[:len(full)/2], fault.Invalid},
		"no end":      {"", full[:len(full)-1], fault.Invalid},
		"a bit":       {"", flipped(full, len(full)/2), fault.Invalid},
		"magic":       {"", flipped(full, 3), fault.Invalid},
		"version":     {"", flipped(full, 13), fault.Unsupported},
		"size":        {"", flipped(full, 20), fault.Invalid},
		"no base":     {"", part, fault.WrongState},
		"wrong base":  {"other", part, fault.WrongState},
		"base needed": {"other", full, fault.WrongState},
	} {
		t.Run(name, func(t *testing.T) {
			if c.base == "other" {
				made.Snapshot(ctx, "other", storage.SnapshotOptions{CreatedAt: year})
			}
			if err := received(t, into, c.base, c.stream); fault.Of(err) != c.class {
				t.Errorf("Receive = %v, want %s", err, c.class)
			}
			if got := listed(t, made); slices.ContainsFunc(got, func(s storage.Snapshot) bool { return s.Name != "other" }) {
				t.Errorf("snapshots %+v", got)
			}
		})
	}
	if err := received(t, into, "", full); err != nil {
		t.Errorf("Receive = %v", err)
	}
}

func flipped(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 4
	return b
}

func sent(t *testing.T, v storage.Streamer, snapshot, base string) []byte {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stream"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := v.Send(t.Context(), snapshot, base, f); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func received(t *testing.T, v storage.Streamer, base string, stream []byte) error {
	t.Helper()
	name := filepath.Join(t.TempDir(), "stream")
	if err := os.WriteFile(name, stream, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	return v.Receive(t.Context(), base, f, storage.Snapshot{Name: "in", CreatedAt: year})
}
