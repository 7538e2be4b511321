package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/storage/storagetest/lab/plan"
)

// root is where the guest's root is put together.
const root = "/root"

// boot makes the guest's root of its disks and becomes its init.
func boot() error {
	for _, m := range []struct{ target, kind string }{{"/dev", "devtmpfs"}, {"/proc", "proc"}, {"/sys", "sysfs"}} {
		if err := mount("none", m.target, m.kind, 0, ""); err != nil {
			return err
		}
	}
	if err := loadModules("/modules.list"); err != nil {
		return err
	}
	if err := mountDisk(plan.RootDisk, root, 0); err != nil {
		return err
	}
	if err := mountDisk(plan.ModulesDisk, root+"/usr/lib/modules", unix.MS_RDONLY); err != nil {
		return err
	}
	if err := linkKernel(); err != nil {
		return err
	}
	if err := nameDisks(); err != nil {
		return err
	}
	if err := mountDisk(plan.ShareDisk, root+plan.Share, 0); err != nil {
		return err
	}
	for _, target := range []string{"/sys", "/proc", "/dev"} {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("cannot unmount %q: %w", target, err)
		}
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot change the root: %w", err)
	}
	return unix.Exec("/sbin/init", []string{"/sbin/init"}, []string{"TERM=linux"})
}

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("cannot mount %q at %q: %w", source, target, err)
	}
	return nil
}

// loadModules loads the modules that a file lists, in its order.
func loadModules(list string) error {
	f, err := os.Open(list)
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		m, err := os.Open(lines.Text())
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(m.Fd()), "", 0)
		m.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("cannot load %q: %w", lines.Text(), err)
		}
	}
	return nil
}

// linkKernel shows the kernel where Debian's package puts it, so that what looks
// for kernels on its host finds one.
func linkKernel() error {
	images, err := filepath.Glob(root + "/usr/lib/modules/*/vmlinuz")
	if err != nil || len(images) != 1 {
		return fmt.Errorf("want one kernel beside its modules, found %q", images)
	}
	version := filepath.Base(filepath.Dir(images[0]))
	err = os.Symlink("/usr/lib/modules/"+version+"/vmlinuz", root+"/boot/vmlinuz-"+version)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}
