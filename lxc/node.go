package lxc

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/lxc/config"
	"brig/lxc/runtime"
	"brig/storage/mount"

	"golang.org/x/sys/unix"
)

// Device files cannot be made in a user namespace, nor used on a file system that was
// mounted in one. So the keeper has a file system for them on its stage, and the
// container gets mounts of single files of it. What may be done with them is said by the
// container's cgroup, too.

// stageNode makes a device file in the mount namespace of the keeper.
func stageNode(m *instance.Machine, a instance.Attached) error {
	dir := config.NodeDir(m)
	err := os.Mkdir(dir, 0o711)
	if err == nil {
		err = unix.Mount("brig", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NOEXEC, "size=64k,nr_inodes=1024,mode=0711")
	}
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	n, file := a.Node, filepath.Join(dir, a.Device)
	kind := uint32(unix.S_IFCHR)
	if n.Block {
		kind = unix.S_IFBLK
	}
	if err == nil {
		err = unix.Mknod(file, kind, int(unix.Mkdev(n.Major, n.Minor)))
	}
	if err == nil {
		err = os.Chown(file, int(m.IDMap.Base+n.UID), int(m.IDMap.Base+n.GID))
	}
	if err == nil {
		err = os.Chmod(file, fs.FileMode(n.Mode)) // whatever the umask
	}
	if err != nil {
		return fmt.Errorf("%s cannot be made: %w", a, err)
	}
	return nil
}

// checkNode refuses owners that the container does not have.
func checkNode(m *instance.Machine, a instance.Attached) error {
	if n := a.Node; !m.Privileged() && (n.UID >= m.IDMap.Count || n.GID >= m.IDMap.Count) {
		return fault.New(fault.Invalid, "%s cannot belong to %d:%d: the container has ids below %d", a, n.UID, n.GID, m.IDMap.Count)
	}
	return nil
}

// attachNode gives a device file to a running container.
func (d *Driver) attachNode(m *instance.Machine, a instance.Attached) error {
	if err := checkNode(m, a); err != nil {
		return err
	}
	pid, monitor, err := d.both(m)
	if err != nil {
		return err
	}
	if has, err := nodeIn(pid, monitor, m, a); err != nil || len(has) > 0 {
		return err
	}
	if err := d.detachNode(m, a); err != nil { // what a killed command left
		return err
	}
	err = mount.Inside(monitor, func() error { return stageNode(m, a) })
	if err == nil {
		err = handNode(pid, monitor, m, a)
	}
	if err == nil {
		err = d.allow(m, a, false)
	}
	if err == nil {
		err = mount.Inside(monitor, func() error { return editLines(m, filepath.Join(config.NodeDir(m), a.Device), config.NodeLine(m, a)) })
	}
	if err != nil {
		return errors.Join(err, d.detachNode(m, a))
	}
	return nil
}

// handNode mounts a staged device file in the running container.
func handNode(pid, monitor int, m *instance.Machine, a instance.Attached) error {
	root, err := guest.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return err
	}
	defer root.Close()
	var place *os.File
	goruntime.LockOSThread()
	err = asContainerRoot(m.IDMap, func() error {
		place, err = root.Place(a.Path)
		return err
	})
	goruntime.UnlockOSThread()
	if err != nil {
		return fault.New(fault.WrongState, "%s cannot be at %q: %w", a, a.Path, err)
	}
	defer place.Close()
	copied, err := mount.Handed(monitor, filepath.Join(config.NodeDir(m), a.Device), mount.IDMap(m.IDMap))
	if err != nil {
		return err
	}
	defer copied.Close()
	return mount.Inside(pid, func() error { return mount.AttachTo(copied, place) })
}

// detachNode takes a device file away from a running container. Who has it open keeps
// it open.
func (d *Driver) detachNode(m *instance.Machine, a instance.Attached) error {
	pid, monitor, err := d.both(m)
	if err != nil {
		return err
	}
	has, err := nodeIn(pid, monitor, m, a)
	if err != nil {
		return err
	}
	for _, l := range has {
		if err := mount.Inside(pid, func() error { return unix.Unmount(l.point, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH) }); err != nil {
			return fmt.Errorf("cannot take away %s: %w", a, err)
		}
	}
	if err := d.allow(m, a, true); err != nil {
		return err
	}
	if err := removePlace(pid, m, a); err != nil {
		fmt.Fprintln(os.Stderr, err) // a container may do with its files what it likes
	}
	return mount.Inside(monitor, func() error {
		file := filepath.Join(config.NodeDir(m), a.Device)
		if err := editLines(m, file, ""); err != nil {
			return err
		}
		if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

func removePlace(pid int, m *instance.Machine, a instance.Attached) error {
	root, err := guest.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return err
	}
	defer root.Close()
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	err = asContainerRoot(m.IDMap, func() error { return root.RemovePlace(a.Path) })
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// allow lets a container use a device, or with deny not any more, unless it may by
// another rule.
func (d *Driver) allow(m *instance.Machine, a instance.Attached, deny bool) error {
	same := func(b instance.Attached) bool {
		return b.Node != nil && b.Device != a.Device && b.Node.Rule() == a.Node.Rule()
	}
	if deny && (config.MayUse(a.Node.Rule()) || slices.ContainsFunc(m.Volumes, same)) {
		return nil
	}
	c, err := d.cgroup(m)
	if err != nil {
		return err
	}
	return c.allow(m, a.Node.Rule(), deny)
}

func (c cgroup) allow(m *instance.Machine, rule string, deny bool) (err error) {
	switch {
	case !c.h.Devices:
	case c.h.Unified:
		err = runtime.Open(config.PublicDir(m)).Allow(rule, deny)
	default:
		err = c.h.Allow(c.names.Payload, rule, deny)
	}
	if err != nil {
		return fmt.Errorf("its cgroup cannot be changed: %w", err)
	}
	return nil
}

// allowAgain lets a container that has booted again use the devices that it has by now,
// and not those that it had when it was started.
func (c cgroup) allowAgain(now *instance.Machine) error {
	text, err := os.ReadFile(now.Path(config.File))
	if err != nil {
		return err
	}
	rules := map[string]bool{} // true: to be denied
	for _, rule := range config.Nodes(string(text), now) {
		rules[rule] = true
	}
	for _, a := range now.Volumes {
		if a.Node != nil {
			rules[a.Node.Rule()] = false
		}
	}
	for rule, deny := range rules {
		if err := c.allow(now, rule, deny); err != nil {
			return err
		}
	}
	return nil
}

// nodeIn lists the mounts of a staged device file in the running container.
func nodeIn(pid, monitor int, m *instance.Machine, a instance.Attached) ([]mountLine, error) {
	staged, err := mountsAt(monitor, func(l mountLine) bool { return l.point == config.NodeDir(m) })
	if err != nil || len(staged) == 0 {
		return nil, err
	}
	return mountsAt(pid, func(l mountLine) bool { return l.device == staged[0].device && l.root == "/"+a.Device })
}

// editLines replaces the line of what is staged at a path in the file that liblxc reads.
func editLines(m *instance.Machine, staged, line string) error {
	old, err := os.ReadFile(config.Volumes(m))
	if err != nil {
		return err
	}
	var lines bytes.Buffer
	for l := range strings.Lines(string(old)) {
		if !strings.HasPrefix(l, staged+" ") {
			lines.WriteString(l)
		}
	}
	lines.WriteString(line)
	if bytes.Equal(lines.Bytes(), old) {
		return nil
	}
	return writeVolumes(m, lines.Bytes())
}
