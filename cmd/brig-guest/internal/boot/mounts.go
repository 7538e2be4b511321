package boot

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// mount is one file system to mount.
type mount struct {
	source, target, kind string
	flags                uintptr
	data                 string
	optional             bool // the kernel may lack it
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil && !m.optional {
		return fmt.Errorf("cannot mount %s: %w", m.target, err)
	}
	err := unix.Mount(m.source, m.target, m.kind, m.flags, m.data)
	if err != nil && !m.optional {
		return fmt.Errorf("cannot mount %s on %s: %w", m.kind, m.target, err)
	}
	return nil
}

const safe = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

// mountEarly mounts what finding the root needs.
func mountEarly() error {
	return mountAll([]mount{
		{"proc", "/proc", "proc", safe, "", false},
		{"sysfs", "/sys", "sysfs", safe, "", false},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
	})
}

// mountSystem mounts the kernel's file systems in the new root. A system's own
// init mounts what else it wants; an app finds what it has in a container, and
// its /run is the image's.
func mountSystem(system bool) error {
	mounts := []mount{
		{"proc", "/proc", "proc", safe, "", false},
		{"sysfs", "/sys", "sysfs", safe, "", false},
		{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=0755", false},
	}
	if system {
		mounts = append(mounts, mount{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=0755,size=20%", false})
		return mountAll(mounts)
	}
	mounts = append(mounts,
		mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "gid=5,mode=0620,ptmxmode=0666", false},
		mount{"tmpfs", "/dev/shm", "tmpfs", safe, "mode=1777,size=65536k", false},
		mount{"mqueue", "/dev/mqueue", "mqueue", safe, "", true},
		mount{"cgroup2", "/sys/fs/cgroup", "cgroup2", safe, "nsdelegate", true},
	)
	if err := mountAll(mounts); err != nil {
		return err
	}
	for name, target := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(target, "/dev/"+name); err != nil && !os.IsExist(err) {
			return fmt.Errorf("cannot prepare /dev: %w", err)
		}
	}
	return nil
}

func mountAll(mounts []mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

// console makes the machine's console the standard streams: the kernel opened
// it before there were devices, or could not.
func console() {
	f, err := os.OpenFile("/dev/console", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	for fd := range 3 {
		unix.Dup3(int(f.Fd()), fd, 0)
	}
}

// switchRoot makes the mounted root disk the root, and gives the memory of the
// initial file system back. This program goes on from its deleted file.
func switchRoot() error {
	for _, dir := range []string{"/dev", "/sys", "/proc"} {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("cannot unmount %s: %w", dir, err)
		}
	}
	if err := clean(); err != nil {
		return err
	}
	if err := os.Chdir(newRoot); err != nil {
		return fmt.Errorf("cannot switch to the root disk: %w", err)
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("cannot switch to the root disk: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("cannot switch to the root disk: %w", err)
	}
	return os.Chdir("/")
}

// clean removes the initial file system's files. It refuses any root but one
// in memory: what it is about to remove has to be brig's own.
func clean() error {
	var st unix.Statfs_t
	if err := unix.Statfs("/", &st); err != nil {
		return fmt.Errorf("cannot look at the initial file system: %w", err)
	}
	if st.Type != unix.RAMFS_MAGIC && st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("cannot switch root: the initial file system is none in memory")
	}
	entries, err := os.ReadDir("/")
	if err != nil {
		return fmt.Errorf("cannot clean the initial file system: %w", err)
	}
	for _, e := range entries {
		if path := filepath.Join("/", e.Name()); path != newRoot {
			os.RemoveAll(path)
		}
	}
	return nil
}
