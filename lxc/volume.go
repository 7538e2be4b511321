package lxc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	goruntime "runtime"
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
	for _, a := range m.Volumes {
		f, err := mount.Detached(a.Dir, mount.IDMap(m.IDMap), a.ReadOnly)
		if err != nil {
			list.close()
			return nil, fmt.Errorf("volume %q: %w", a.Volume, err)
		}
		list = append(list, f)
	}
	return list, nil
}

func (o opened) close() {
	for _, f := range o {
		f.Close()
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
	for i, a := range m.Volumes {
		dir, inside, err := placeFor(root, m, a)
		if err != nil {
			return err
		}
		dir.Close()
		if err := stageVolume(m, a, o[i]); err != nil {
			return err
		}
		lines.WriteString(config.VolumeLine(m, a.Device, inside))
	}
	return writeVolumes(m, lines.Bytes())
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
		return nil, "", fault.New(fault.WrongState, "volume %q cannot be at %q: %w", a.Volume, a.Path, err)
	}
	return dir, inside, nil
}

func stageVolume(m *instance.Machine, a instance.Attached, volume *os.File) error {
	place := config.VolumeDir(m, a.Device)
	err := os.Mkdir(place, 0o711)
	if err == nil {
		err = mount.Attach(volume, place)
	}
	if err != nil {
		return fmt.Errorf("there is no place to mount volume %q: %w", a.Volume, err)
	}
	return nil
}

func writeVolumes(m *instance.Machine, lines []byte) error {
	if err := os.WriteFile(config.Volumes(m), lines, 0o644); err != nil {
		return fmt.Errorf("its volumes cannot be told to liblxc: %w", err)
	}
	return os.Chmod(config.Volumes(m), 0o644) // whatever the umask
}

// Attach gives a volume to a running container.
func (d *Driver) Attach(ctx context.Context, m *instance.Machine, a instance.Attached) error {
	if a.Dir == "" {
		return fault.New(fault.Unsupported, "volume %q is a block volume, and a container has no disks", a.Volume)
	}
	pid, err := d.awake(m)
	if err != nil {
		return err
	}
	monitor, err := d.stager(m)
	if err != nil {
		return err
	}
	if has, err := inMachine(pid, monitor, m, a); err != nil || len(has) > 0 {
		return err
	}
	if err := d.Detach(ctx, m, a); err != nil { // what a killed command left
		return err
	}
	volume, err := mount.Detached(a.Dir, mount.IDMap(m.IDMap), a.ReadOnly)
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
			return editVolumes(m, a, config.VolumeLine(m, a.Device, inside))
		})
	}
	if err != nil {
		return errors.Join(err, d.Detach(context.WithoutCancel(ctx), m, a))
	}
	return nil
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
	pid, err := d.awake(m)
	if err != nil {
		return err
	}
	monitor, err := d.stager(m)
	if err != nil {
		return err
	}
	if err := takeBack(pid, monitor, m, a); err != nil {
		return err
	}
	return mount.Inside(monitor, func() error {
		if err := editVolumes(m, a, ""); err != nil {
			return err
		}
		place := config.VolumeDir(m, a.Device)
		for {
			err := unix.Unmount(place, unix.MNT_DETACH)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("cannot take away volume %q: %w", a.Volume, err)
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
		return fault.New(fault.Busy, "volume %q is in use: it is mounted at %q as well; unmount that first", a.Volume, has[1].point)
	}
	for _, l := range has {
		err := mount.Inside(pid, func() error { return unix.Unmount(l.point, unix.UMOUNT_NOFOLLOW) })
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Busy, "volume %q is in use: a process works in %q, or something is mounted there; end that first", a.Volume, l.point)
		}
		if err != nil {
			return fmt.Errorf("cannot take away volume %q: %w", a.Volume, err)
		}
	}
	return nil
}

// editVolumes replaces the line of a volume in the file that liblxc reads.
func editVolumes(m *instance.Machine, a instance.Attached, line string) error {
	old, err := os.ReadFile(config.Volumes(m))
	if err != nil {
		return err
	}
	var lines bytes.Buffer
	for l := range strings.Lines(string(old)) {
		if !strings.HasPrefix(l, config.VolumeDir(m, a.Device)+" ") {
			lines.WriteString(l)
		}
	}
	lines.WriteString(line)
	if bytes.Equal(lines.Bytes(), old) {
		return nil
	}
	return writeVolumes(m, lines.Bytes())
}

// mountLine is a line of mountinfo (proc(5)).
type mountLine struct{ device, root, point string }

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
		if l := (mountLine{f[2], unescape.Replace(f[3]), unescape.Replace(f[4])}); meant(l) {
			found = append(found, l)
		}
	}
	return found, nil
}
