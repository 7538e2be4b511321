package boot

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/guest"
)

// mountVolumes mounts the directories that the host shares, and memory, where the image has
// these paths: links in it stay in it. A machine that lacks a volume does not
// start, rather than writing to the directory below.
func mountVolumes(list []instance.Mount) error {
	if len(list) == 0 {
		return nil
	}
	root, err := guest.OpenRoot("/")
	if err != nil {
		return err
	}
	defer root.Close()
	for _, m := range list {
		if err := mountVolume(root, m); err != nil {
			return fmt.Errorf("cannot mount the volume %q at %q: %w", m.Tag, m.Path, err)
		}
	}
	return nil
}

func mountVolume(root *guest.Root, m instance.Mount) error {
	if err := root.MkdirAll(m.Path); err != nil {
		return err
	}
	dir, _, err := root.OpenDir(m.Path)
	if err != nil {
		return err
	}
	defer dir.Close()
	flags := uintptr(unix.MS_NODEV)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	options := ""
	if m.Size > 0 {
		options = fmt.Sprintf("size=%d", m.Size)
	}
	err = unix.Mount(m.Tag, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), m.Type, flags, options)
	if errors.Is(err, unix.ENODEV) {
		err = fmt.Errorf("%w (does this kernel have %s?)", err, m.Type)
	}
	return err
}
