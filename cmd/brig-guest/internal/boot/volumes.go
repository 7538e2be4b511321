package boot

import (
	"fmt"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/guest"
)

// plan9 are the options for 9p: nothing is remembered, for others write there, too.
const plan9 = "trans=virtio,version=9p2000.L,msize=262144,cache=none"

// mountVolumes mounts the directories that the host shares, where the image has
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
	options := ""
	if m.Type == "9p" {
		options = plan9
	}
	flags := uintptr(unix.MS_NODEV)
	if m.ReadOnly {
		flags |= unix.MS_RDONLY
	}
	return unix.Mount(m.Tag, fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), m.Type, flags, options)
}
