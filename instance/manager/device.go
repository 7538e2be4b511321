package manager

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// diskDevice is a device of type disk that is a custom volume, which is the only
// one there is yet.
type diskDevice struct {
	name     string
	ref      volumeRef
	path     string // file systems
	readOnly bool
}

// diskKeys are the keys of such a device, in Incus's words.
var diskKeys = []string{"type", "pool", "source", "path", "readonly"}

// parseDevice understands a device, or says what is wrong with it.
func parseDevice(name string, keys map[string]string) (d diskDevice, err error) {
	bad := func(class fault.Class, format string, args ...any) error {
		return fault.New(class, "cannot use the device %q: %w", name, fmt.Errorf(format, args...))
	}
	if err := storage.CheckName("device", name); err != nil || len(name) > 63 {
		return d, fault.New(fault.Invalid, "cannot use %q as the name of a device: use 1 to 63 letters, digits, dots, hyphens and underscores, starting with a letter or digit", name)
	}
	switch kind := keys["type"]; {
	case name == "root" || name == "eth0":
		return d, bad(fault.Unsupported, "every instance has one, and it cannot be changed yet")
	case kind == "":
		return d, bad(fault.Invalid, "it has no type; there is disk")
	case kind != "disk":
		return d, bad(fault.Unsupported, "there are no devices of the type %q yet, only disk", kind)
	}
	for key, value := range keys {
		if !slices.Contains(diskKeys, key) {
			return d, bad(fault.Unsupported, "the key %q is not known yet; those of a disk are %s", key, strings.Join(diskKeys, ", "))
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(value) > 4<<10 {
			return d, bad(fault.Invalid, "the value of %q is too long or has a control character", key)
		}
	}
	switch {
	case keys["source"] == "" || keys["pool"] == "":
		return d, bad(fault.Invalid, "it needs pool and source, which name a custom volume: other sources are not possible yet")
	case strings.Contains(keys["source"], "/"):
		return d, bad(fault.Unsupported, "the source %q is no custom volume, and others are not possible yet", keys["source"])
	}
	if err := checkVolumeName(keys["source"]); err != nil {
		return d, bad(fault.Invalid, "%w", err)
	}
	d = diskDevice{name: name, ref: volumeRef{keys["pool"], keys["source"]}, path: keys["path"]}
	if v := keys["readonly"]; v != "" {
		if err := boolean(v); err != nil {
			return d, bad(fault.Invalid, "readonly is %q: %w", v, err)
		}
		d.readOnly = v == "true"
	}
	if d.path != "" {
		if err := checkMountPath(d.path); err != nil {
			return d, bad(fault.Invalid, "the path %q cannot be used: %w", d.path, err)
		}
	}
	return d, nil
}

func boolean(v string) error {
	if v != "true" && v != "false" {
		return fault.New(fault.Invalid, "it must be true or false")
	}
	return nil
}

// maxMountPath bounds the path of a volume in an instance.
const maxMountPath = 1024

// checkMountPath refuses what is no place for a volume: links in it are followed
// when it is mounted, and lead nowhere out of the instance.
func checkMountPath(p string) error {
	switch {
	case !path.IsAbs(p):
		return fault.New(fault.Invalid, "it has to begin with a slash")
	case len(p) > maxMountPath:
		return fault.New(fault.Invalid, "it is too long")
	case slices.Contains(strings.Split(p, "/"), ".."):
		return fault.New(fault.Invalid, "it has a .. in it")
	case path.Clean(p) == "/":
		return fault.New(fault.Invalid, "it is the root directory")
	}
	for _, taken := range []string{"/proc", "/sys", "/dev"} {
		if c := path.Clean(p); c == taken || strings.HasPrefix(c, taken+"/") {
			return fault.New(fault.Invalid, "%s is the kernel's", taken)
		}
	}
	return nil
}

// devicesOf gives the custom volumes of an instance, in the order in which they
// are mounted. What a newer brig knows more is left out.
func devicesOf(spec *instance.Spec) []diskDevice {
	var list []diskDevice
	for name, keys := range spec.Devices {
		if d, err := parseDevice(name, keys); err == nil {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b diskDevice) int {
		return cmp.Or(strings.Compare(path.Clean(a.path), path.Clean(b.path)), strings.Compare(a.name, b.name))
	})
	return list
}

// attached resolves a device: what a driver has to know of it.
func (m *Manager) attached(ctx context.Context, form instance.Type, d diskDevice) (a instance.Attached, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot use the device %q: %w", d.name, err)
		}
	}()
	c, err := m.openVolume(ctx, d.ref)
	if err != nil {
		return a, err
	}
	a = instance.Attached{Device: d.name, Pool: d.ref.Pool, Volume: d.ref.Name, ReadOnly: d.readOnly}
	if c.volume.Content() == storage.Disk {
		return a, blockDevice(&a, c, form, d)
	}
	if d.path == "" {
		return a, fault.New(fault.Invalid, "volume %q is a file system and needs a path to be at", d.ref.Name)
	}
	a.Path = path.Clean(d.path)
	if err := mount(ctx, c.volume); err != nil {
		return a, err
	}
	a.Dir, err = treeOf(c.volume)
	return a, err
}

func blockDevice(a *instance.Attached, c *custom, form instance.Type, d diskDevice) error {
	switch {
	case form != instance.VirtualMachine:
		return fault.New(fault.Unsupported, "volume %q is a block volume, and a container has no disks: use a volume of type filesystem, or a virtual machine", d.ref.Name)
	case d.path != "":
		return fault.New(fault.Invalid, "volume %q is a block volume: it appears as a disk, and has no path", d.ref.Name)
	}
	root := c.volume.Root()
	a.Disk = instance.Disk{Path: root.DiskPath, Format: root.DiskFormat}
	a.Shared = c.info.Config["security.shared"] == "true"
	if a.Shared && a.Disk.Format != "raw" {
		return fault.New(fault.Unsupported, "volume %q has security.shared, and pool %q keeps it as %s, which only one machine can write to; use a pool that keeps disks raw", d.ref.Name, d.ref.Pool, a.Disk.Format)
	}
	return nil
}

// attachedTo resolves all devices of an instance that is about to start.
func (m *Manager) attachedTo(ctx context.Context, spec *instance.Spec) ([]instance.Attached, error) {
	var list []instance.Attached
	for _, d := range devicesOf(spec) {
		a, err := m.attached(ctx, spec.Type, d)
		if fault.Is(err, fault.NotFound) {
			err = fmt.Errorf("%w; take the device away with brig config device remove %s %s", err, spec.Name, d.name)
		}
		if err == nil {
			err = m.alone(ctx, spec, a)
		}
		if err != nil {
			return nil, err
		}
		list = append(list, a)
	}
	return list, nil
}

// alone refuses a block volume that another running machine has.
func (m *Manager) alone(ctx context.Context, spec *instance.Spec, a instance.Attached) error {
	if a.Dir != "" || a.Shared {
		return nil
	}
	ref := volumeRef{a.Pool, a.Volume}
	users, err := m.usersOf(ctx, ref)
	if err != nil {
		return err
	}
	running, err := m.runnersOf(ctx, ref, users)
	if err != nil {
		return err
	}
	for _, r := range running {
		if r.inst.spec.ID != spec.ID {
			return fault.New(fault.WrongState, "the block volume %q is in use by %q, and only one machine can write to it; stop that first, or set security.shared if the machines know how to share a disk", a.Volume, r.inst.spec.Name)
		}
	}
	return nil
}

// lockVolumesOf locks the custom volumes of an instance whose lock is held.
func (m *Manager) lockVolumesOf(ctx context.Context, doing string, spec *instance.Spec) (*store.Held, error) {
	devices := devicesOf(spec)
	if len(devices) == 0 {
		return new(store.Held), nil
	}
	return m.lock(ctx, doing, volumeLocks(devices, func(d diskDevice) volumeRef { return d.ref })...)
}
