package mount

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// viewPlace is where a view is put together, in a namespace that lasts no longer.
// Every host has this directory, and no pool is in it.
const viewPlace = "/sys"

// viewAttributes are those of a view: whatever is in it does nothing to the host.
const viewAttributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC

// View gives a read-only mount of s that is attached nowhere, with file ids as
// they are on disk. It lasts as long as the file it returns, an O_PATH handle of
// its root, unless Attach gives it a place. An Upper that is in use counts as one
// more layer; what its user changes meanwhile may or may not be seen.
func View(s Spec) (*os.File, error) {
	if s.Upper != "" && len(s.Lower) > 0 {
		s = Spec{Lower: append([]string{s.Upper}, s.Lower...)}
	}
	return unattached(s, viewAttributes)
}

// Stage gives a mount of s like View's that can be written to. Its Upper is in use by
// nobody else.
func Stage(s Spec) (*os.File, error) {
	return unattached(s, viewAttributes&^unix.MOUNT_ATTR_RDONLY)
}

func unattached(s Spec, attributes uint64) (*os.File, error) {
	var fd int
	var err error
	aside(func() { fd, err = view(s, attributes) })
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "view"), nil
}

// aside calls f on a thread that ends with it. That cannot be the main thread,
// which never ends, and which stands for the whole process in /proc.
func aside(f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// As long as this waits here, it is another thread's turn.
			aside(f)
			runtime.UnlockOSThread()
			return
		}
		f()
	}()
	<-done
}

func view(s Spec, attributes uint64) (int, error) {
	if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
		return -1, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return -1, fmt.Errorf("making mounts private: %w", err)
	}
	if err := Tree(viewPlace, s, IDMap{}); err != nil {
		return -1, err
	}
	return detach(viewPlace, nil, attributes)
}

// FileSystem is View of the file system of a known type on a block device, which
// may have been written by anybody.
func FileSystem(kind, device string, options [][2]string) (*os.File, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen %s: %w", kind, err)
	}
	defer unix.Close(fs)
	if err := errors.Join(unix.FsconfigSetString(fs, "source", device), unix.FsconfigSetFlag(fs, "ro")); err != nil {
		return nil, said(fs, kind, err)
	}
	for _, o := range options {
		if o[1] == "" {
			err = unix.FsconfigSetFlag(fs, o[0])
		} else {
			err = unix.FsconfigSetString(fs, o[0], o[1])
		}
		if err != nil {
			return nil, said(fs, "option "+o[0], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, said(fs, kind, err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, viewAttributes)
	if err != nil {
		return nil, said(fs, kind, err)
	}
	return os.NewFile(uintptr(fd), "view"), nil
}

// Attach gives a view a place in the mount namespace of the calling thread.
func Attach(view *os.File, target string) error { return attach(int(view.Fd()), target) }
