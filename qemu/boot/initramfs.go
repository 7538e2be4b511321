package boot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
)

// initramfsFormat goes into the name of a cached initramfs. It changes whenever
// the content would change for the same kernel and brig-guest.
const initramfsFormat = "2"

// unusedFor is how long a cached initramfs is kept without being used.
const unusedFor = 7 * 24 * time.Hour

// Initramfs gives the path of the initramfs that boots this kernel with this
// brig-guest. It is made the first time and kept in the store; the cached one is
// found without reading either. It is not compressed: what is saved in reading
// it is lost twice in the guest, above all an emulated one.
func (s *Store) Initramfs(ctx context.Context, k instance.Kernel, guest string) (string, error) {
	key, err := identity(k, guest)
	if err != nil {
		return "", err
	}
	dir := filepath.Join(s.dir, cacheDir)
	path := filepath.Join(dir, "initramfs-"+key)
	now := time.Now()
	if os.Chtimes(path, now, now) == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("cannot make an initramfs: %w", err)
	}
	dropUnused(dir, now)
	if err := build(ctx, path, k, guest); err != nil {
		return "", fmt.Errorf("cannot make an initramfs for kernel %q: %w", k.Name, err)
	}
	return path, nil
}

// identity is the same as long as neither file was replaced or written to.
func identity(k instance.Kernel, guest string) (string, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, initramfsFormat, k.Modules)
	for _, path := range []string{guest, k.Image} {
		var st unix.Stat_t
		if err := unix.Stat(path, &st); errors.Is(err, unix.ENOENT) {
			return "", fault.New(fault.Unavailable, "cannot boot a virtual machine: %q is missing", path)
		} else if err != nil {
			return "", &os.PathError{Op: "stat", Path: path, Err: err}
		}
		fmt.Fprintln(sum, path, st.Dev, st.Ino, st.Size, st.Mtim, st.Ctim)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

// dropUnused frees the caches of kernels and programs that are gone, and what
// dead processes left. A running machine does not need its own any more.
func dropUnused(dir string, now time.Time) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if st, err := e.Info(); err == nil && now.Sub(st.ModTime()) > unusedFor {
			os.Remove(filepath.Join(dir, e.Name()))
		}
	}
}

// build writes the archive beside path and renames it. Two processes that build
// the same one do it twice and are both right.
func build(ctx context.Context, path string, k instance.Kernel, guest string) error {
	f, err := os.CreateTemp(filepath.Dir(path), stagingName)
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := write(ctx, newArchive(f), k, guest); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// write puts in brig-guest as /init, a console for it, and the modules with
// /modules.list, which says in what order brig-guest loads them.
func write(ctx context.Context, a *archive, k instance.Kernel, guest string) error {
	for _, dir := range []string{"dev", "proc", "sys", "modules"} {
		if err := a.dir(dir); err != nil {
			return err
		}
	}
	if err := a.device("dev/console", 5, 1); err != nil {
		return err
	}
	if err := a.device("dev/null", 1, 3); err != nil {
		return err
	}
	program, err := os.Open(guest)
	if err != nil {
		return err
	}
	defer program.Close()
	st, err := program.Stat()
	if err != nil {
		return err
	}
	if err := a.file("init", 0o755, program, st.Size()); err != nil {
		return err
	}
	if k.Modules != "" {
		if err := addModules(ctx, a, k.Modules); err != nil {
			return err
		}
	}
	return a.close()
}

func addModules(ctx context.Context, a *archive, dir string) error {
	m, err := readModules(os.DirFS(dir))
	if err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	list, err := m.closure(ctx)
	if err != nil {
		return err
	}
	var order bytes.Buffer
	for _, mod := range list {
		file := mod.name + ".ko"
		if err := a.file("modules/"+file, 0o644, bytes.NewReader(mod.data), int64(len(mod.data))); err != nil {
			return err
		}
		fmt.Fprintln(&order, "modules/"+file)
	}
	return a.file("modules.list", 0o644, &order, int64(order.Len()))
}
