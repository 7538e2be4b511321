package manager

import (
	"cmp"
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// diskDevice is a device of type disk: a custom volume, a directory of the host, or
// memory; or a device file.
type diskDevice struct {
	name     string
	ref      volumeRef // of a volume
	source   string    // of a directory: its absolute path on the host; of memory: instance.Tmpfs
	size     int64     // memory: bytes; 0: what the kernel thinks right
	shift    bool      // directories: the ids are those of the instance
	optional bool      // directories: one that is not there is left out
	path     string    // file systems
	readOnly bool
	priority int // boot.priority
	node     nodeDevice
	nic      bool // a network card, which is no disk at all
}

// The keys of such devices, in Incus's words.
var (
	volumeKeys    = []string{"type", "pool", "source", "path", "readonly", "boot.priority"}
	directoryKeys = []string{"type", "source", "path", "readonly", "shift", "required"}
	memoryKeys    = []string{"type", "source", "path", "size"}
)

// parseDevice understands a device, or says what is wrong with it.
func parseDevice(name string, keys map[string]string) (d diskDevice, err error) {
	bad := func(class fault.Class, format string, args ...any) error {
		return fault.New(class, "cannot use the device %q: %w", name, fmt.Errorf(format, args...))
	}
	if err := storage.CheckName("device", name); err != nil || len(name) > 63 {
		return d, fault.New(fault.Invalid, "cannot use %q as the name of a device: use 1 to 63 letters, digits, dots, hyphens and underscores, starting with a letter or digit", name)
	}
	switch kind := keys["type"]; {
	case kind == "nic" && name != "root":
		if _, err := parseNIC(name, keys); err != nil {
			return d, bad(fault.Of(err), "%w", err)
		}
		return diskDevice{name: name, nic: true}, nil
	case name == "root" || name == nicName:
		return d, bad(fault.Unsupported, "every instance has one, and it cannot be changed yet")
	case kind == "":
		return d, bad(fault.Invalid, "it has no type; there are disk, unix-char and unix-block")
	case !slices.Contains(deviceTypes, kind):
		return d, bad(fault.Invalid, "its type is %q; there are %s", kind, strings.Join(deviceTypes, ", "))
	case kind == unixChar || kind == unixBlock:
		for key, value := range keys {
			if strings.ContainsFunc(value, isControl) || len(value) > 4<<10 {
				return d, bad(fault.Invalid, "the value of %q is too long or has a control character", key)
			}
		}
		d = diskDevice{name: name}
		if err := d.parseNode(keys); err != nil {
			return d, bad(fault.Of(err), "%w", err)
		}
		return d, nil
	case kind != "disk":
		return d, bad(fault.Unsupported, "its type is %q, and %s", kind, cmp.Or(refusedTypes[kind], "only disks are possible yet"))
	}
	known, of := volumeKeys, "a disk that is a volume"
	switch {
	case path.IsAbs(keys["source"]):
		known, of = directoryKeys, "a disk that is a directory of the host"
	case keys["source"] == instance.Tmpfs:
		known, of = memoryKeys, "a disk that is memory"
	}
	for key, value := range keys {
		if key == "pool" && (path.IsAbs(keys["source"]) || keys["source"] == instance.Tmpfs) {
			return d, bad(fault.Invalid, "the source %q is in no pool: leave out pool", keys["source"])
		}
		if !slices.Contains(known, key) {
			return d, bad(fault.Unsupported, "the key %q is not known yet; those of %s are %s", key, of, strings.Join(known, ", "))
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(value) > 4<<10 {
			return d, bad(fault.Invalid, "the value of %q is too long or has a control character", key)
		}
	}
	d = diskDevice{name: name, path: keys["path"]}
	if err := d.parseSource(keys); err != nil {
		return d, bad(fault.Of(err), "%w", err)
	}
	required := true
	for key, value := range map[string]*bool{"readonly": &d.readOnly, "shift": &d.shift, "required": &required} {
		if v := keys[key]; v != "" {
			if err := boolean(v); err != nil {
				return d, bad(fault.Invalid, "%s is %q: %w", key, v, err)
			}
			*value = v == "true"
		}
	}
	d.optional = !required
	if v := keys["boot.priority"]; v != "" {
		n, err := strconv.ParseUint(v, 10, 16)
		if err != nil {
			return d, bad(fault.Invalid, "boot.priority is %q: want a number from 0 to 65535", v)
		}
		d.priority = int(n)
	}
	if d.path != "" {
		if err := checkMountPath(d.path); err != nil {
			return d, bad(fault.Invalid, "the path %q cannot be used: %w", d.path, err)
		}
	}
	return d, nil
}

// parseSource understands what a disk is made of.
func (d *diskDevice) parseSource(keys map[string]string) error {
	source := keys["source"]
	switch {
	case path.IsAbs(source):
		if keys["path"] == "" {
			return fault.New(fault.Invalid, "it needs a path to be at")
		}
		var err error
		d.source, err = hostPath(source)
		return err
	case source == instance.Tmpfs:
		if keys["path"] == "" {
			return fault.New(fault.Invalid, "it needs a path to be at")
		}
		d.source = source
		return d.parseSize(keys["size"])
	case source == "" || keys["pool"] == "":
		return fault.New(fault.Invalid, "it needs pool and source, which name a custom volume, or a source that begins with a slash, which is a directory of the host, or the source %s, which is memory", instance.Tmpfs)
	case strings.Contains(source, "/"):
		return fault.New(fault.Unsupported, "the source %q is a part of a custom volume, which is not possible yet: use all of it", source)
	}
	if err := checkVolumeName(source); err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	d.ref = volumeRef{keys["pool"], source}
	return nil
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

// devicesOf gives the disks of an instance, in the order in which they are mounted.
// What a newer brig knows more is left out.
func devicesOf(spec *instance.Spec) []diskDevice {
	var list []diskDevice
	for name, keys := range spec.Effective.Devices {
		if d, err := parseDevice(name, keys); err == nil && !d.nic {
			list = append(list, d)
		}
	}
	slices.SortFunc(list, func(a, b diskDevice) int {
		return cmp.Or(strings.Compare(path.Clean(a.path), path.Clean(b.path)), strings.Compare(a.name, b.name))
	})
	return list
}

// volumesOf gives those that are custom volumes.
func volumesOf(spec *instance.Spec) []diskDevice {
	return slices.DeleteFunc(devicesOf(spec), func(d diskDevice) bool { return d.source != "" })
}

// attached resolves a device: what a driver has to know of it.
func (m *Manager) attached(ctx context.Context, form instance.Type, d diskDevice) (a instance.Attached, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot use the device %q: %w", d.name, err)
		}
	}()
	switch {
	case d.node.kind != "":
		return d.attachedNode(form)
	case d.source == "":
	case d.source == instance.Tmpfs:
		return d.memory(), nil
	default:
		return d.directory(form)
	}
	c, err := m.openVolume(ctx, d.ref)
	if err != nil {
		return a, err
	}
	a = instance.Attached{Device: d.name, Pool: d.ref.Pool, Volume: d.ref.Name, ReadOnly: d.readOnly}
	if err := mount(ctx, c.volume); err != nil {
		return a, err
	}
	if c.volume.Content() == storage.Disk {
		return a, blockDevice(&a, c, form, d)
	}
	if d.priority != 0 {
		return a, fault.New(fault.Invalid, "volume %q is a file system, from which nothing boots: leave out boot.priority", d.ref.Name)
	}
	if d.path == "" {
		return a, fault.New(fault.Invalid, "volume %q is a file system and needs a path to be at", d.ref.Name)
	}
	a.Path = path.Clean(d.path)
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
	a.Priority = d.priority
	if c.info.Content == instance.ContentISO {
		a.CDROM, a.ReadOnly = true, true
	}
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
		if d.absent() {
			continue
		}
		a, err := m.attached(ctx, spec.Type, d)
		if fault.Is(err, fault.NotFound) {
			err = fmt.Errorf("%w; take the device away with brig config device remove %s %s", err, spec.Name, d.name)
		}
		if err == nil {
			err = m.allowedDevice(spec, d.name, spec.Effective.Devices[d.name], a)
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
	if a.Dir != "" || a.Source != "" || a.Shared || a.CDROM {
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
	devices := volumesOf(spec)
	if len(devices) == 0 {
		return new(store.Held), nil
	}
	return m.lock(ctx, doing, volumeLocks(devices, func(d diskDevice) volumeRef { return d.ref })...)
}
