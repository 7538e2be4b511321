package transfer_test

import (
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
	"brig/storage/mount"
	"brig/storage/overlay"
	"brig/storage/storagetest"
	"brig/storage/transfer"
	"brig/storage/treecopy"
)

var (
	web  = storage.Key{Class: storage.Instances, Name: "web"}
	far  = storage.Key{Class: storage.Instances, Name: "far"}
	year = time.Date(2024, 5, 6, 7, 8, 9, 123, time.UTC)
)

func newPool(t *testing.T) storage.Pool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts volumes")
	}
	p, err := overlay.Open(t.TempDir(), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// change calls f with the tree of a volume.
func change(t *testing.T, root storage.Root, f func(dir string) error) {
	t.Helper()
	at := t.TempDir()
	storagetest.Namespace(t, func() error {
		if err := mount.Tree(at, mount.Spec{Lower: root.Lower, Upper: root.Upper, Work: root.Work}, mount.IDMap{}); err != nil {
			return err
		}
		return errors.Join(f(at), unix.Unmount(at, 0))
	})
}

func digest(t *testing.T, root storage.Root) (sum treecopy.Sum) {
	t.Helper()
	change(t, root, func(dir string) (err error) {
		sum, err = treecopy.Digest(t.Context(), dir)
		return err
	})
	return sum
}

func sh(t *testing.T, dir, script string) error {
	t.Helper()
	_, err := run.With(t.Context(), run.Options{Dir: dir, Stdin: strings.NewReader(script)}, "sh", "-e")
	return err
}

// source makes a volume with the snapshots one and two: files of every kind, of
// which some change and some go.
func source(t *testing.T, p storage.Pool) storage.Volume {
	t.Helper()
	ctx := t.Context()
	v, err := p.Create(ctx, web, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.Mkdir(storage.RootName, 0o755), dir.WriteFile("instance.json", []byte("first"), 0o600),
			sh(t, filepath.Join(dir.Name(), storage.RootName), `
				mkdir -p etc gone/deep kept; echo a >etc/a; ln etc/a etc/b; ln -s ../nowhere etc/link; mkfifo etc/fifo
				mknod etc/null c 1 3; mknod etc/disk b 7 9; echo x >gone/deep/x; chmod 4751 etc/a; chown -h 12:34 etc/link kept
				dd if=/dev/urandom of=kept/large bs=1M count=4 status=none; truncate -s 1G kept/sparse; touch -d @1000000000.5 kept`))
	})
	if err != nil {
		t.Fatal(err)
	}
	one := storage.SnapshotOptions{CreatedAt: year, Description: "the first", ExpiresAt: year.AddDate(100, 0, 0)}
	if err := v.Snapshot(ctx, "one", one); err != nil {
		t.Fatal(err)
	}
	change(t, v.Root(), func(dir string) error {
		if err := unix.Setxattr(filepath.Join(dir, "kept"), "user.mark", []byte("yes"), 0); err != nil {
			return err
		}
		return sh(t, dir, `rm -r gone; mkdir gone; echo y >gone/y; echo b >>etc/b; mv etc moved; rm moved/link; mkdir moved/link; ln moved/a moved/c`)
	})
	setMeta(t, v, "second")
	if err := v.Snapshot(ctx, "two", storage.SnapshotOptions{CreatedAt: year.Add(time.Hour), Auto: true}); err != nil {
		t.Fatal(err)
	}
	change(t, v.Root(), func(dir string) error {
		// The same size and time, and other data.
		return errors.Join(unix.Removexattr(filepath.Join(dir, "kept"), "user.mark"),
			sh(t, dir, `touch -r gone/y ../stamp; echo z >gone/y; touch -r ../stamp gone/y; echo new >new; rm moved/c; rm ../stamp`))
	})
	setMeta(t, v, "third")
	return v
}

func setMeta(t *testing.T, v storage.Volume, text string) {
	t.Helper()
	dir, err := v.Dir()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := errors.Join(dir.WriteFile("new", []byte(text), 0o600), dir.Rename("new", "instance.json")); err != nil {
		t.Fatal(err)
	}
}

func meta(t *testing.T, dir *os.Root, err error) string {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	text, err := dir.ReadFile("instance.json")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestAllStatesComeAlong(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v := source(t, from)
	r := transfer.Request{Source: v, Pool: to, Key: far, Mark: transfer.Mark{Name: "mark"}, Dir: t.TempDir(), Edit: func(dir *os.Root, snapshot string) error {
		text, err := dir.ReadFile("instance.json")
		return errors.Join(err, dir.WriteFile("instance.json", fmt.Append(nil, "copy of ", snapshot, " ", string(text)), 0o600))
	}}
	if err := transfer.Copy(ctx, r); err != nil {
		t.Fatalf("Copy = %v", err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	want, err := v.Snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	got, err := made.Snapshots(ctx)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("snapshots %+v, %v, want %+v", got, err, want)
	}
	dir, err := made.Dir()
	if text := meta(t, dir, err); text != "copy of  third" {
		t.Errorf("metadata of the copy: %q", text)
	}
	dir, err = made.SnapshotDir(ctx, "two")
	if text := meta(t, dir, err); text != "copy of two second" {
		t.Errorf("metadata of snapshot two: %q", text)
	}
	sums := map[treecopy.Sum]bool{}
	for _, name := range []string{"one", "two", ""} {
		a, b := v.Root(), made.Root()
		if name != "" {
			var errA, errB error
			a, errA = v.SnapshotRoot(ctx, name)
			b, errB = made.SnapshotRoot(ctx, name)
			if err := errors.Join(errA, errB); err != nil {
				t.Fatal(err)
			}
		}
		x, y := digest(t, a), digest(t, b)
		if x != y {
			t.Errorf("state %q differs in the copy", name)
		}
		sums[x] = true
	}
	if len(sums) != 3 {
		t.Errorf("three different states have %d sums", len(sums))
	}
	// What did not change is there once.
	usage, err := made.Usage(ctx)
	if err != nil || usage.Used > 6<<20 {
		t.Errorf("the copy takes %d bytes, %v, want little more than 4 MiB", usage.Used, err)
	}
	if need, err := transfer.Need(ctx, r); err != nil || need < 4<<20 || need > 8<<20 {
		t.Errorf("Need = %d, %v", need, err)
	}
}

func TestOneStateAlone(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v := source(t, from)
	one, err := v.SnapshotRoot(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		r    transfer.Request
		want storage.Root
	}{
		"snapshot": {transfer.Request{Snapshot: "one"}, one},
		"now":      {transfer.Request{Alone: true}, v.Root()},
	} {
		c.r.Source, c.r.Pool, c.r.Dir, c.r.Mark.Name = v, to, t.TempDir(), "mark"
		c.r.Key = storage.Key{Class: storage.Instances, Name: name}
		if err := transfer.Copy(ctx, c.r); err != nil {
			t.Fatalf("%s: Copy = %v", name, err)
		}
		made, err := to.Open(ctx, c.r.Key)
		if err != nil {
			t.Fatal(err)
		}
		if list, err := made.Snapshots(ctx); err != nil || len(list) != 0 {
			t.Errorf("%s: snapshots %v, %v, want none", name, list, err)
		}
		if digest(t, made.Root()) != digest(t, c.want) {
			t.Errorf("%s: the copy differs", name)
		}
	}
	if err := transfer.Copy(ctx, transfer.Request{Source: v, Snapshot: "none", Pool: to, Key: far, Dir: t.TempDir()}); !fault.Is(err, fault.NotFound) {
		t.Errorf("Copy of no snapshot = %v, want not-found", err)
	}
}

// lossy is a pool that damages the first volume it makes.
type lossy struct {
	storage.Pool
	damage func(dir string) error
}

func (p lossy) Create(ctx context.Context, key storage.Key, c storage.Content, fill func(*os.Root) error) (storage.Volume, error) {
	v, err := p.Pool.Create(ctx, key, c, func(dir *os.Root) error {
		err := fill(dir)
		if _, empty := dir.Lstat("rootfs/etc"); err != nil || empty != nil {
			return err // nothing is in it yet
		}
		return p.damage(dir.Name())
	})
	return struct{ storage.Volume }{v}, err
}

func TestDamagedCopyIsRefused(t *testing.T) {
	from, to := newPool(t), newPool(t)
	v := source(t, from)
	for name, script := range map[string]string{
		"content":  `printf b | dd of=rootfs/kept/large bs=1 seek=5 conv=notrunc status=none`,
		"owner":    `chown 99 rootfs/kept/large`,
		"mode":     `chmod 600 rootfs/etc/a`,
		"time":     `touch rootfs/kept`,
		"gone":     `rm rootfs/etc/fifo`,
		"more":     `mkdir rootfs/more`,
		"links":    `rm rootfs/etc/b; cp -a rootfs/etc/a rootfs/etc/b`,
		"device":   `touch -r rootfs/etc/null $S/null; rm rootfs/etc/null; mknod rootfs/etc/null c 1 5; touch -r $S/null rootfs/etc/null`,
		"target":   `ln -s x $S/link; touch -h -r rootfs/etc/link $S/link; rm rootfs/etc/link; ln -s ../elsewhere rootfs/etc/link; chown -h 12:34 rootfs/etc/link; touch -h -r $S/link rootfs/etc/link`,
		"xattr":    `setfattr -n user.x -v y rootfs/kept/large`,
		"root dir": `chmod 700 rootfs`,
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			bad := lossy{to, func(dir string) error {
				if name == "xattr" {
					return unix.Setxattr(filepath.Join(dir, "rootfs/kept/large"), "user.x", []byte("y"), 0)
				}
				// The times of folders tell nothing here.
				return sh(t, dir, fmt.Sprintf("S=%s; touch -r rootfs $S/root; touch -r rootfs/etc $S/etc; %s; touch -r $S/etc rootfs/etc; touch -r $S/root rootfs", t.TempDir(), script))
			}}
			err := transfer.Copy(ctx, transfer.Request{Source: v, Snapshot: "one", Pool: bad, Key: far, Dir: t.TempDir()})
			if !fault.Is(err, fault.Internal) || !strings.Contains(err.Error(), "not the same") {
				t.Errorf("Copy = %v, want a refusal of the damaged copy", err)
			}
			if list, err := to.List(ctx, storage.Instances); err != nil || len(list) != 0 {
				t.Errorf("left in the pool: %v, %v", list, err)
			}
		})
	}
}

func TestDisksComeAlong(t *testing.T) {
	ctx := t.Context()
	from, to := newPool(t), newPool(t)
	v, err := from.Create(ctx, web, storage.Disk, func(dir *os.Root) error {
		return errors.Join(dir.WriteFile("instance.json", []byte("disk"), 0o600), sh(t, dir.Name(), `
			dd if=/dev/urandom of=disk.raw bs=64k count=8 status=none; truncate -s 64M disk.raw`))
	})
	if err != nil {
		t.Fatal(err)
	}
	write := func(command string) {
		t.Helper()
		root := v.Root()
		if _, err := run.Output(ctx, "qemu-io", "-f", root.DiskFormat, "-c", command, root.DiskPath); err != nil {
			t.Fatal(err)
		}
	}
	for i, name := range []string{"one", "two"} {
		if err := v.Snapshot(ctx, name, storage.SnapshotOptions{CreatedAt: year.Add(time.Duration(i) * time.Hour)}); err != nil {
			t.Fatal(err)
		}
		write(fmt.Sprintf("write -P %d %dM 128k", i+1, i*8))
	}
	write("write -z 64k 64k")
	r := transfer.Request{Source: v, Pool: to, Key: far, Mark: transfer.Mark{Name: "mark"}, Dir: t.TempDir()}
	if need, err := transfer.Need(ctx, r); err != nil || need < 1<<20 || need > 16<<20 {
		t.Errorf("Need = %d, %v", need, err)
	}
	if err := transfer.Copy(ctx, r); err != nil {
		t.Fatalf("Copy = %v", err)
	}
	made, err := to.Open(ctx, far)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", ""} {
		a, b := v.Root(), made.Root()
		if name != "" {
			var errA, errB error
			a, errA = v.SnapshotRoot(ctx, name)
			b, errB = made.SnapshotRoot(ctx, name)
			if err := errors.Join(errA, errB); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := run.Output(ctx, "qemu-img", "compare", "-s", "-f", a.DiskFormat, "-F", b.DiskFormat, a.DiskPath, b.DiskPath); err != nil && !strings.Contains(string(out), "block status") {
			t.Errorf("state %q differs: %s %v", name, out, err)
		}
	}
}
