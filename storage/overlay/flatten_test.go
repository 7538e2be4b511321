package overlay_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"brig/instance/run"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/overlay"
	"brig/storage/storagetest"
)

// show gives the names and texts of the files of a mounted tree.
func show(dir string) (string, error) {
	text := ""
	return text, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text += path[len(dir):]
		if e.Type().IsRegular() {
			b, err := os.ReadFile(path)
			text += "=" + string(b)
			if err != nil {
				return err
			}
		}
		text += "\n"
		return nil
	})
}

func texts(dir *os.Root, name string) error {
	for i := range 20 {
		if err := dir.WriteFile(fmt.Sprint(name, i), []byte("base"), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// rearrange changes a mounted tree in the ways that layers have to express: new,
// changed and removed files, and directories that were removed, made anew,
// replaced by files, and renamed.
func rearrange(dir string, i int) error {
	in := func(format string, args ...any) string { return filepath.Join(dir, fmt.Sprintf(format, args...)) }
	text := []byte(fmt.Sprint(i))
	err := errors.Join(
		os.WriteFile(in("last"), text, 0o644),
		os.MkdirAll(in("dir/%d", i%5), 0o755),
		os.WriteFile(in("dir/%d/%d", i%5, i), text, 0o644),
		os.RemoveAll(in("dir/%d/%d", i%5, i-10)),
	)
	switch i % 7 {
	case 1:
		err = errors.Join(err, os.RemoveAll(in("dir/%d", (i+1)%5)))
	case 2:
		err = errors.Join(err, os.RemoveAll(in("made")), os.Mkdir(in("made"), 0o700), os.WriteFile(in("made/%d", i), text, 0o600))
	case 3:
		err = errors.Join(err, os.RemoveAll(in("made")), os.WriteFile(in("made"), text, 0o600))
	case 4:
		err = errors.Join(err, os.RemoveAll(in("base/gone%d", i)), os.Symlink("nowhere", in("link%d", i)))
	case 5:
		err = errors.Join(err, wander(in, i/7))
	}
	return err
}

// wander moves a directory of the image about, alone and with its parent, and
// changes what is in it.
func wander(in func(string, ...any) string, step int) error {
	places := []string{"base", "b", "p/b", "q/b", "c", "q/d", "base/d", "dir/x/e", "base/e", "r/e", "r/f", "f", "g"}
	if step+1 >= len(places) {
		return nil
	}
	from, to := places[step], places[step+1]
	err := os.MkdirAll(filepath.Dir(in(to)), 0o755)
	if step == 2 || step == 5 || step == 8 { // the parent moves, and takes it along
		from, to = filepath.Dir(from), filepath.Dir(to)
		err = os.RemoveAll(in(to))
	}
	err = errors.Join(err, os.Rename(in(from), in(to)))
	now := places[step+1]
	return errors.Join(err,
		os.RemoveAll(in(now+"/f%d", step)),
		os.RemoveAll(in(now+"/sub/f%d", step+1)),
		os.WriteFile(in(now+"/sub/n%d", step), []byte(now), 0o644),
		os.MkdirAll(in(places[step]), 0o755), // hides nothing, and is not what was there
	)
}

// TestManySnapshotsKeepTheChainShort takes many snapshots of a changing tree. The
// tree stays mountable over few layers, and each snapshot shows what it showed.
func TestManySnapshotsKeepTheChainShort(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: mounts volumes")
	}
	ctx := t.Context()
	p, err := overlay.Open(filepath.Join(t.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "web"}, storage.Tree, func(dir *os.Root) error {
		return errors.Join(dir.MkdirAll("rootfs/base/gone4", 0o755), dir.MkdirAll("rootfs/base/gone11/x", 0o755), dir.MkdirAll("rootfs/dir/3/old", 0o755), dir.Mkdir("rootfs/base/sub", 0o755), texts(dir, "rootfs/base/f"), texts(dir, "rootfs/base/sub/f"))
	})
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 100
	target := t.TempDir()
	storagetest.Namespace(t, func() error {
		mounted := func(f func() error) error {
			r := v.Root()
			if len(r.Lower) > 45 {
				return fmt.Errorf("it stands on %d layers", len(r.Lower))
			}
			if err := mount.Tree(target, mount.Spec{Lower: r.Lower, Upper: r.Upper, Work: r.Work}, mount.IDMap{}); err != nil {
				return err
			}
			return errors.Join(f(), unix.Unmount(target, unix.MNT_DETACH))
		}
		want := make([]string, rounds)
		for i := range rounds {
			err := mounted(func() (err error) {
				err = rearrange(target, i)
				if err == nil {
					want[i], err = show(target)
				}
				return err
			})
			if err != nil {
				return fmt.Errorf("round %d: %w", i, err)
			}
			if err := v.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{}); err != nil {
				return err
			}
			err = mounted(func() error {
				got, err := show(target)
				if got != want[i] {
					return fmt.Errorf("after snapshot %d it shows\n%swant\n%s", i, got, want[i])
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		for i := 0; i < rounds; i += 6 {
			if err := v.Restore(ctx, fmt.Sprint(i)); err != nil {
				return err
			}
			if err := p.Sweep(ctx); err != nil {
				return err
			}
			err := mounted(func() error {
				got, err := show(target)
				if got != want[i] {
					return fmt.Errorf("snapshot %d shows\n%swant\n%s", i, got, want[i])
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// TestManySnapshotsOfADiskKeepTheChainShort does the same for a disk, each of whose
// states has a sector of its own.
func TestManySnapshotsOfADiskKeepTheChainShort(t *testing.T) {
	ctx := t.Context()
	p, err := overlay.Open(filepath.Join(t.TempDir(), "pool"), overlay.Options{})
	if err != nil {
		t.Fatal(err)
	}
	v, err := p.Create(ctx, storage.Key{Class: storage.Instances, Name: "web"}, storage.Disk, func(dir *os.Root) error {
		return errors.Join(dir.WriteFile(storage.DiskRaw, nil, 0o600), os.Truncate(filepath.Join(dir.Name(), storage.DiskRaw), 8<<20))
	})
	if err != nil {
		t.Fatal(err)
	}
	io := func(lines ...string) {
		t.Helper()
		var args []string
		for _, line := range lines {
			args = append(args, "-c", line)
		}
		out, err := run.Output(ctx, "qemu-io", append(args, "-f", v.Root().DiskFormat, v.Root().DiskPath)...)
		if err != nil {
			t.Fatalf("qemu-io %q = %s, %v", lines, out, err)
		}
	}
	const rounds = 45
	for i := range rounds {
		io(fmt.Sprintf("write -q -P %d %d 512", i+1, i*100<<10), fmt.Sprintf("write -q -P %d 5M 512", i+1))
		if err := v.Snapshot(ctx, fmt.Sprint(i), storage.SnapshotOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := depth(t, v); n > 41 {
		t.Errorf("it stands on %d files, want at most 41", n)
	}
	for _, i := range []int{44, 41, 38, 0} {
		if err := v.Restore(ctx, fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
		if err := p.Sweep(ctx); err != nil {
			t.Fatal(err)
		}
		lines := []string{fmt.Sprintf("read -q -P %d 5M 512", i+1)}
		for j := range rounds {
			want := j + 1
			if j > i {
				want = 0
			}
			lines = append(lines, fmt.Sprintf("read -q -P %d %d 512", want, j*100<<10))
		}
		io(lines...)
	}
}
