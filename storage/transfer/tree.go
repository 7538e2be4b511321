package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/mount"
	"brig/storage/treecopy"
)

// tree copies root file systems. It mounts them as their instances see them, so
// that overlayfs's marks stay behind.
type tree struct{ dir string }

func (t tree) write(ctx context.Context, from storage.Root, dir *os.Root) error {
	if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
		return err
	}
	return t.mounted(func(at string) error {
		return treecopy.Copy(ctx, at, filepath.Join(dir.Name(), storage.RootName))
	}, look(from))
}

func (t tree) apply(ctx context.Context, base *storage.Root, from, to storage.Root) error {
	return t.mountedThree(func(base, a, b string) error {
		if err := treecopy.Update(ctx, base, a, b); err != nil {
			return err
		}
		return syncAll(b)
	}, base, from, mount.Spec{Lower: to.Lower, Upper: to.Upper, Work: to.Work})
}

func (t tree) changed(ctx context.Context, base *storage.Root, from, to storage.Root) error {
	return t.mountedThree(func(base, a, b string) error { return treecopy.Compare(ctx, base, a, b) }, base, from, look(to))
}

func (t tree) prove(ctx context.Context, from, to storage.Root) error {
	return t.mountedThree(func(_, a, b string) error {
		want, err := treecopy.Digest(ctx, a)
		if err != nil {
			return err
		}
		got, err := treecopy.Digest(ctx, b)
		if err == nil && got != want {
			return fault.New(fault.Internal, "the copy is not the same as its source: the files sum up to %x and not to %x", got, want)
		}
		return err
	}, nil, from, look(to))
}

func (t tree) size(ctx context.Context, from storage.Root) (n int64, err error) {
	err = t.mounted(func(at string) error {
		n, err = treecopy.Size(ctx, at)
		return err
	}, look(from))
	return n, err
}

// look is how to mount a root so that nothing in it changes.
func look(r storage.Root) mount.Spec {
	if r.Upper == "" {
		return mount.Spec{Lower: r.Lower}
	}
	return mount.Spec{Lower: append([]string{r.Upper}, r.Lower...)}
}

func (t tree) mounted(do func(at string) error, s mount.Spec) error {
	return t.alone(func() error { return t.at("from", s, do) })
}

// mountedThree calls do with the paths of three trees. Without a base the first is
// empty.
func (t tree) mountedThree(do func(base, a, b string) error, base *storage.Root, from storage.Root, to mount.Spec) error {
	return t.alone(func() error {
		two := func(base string) error {
			return t.at("from", look(from), func(a string) error {
				return t.at("to", to, func(b string) error { return do(base, a, b) })
			})
		}
		if base == nil {
			return two("")
		}
		return t.at("base", look(*base), two)
	})
}

// at calls do with the path where s is mounted. The mount is gone when at
// returns: a driver may look whether its layers are in use.
func (t tree) at(name string, s mount.Spec, do func(at string) error) (err error) {
	at := filepath.Join(t.dir, name)
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	if err := mount.Tree(at, s, mount.IDMap{}); err != nil {
		return err
	}
	defer func() {
		if gone := unix.Unmount(at, 0); gone != nil {
			err = errors.Join(err, fmt.Errorf("cannot unmount %q: %w", at, gone))
		}
	}()
	return do(at)
}

// alone calls do on a thread in a private mount namespace, with an empty folder in
// the place of t.dir. The thread ends with it, and so does whatever is left
// mounted.
func (t tree) alone(do func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, "")
		}
		if err == nil {
			err = unix.Mount("brig", t.dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "size=64k,nr_inodes=16,mode=700")
		}
		if err != nil {
			result <- fmt.Errorf("cannot make a mount namespace: %w", err)
			return
		}
		result <- do()
	}()
	return <-result
}

// syncAll makes what was written below dir durable.
func syncAll(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}
