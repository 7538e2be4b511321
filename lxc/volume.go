package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/lxc/config"
	"brig/storage/mount"

	"golang.org/x/sys/unix"
)

// Custom volumes are mounted with shifted ids on the keeper's stage. A file there
// tells liblxc to bind them into the container at each boot of it, which gives
// mounts that can be taken away again. What is attached and detached in between is
// noted in that file, too, so that a container that reboots by itself has what it
// should.

var _ instance.Attacher = (*Driver)(nil)

// opened are the volumes of a machine, opened before the stage hides a part of the
// host.
type opened []*os.File

func openVolumes(m *instance.Machine) (list opened, err error) {
	for _, a := range slices.Concat(m.Nested, m.Volumes) {
		if a.Node != nil {
			list = append(list, nil)
			continue
		}
		f, err := detached(m, a)
		if err != nil {
			list.close()
			return nil, fmt.Errorf("%s: %w", a, err)
		}
		list = append(list, f)
	}
	return list, nil
}

// detached opens what is attached as a mount that has no place yet.
func detached(m *instance.Machine, a instance.Attached) (*os.File, error) {
	if a.Source == instance.Tmpfs {
		return mount.Memory(mount.IDMap(m.IDMap), a.Size)
	}
	ids := mount.IDMap(m.IDMap)
	if a.Unshifted {
		ids = mount.IDMap{}
	}
	f, err := mount.Detached(a.Dir, ids, a.ReadOnly)
	if a.Source != "" && fault.Is(err, fault.Unsupported) {
		return nil, fault.New(fault.Unsupported, "the file system of %q cannot be mounted with shifted ids; leave out shift of the device %q, or set security.privileged", a.Source, a.Device)
	}
	return f, err
}

func (o opened) close() {
	for _, f := range o {
		f.Close() // of nil: no harm
	}
}

// stage gives the volumes their places, and the container the directories where it
// is to have them.
func (o opened) stage(m *instance.Machine) error {
	root, err := guest.OpenRoot(config.RootDir(m))
	if err != nil {
		return fmt.Errorf("its root cannot be opened: %w", err)
	}
	defer root.Close()
	defer o.close()
	var lines bytes.Buffer
	for i, a := range slices.Concat(m.Nested, m.Volumes) {
		if a.Node != nil {
			err := checkNode(m, a)
			if err == nil {
				err = stageNode(m, a)
			}
			if err != nil {
				return err
			}
			lines.WriteString(config.NodeLine(m, a))
			continue
		}
		dir, inside, err := placeFor(root, m, a)
		if err == nil {
			err = dir.Close()
		}
		if i < len(m.Nested) && (err != nil || inUse(root, a)) {
			// What runs containers inside has to do with what is there, as it did before.
			fmt.Fprintf(os.Stderr, "%s is left as it is: %v\n", a.Path, err)
			continue
		}
		if err != nil {
			return err
		}
		if err := stageVolume(m, a, o[i]); err != nil {
			return err
		}
		lines.WriteString(config.VolumeLine(m, a.Device, inside))
	}
	return writeVolumes(m, lines.Bytes())
}

// inUse tells whether a container has files of its own where it is to have a directory
// for nested containers, which is empty still.
func inUse(root *guest.Root, a instance.Attached) bool {
	dir, _, err := root.OpenDir(a.Path)
	if err != nil {
		return false
	}
	defer dir.Close()
	there, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return false
	}
	defer there.Close()
	own, err := os.Open(a.Dir)
	if err != nil {
		return false
	}
	defer own.Close()
	_, emptyThere := there.Readdirnames(1)
	_, emptyOwn := own.Readdirnames(1)
	return emptyThere == nil && emptyOwn != nil
}

// placeFor gives the directory at which a container is to have a volume, and where
// it really is. A part of the path that is missing is made. Links are the
// container's own and lead nowhere out of it.
func placeFor(root *guest.Root, m *instance.Machine, a instance.Attached) (dir *os.File, inside string, err error) {
	err = asContainerRoot(m.IDMap, func() error {
		if err := root.MkdirAll(a.Path); err != nil {
			return err
		}
		dir, inside, err = root.OpenDir(a.Path)
		return err
	})
	if err == nil && strings.ContainsFunc(inside, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		dir.Close()
		err = errors.New("there is a link in it to a name with a control character")
	}
	if err == nil && inside == "/" {
		dir.Close()
		err = errors.New("there is a link in it to the root directory")
	}
	if err != nil {
		return nil, "", fault.New(fault.WrongState, "%s cannot be at %q: %w", a, a.Path, err)
	}
	return dir, inside, nil
}

func stageVolume(m *instance.Machine, a instance.Attached, volume *os.File) error {
	place := config.VolumeDir(m, a.Device)
	err := os.Mkdir(place, 0o711)
	if err == nil {
		err = mount.Attach(volume, place)
	}
	if err == nil && a.Source != "" {
		// The container's mounts of it are then known to be copies of this one.
		err = unix.Mount("", place, "", unix.MS_SHARED, "")
	}
	if err != nil {
		return fmt.Errorf("there is no place to mount %s: %w", a, err)
	}
	return nil
}

func writeVolumes(m *instance.Machine, lines []byte) error {
	if err := os.WriteFile(config.Volumes(m), lines, 0o644); err != nil {
		return fmt.Errorf("its volumes cannot be told to liblxc: %w", err)
	}
	return os.Chmod(config.Volumes(m), 0o644) // whatever the umask
}

// Attaches tells whether a running container can be given a, or lose it: all but disks.
func (d *Driver) Attaches(_ context.Context, _ *instance.Machine, a instance.Attached) bool {
	return a.Dir != "" || a.Source != ""
}

// Attach gives a volume to a running container.
func (d *Driver) Attach(ctx context.Context, m *instance.Machine, a instance.Attached) error {
	if a.Node != nil {
		return d.attachNode(m, a)
	}
	if a.Dir == "" && a.Source == "" {
		return fault.New(fault.Unsupported, "%s is a block volume, and a container has no disks", a)
	}
	pid, monitor, err := d.both(m)
	if err != nil {
		return err
	}
	if has, err := inMachine(pid, monitor, m, a); err != nil || len(has) > 0 {
		return err
	}
	if err := d.Detach(ctx, m, a); err != nil { // what a killed command left
		return err
	}
	volume, err := detached(m, a)
	if err != nil {
		return err
	}
	defer volume.Close()
	if err := mount.Inside(monitor, func() error { return stageVolume(m, a, volume) }); err != nil {
		return err
	}
	inside, err := handOver(pid, monitor, m, a)
	if err == nil {
		err = mount.Inside(monitor, func() error {
			return editLines(m, config.VolumeDir(m, a.Device), config.VolumeLine(m, a.Device, inside))
		})
	}
	if err != nil {
		return errors.Join(err, d.Detach(context.WithoutCancel(ctx), m, a))
	}
	return nil
}

// both gives processes in the mount namespaces of the running container and of its
// keeper.
func (d *Driver) both(m *instance.Machine) (pid, monitor int, err error) {
	if pid, err = d.awake(m); err == nil {
		monitor, err = d.stager(m)
	}
	return pid, monitor, err
}

// stager gives a process in the mount namespace of the keeper.
func (d *Driver) stager(m *instance.Machine) (int, error) {
	c, err := d.cgroup(m)
	if err != nil {
		return 0, err
	}
	monitor := c.monitor()
	if monitor == 0 {
		return 0, fault.New(fault.Unavailable, "the monitor of container %q was killed, and without it volumes cannot be changed; stop and start it", m.Name)
	}
	return monitor, nil
}

// handOver mounts a staged volume in the running container.
func handOver(pid, monitor int, m *instance.Machine, a instance.Attached) (inside string, err error) {
	root, err := guest.OpenRoot("/proc/" + strconv.Itoa(pid) + "/root")
	if err != nil {
		return "", err
	}
	defer root.Close()
	goruntime.LockOSThread()
	dir, inside, err := placeFor(root, m, a)
	goruntime.UnlockOSThread()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	copied, err := mount.Handed(monitor, config.VolumeDir(m, a.Device), mount.IDMap(m.IDMap))
	if err != nil {
		return "", err
	}
	defer copied.Close()
	return inside, mount.Inside(pid, func() error { return mount.AttachTo(copied, dir) })
}

// Detach takes a volume away from a running container.
func (d *Driver) Detach(_ context.Context, m *instance.Machine, a instance.Attached) error {
	if a.Node != nil {
		return d.detachNode(m, a)
	}
	pid, monitor, err := d.both(m)
	if err != nil {
		return err
	}
	if err := takeBack(pid, monitor, m, a); err != nil {
		return err
	}
	return mount.Inside(monitor, func() error {
		if err := editLines(m, config.VolumeDir(m, a.Device), ""); err != nil {
			return err
		}
		place := config.VolumeDir(m, a.Device)
		for {
			err := unix.Unmount(place, unix.MNT_DETACH)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("cannot take away %s: %w", a, err)
			}
		}
		if err := os.Remove(place); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// inMachine lists the mounts of a staged volume, or of a part of it, in the running
// container.
func inMachine(pid, monitor int, m *instance.Machine, a instance.Attached) ([]mountLine, error) {
	staged, err := mountsAt(monitor, func(l mountLine) bool { return l.point == config.VolumeDir(m, a.Device) })
	if err != nil || len(staged) == 0 {
		return nil, err
	}
	from := staged[0]
	return mountsAt(pid, func(l mountLine) bool {
		if from.peers != "" && l.peers != from.peers && l.master != from.peers {
			return false // another mount of that file system
		}
		return l.device == from.device && strings.HasPrefix(l.root+"/", strings.TrimSuffix(from.root, "/")+"/")
	})
}

// takeBack unmounts a volume in the running container, wherever that has it.
func takeBack(pid, monitor int, m *instance.Machine, a instance.Attached) error {
	has, err := inMachine(pid, monitor, m, a)
	if err != nil {
		return err
	}
	if len(has) > 1 {
		return fault.New(fault.Busy, "%s is in use: it is mounted at %q as well; unmount that first", a, has[1].point)
	}
	for _, l := range has {
		err := mount.Inside(pid, func() error { return unix.Unmount(l.point, unix.UMOUNT_NOFOLLOW) })
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Busy, "%s is in use: a process works in %q, or something is mounted there; end that first", a, l.point)
		}
		if err != nil {
			return fmt.Errorf("cannot take away %s: %w", a, err)
		}
	}
	return nil
}

// mountLine is a line of mountinfo (proc(5)). Peers is the number of the group of
// mounts that propagate to each other, if it is in one, and master that of the group
// that it gets mounts from.
type mountLine struct{ device, root, point, peers, master string }

// mountsAt lists the mounts that a process sees and that are meant.
func mountsAt(pid int, meant func(mountLine) bool) ([]mountLine, error) {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/mountinfo")
	if err != nil {
		return nil, err
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var found []mountLine
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) < 5 {
			continue
		}
		l := mountLine{device: f[2], root: unescape.Replace(f[3]), point: unescape.Replace(f[4])}
		for _, field := range f[5:] {
			if field == "-" {
				break
			}
			if n, ok := strings.CutPrefix(field, "shared:"); ok {
				l.peers = n
			}
			if n, ok := strings.CutPrefix(field, "master:"); ok {
				l.master = n
			}
		}
		if meant(l) {
			found = append(found, l)
		}
	}
	return found, nil
}
