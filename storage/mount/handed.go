package mount

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// Detached gives a mount of one directory that is attached nowhere, with shifted
// ids and without devices. It lasts as long as the file it returns, unless Attach
// gives it a place.
func Detached(dir string, m IDMap, readOnly bool) (*os.File, error) {
	attributes := uint64(unix.MOUNT_ATTR_NODEV)
	if readOnly {
		attributes |= unix.MOUNT_ATTR_RDONLY
	}
	var fd int
	var err error
	aside(func() {
		var users *namespace
		if users, err = m.namespace(); err == nil {
			defer users.Close()
			fd, err = detach(dir, users, attributes)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("cannot mount %q: %w", dir, err)
	}
	f := os.NewFile(uintptr(fd), dir)
	// What is mounted below dir later is not for those who get this.
	if err := propagate(f, unix.MS_PRIVATE); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func propagate(f *os.File, how uint64) error {
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{Propagation: how}); err != nil {
		return fmt.Errorf("mount_setattr %q: %w", f.Name(), err)
	}
	return nil
}

// Inside calls f on a thread in the mount namespace of another process, which is
// given up afterwards. F starts no goroutine that uses a path.
func Inside(pid int, f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return inside(ns, f)
}

func inside(ns *os.File, f func() error) (err error) {
	aside(func() {
		if err = unix.Unshare(unix.CLONE_FS); err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
		}
		if err != nil {
			err = fmt.Errorf("entering a mount namespace: %w", err)
			return
		}
		err = f()
	})
	return err
}

// Handed gives a mount, attached nowhere, of what is mounted at target in the
// mount namespace of a process, in the way in which the users of m get it when
// they inherit it: they cannot take back what it forbids. A mount that is simply
// moved to them could be made writable by their root.
func Handed(pid int, target string, m IDMap) (*os.File, error) {
	var fd int
	get := func() (err error) {
		fd, err = unix.OpenTree(unix.AT_FDCWD, target, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
		return err
	}
	err := Inside(pid, func() error {
		if m.Count == 0 {
			return get()
		}
		child, err := m.heir()
		if err != nil {
			return err
		}
		defer child.end()
		return inside(child.mounts, get)
	})
	if err != nil {
		return nil, fmt.Errorf("cannot hand over %q: %w", target, err)
	}
	f := os.NewFile(uintptr(fd), target)
	// The kernel does that for another user namespace: what is mounted below it there
	// does not come back.
	if m.Count == 0 {
		if err := propagate(f, unix.MS_SLAVE); err != nil {
			f.Close()
			return nil, err
		}
	}
	return f, nil
}

// heir is a child that never runs anything, in a user namespace of its own with
// copies of the calling thread's mounts.
type heir struct {
	process *os.Process
	mounts  *os.File
}

func (m IDMap) heir() (h *heir, err error) {
	runtime.LockOSThread() // the child is traced by this thread
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(m.Base), Size: int(m.Count)}}
	child, err := os.StartProcess("/proc/self/exe", []string{"brig-idmap"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS,
		UidMappings: ids,
		GidMappings: ids,
		Ptrace:      true,
		Pdeathsig:   syscall.SIGKILL,
	}})
	if err != nil {
		runtime.UnlockOSThread()
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	h = &heir{process: child}
	if h.mounts, err = os.Open(fmt.Sprintf("/proc/%d/ns/mnt", child.Pid)); err != nil {
		h.end()
		return nil, fmt.Errorf("user namespace: %w", err)
	}
	return h, nil
}

func (h *heir) end() {
	h.process.Kill()
	h.process.Wait()
	if h.mounts != nil {
		h.mounts.Close()
	}
	runtime.UnlockOSThread()
}

// AttachTo gives a mount a place at an open directory, in the mount namespace of
// the calling thread.
func AttachTo(view, dir *os.File) error {
	err := unix.MoveMount(int(view.Fd()), "", int(dir.Fd()), "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("move_mount to %q: %w", dir.Name(), err)
	}
	return nil
}
