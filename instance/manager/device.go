package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
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

// DeviceRequest describes a device to be added to an instance.
type DeviceRequest struct {
	Instance string
	Name     string
	Device   map[string]string
}

// deviceArgs are all that is needed to add a device, or to take it away.
type deviceArgs struct {
	Instance, ID string
	Name         string
	Device       map[string]string
	Live         bool               // a running machine gets it, or loses it, at once
	Attached     *instance.Attached // what that is
}

// AddDevice adds a device to an instance. It tells whether a running instance has
// it only after its next start.
func (m *Manager) AddDevice(ctx context.Context, r DeviceRequest) (later bool, err error) {
	inst, held, err := m.openLocked(ctx, "attach a device to", r.Instance)
	if err != nil {
		return false, err
	}
	defer held.Release()
	if _, ok := inst.spec.Devices[r.Name]; ok {
		return false, fault.New(fault.AlreadyExists, "cannot add the device %q to %q: it has one of this name", r.Name, r.Instance)
	}
	d, err := parseDevice(r.Name, r.Device)
	if err != nil {
		return false, err
	}
	if err := apart(d, devicesOf(inst.spec)); err != nil {
		return false, fmt.Errorf("cannot add a device to %q: %w", r.Instance, err)
	}
	locked, err := m.lock(ctx, "attach", d.ref.lock())
	if err != nil {
		return false, err
	}
	defer locked.Release()
	a, err := m.attached(ctx, inst.spec.Type, d)
	if err != nil {
		return false, err
	}
	args := deviceArgs{Instance: r.Instance, ID: inst.spec.ID, Name: r.Name, Device: r.Device, Attached: &a}
	if _, state, err := m.live(inst, "attach to"); err == nil {
		_, args.Live = inst.driver.(instance.Attacher)
		if err := notFrozen(state, r.Instance); args.Live && err != nil {
			return false, err
		}
		later = !args.Live
	}
	if err := m.perform(ctx, "attach", []string{r.Instance, d.ref.lock()}, args); err != nil {
		return false, fmt.Errorf("cannot add the device %q to %q: %w", r.Name, r.Instance, err)
	}
	return later, nil
}

// apart refuses a device that gets into the way of others.
func apart(d diskDevice, others []diskDevice) error {
	for _, other := range others {
		switch {
		case d.path != "" && path.Clean(other.path) == path.Clean(d.path):
			return fault.New(fault.AlreadyExists, "the devices %q and %q would both be at %q", d.name, other.name, d.path)
		case d.ref == other.ref:
			return fault.New(fault.AlreadyExists, "the devices %q and %q would be the same volume", d.name, other.name)
		}
	}
	return nil
}

// checkDevices looks whether a new instance can have the devices that it is to
// have.
func (m *Manager) checkDevices(ctx context.Context, spec *instance.Spec) error {
	list := devicesOf(spec)
	for i, d := range list {
		if err := apart(d, list[:i]); err != nil {
			return err
		}
		if _, err := m.attached(ctx, spec.Type, d); err != nil {
			return err
		}
	}
	return nil
}

// notFrozen refuses to change what a machine has while it stands still.
func notFrozen(state instance.State, name string) error {
	if state.Status == instance.Frozen {
		return fault.New(fault.WrongState, "cannot change the devices of %q: it is paused; resume it first", name)
	}
	return nil
}

// RemoveDevice takes a device away from an instance.
func (m *Manager) RemoveDevice(ctx context.Context, name, device string) error {
	inst, held, err := m.openLocked(ctx, "detach a device from", name)
	if err != nil {
		return err
	}
	defer held.Release()
	keys, ok := inst.spec.Devices[device]
	if !ok {
		return fault.New(fault.NotFound, "cannot remove the device %q from %q: it has none of this name; see brig config device list %s", device, name, name)
	}
	names := []string{name}
	args := deviceArgs{Instance: name, ID: inst.spec.ID, Name: device, Device: keys}
	if d, err := parseDevice(device, keys); err == nil {
		names = append(names, d.ref.lock())
		locked, err := m.lock(ctx, "detach", d.ref.lock())
		if err != nil {
			return err
		}
		defer locked.Release()
	}
	if running, state, err := m.live(inst, "detach from"); err == nil {
		if args.Attached = deviceIn(running, device); args.Attached != nil {
			if _, can := inst.driver.(instance.Attacher); !can {
				return fault.New(fault.WrongState, "cannot remove the device %q from %q: a running %s keeps its volumes; stop it first, with brig stop %s", device, name, inst.spec.Type, name)
			}
			if err := notFrozen(state, name); err != nil {
				return err
			}
			args.Live = true
		}
	}
	if err := m.perform(ctx, "detach", names, args); err != nil {
		return fmt.Errorf("cannot remove the device %q from %q: %w", device, name, err)
	}
	return nil
}

// deviceIn gives a device that a machine runs with, or nil.
func deviceIn(machine *instance.Machine, device string) *instance.Attached {
	i := slices.IndexFunc(machine.Volumes, func(a instance.Attached) bool { return a.Device == device })
	if i < 0 {
		return nil
	}
	return &machine.Volumes[i]
}

func (m *Manager) attachOperation(a deviceArgs) *operation {
	return &operation{steps: []step{
		{
			name: "configuration",
			do:   func(ctx context.Context) error { return m.setDevice(ctx, a, a.Device) },
			undo: func(ctx context.Context) error { return m.setDevice(ctx, a, nil) },
		},
		{
			name: "machine",
			do:   func(ctx context.Context) error { return m.attachLive(ctx, a) },
			undo: func(ctx context.Context) error { return m.detachLive(ctx, a) },
		},
	}}
}

// detachOperation goes backward: a volume that something in the machine uses by
// now cannot be taken away.
func (m *Manager) detachOperation(a deviceArgs) *operation {
	return &operation{steps: []step{
		{
			name: "machine",
			do:   func(ctx context.Context) error { return m.detachLive(ctx, a) },
			undo: func(ctx context.Context) error { return m.attachLive(ctx, a) },
		},
		{
			name: "configuration",
			do:   func(ctx context.Context) error { return m.setDevice(ctx, a, nil) },
			undo: func(ctx context.Context) error { return m.setDevice(ctx, a, a.Device) },
		},
	}, settled: func(ctx context.Context) bool {
		inst, err := m.open(ctx, a.Instance)
		return err == nil && inst.spec.ID == a.ID && inst.spec.Devices[a.Name] == nil
	}}
}

// setDevice notes a device in the configuration of an instance, or takes it away.
func (m *Manager) setDevice(ctx context.Context, a deviceArgs, keys map[string]string) error {
	inst, err := m.open(ctx, a.Instance)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != a.ID {
		return nil
	}
	if err != nil {
		return err
	}
	if maps.Equal(inst.spec.Devices[a.Name], keys) {
		return nil
	}
	if keys == nil {
		delete(inst.spec.Devices, a.Name)
	} else {
		if inst.spec.Devices == nil {
			inst.spec.Devices = map[string]map[string]string{}
		}
		inst.spec.Devices[a.Name] = keys
	}
	return saveSpec(inst.volume, inst.spec)
}

// attachLive gives a device to a running machine and notes that it has it.
func (m *Manager) attachLive(ctx context.Context, a deviceArgs) error {
	machine, driver, err := m.attachable(ctx, a)
	if err != nil || machine == nil {
		return err
	}
	if err := driver.Attach(ctx, machine, *a.Attached); err != nil {
		return err
	}
	if deviceIn(machine, a.Name) == nil {
		machine.Volumes = append(machine.Volumes, *a.Attached)
	}
	return keeper.Save(machine)
}

func (m *Manager) detachLive(ctx context.Context, a deviceArgs) error {
	machine, driver, err := m.attachable(ctx, a)
	if err != nil || machine == nil {
		return err
	}
	if err := driver.Detach(ctx, machine, *a.Attached); err != nil {
		return err
	}
	machine.Volumes = slices.DeleteFunc(machine.Volumes, func(v instance.Attached) bool { return v.Device == a.Name })
	return keeper.Save(machine)
}

// attachable gives the machine that a device is about, or nil if it does not run
// any more.
func (m *Manager) attachable(ctx context.Context, a deviceArgs) (*instance.Machine, instance.Attacher, error) {
	if !a.Live {
		return nil, nil, nil
	}
	inst, err := m.open(ctx, a.Instance)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != a.ID {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	machine, _, err := m.live(inst, "change")
	if fault.Is(err, fault.WrongState) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	driver, ok := inst.driver.(instance.Attacher)
	if !ok {
		return nil, nil, fault.New(fault.Unsupported, "a running %s keeps its volumes", inst.spec.Type)
	}
	return machine, driver, nil
}

// AttachRequest names a custom volume and where an instance is to have it.
type AttachRequest struct {
	Pool, Volume string
	Instance     string
	Device       string // empty: the name of the volume
	Path         string // file systems
	ReadOnly     bool
}

// AttachVolume adds a custom volume to an instance as a device.
func (m *Manager) AttachVolume(ctx context.Context, r AttachRequest) (later bool, err error) {
	ref := refOf(r.Pool, r.Volume)
	// What is wrong with the volume is said before what is wrong with the instance.
	if _, err := m.openVolume(ctx, ref); err != nil {
		return false, err
	}
	device := map[string]string{"type": "disk", "pool": ref.Pool, "source": ref.Name}
	if r.Path != "" {
		device["path"] = r.Path
	}
	if r.ReadOnly {
		device["readonly"] = "true"
	}
	return m.AddDevice(ctx, DeviceRequest{r.Instance, cmp.Or(r.Device, r.Volume), device})
}

// DetachVolume takes a custom volume away from an instance. Without a device it is
// the one that the instance has of the volume.
func (m *Manager) DetachVolume(ctx context.Context, r AttachRequest) error {
	inst, err := m.open(ctx, r.Instance)
	if err != nil {
		return err
	}
	ref := refOf(r.Pool, r.Volume)
	for _, d := range devicesOf(inst.spec) {
		if d.ref == ref && (r.Device == "" || r.Device == d.name) {
			return m.RemoveDevice(ctx, r.Instance, d.name)
		}
	}
	return fault.New(fault.NotFound, "cannot detach volume %q from %q: it is not attached to it", r.Volume, r.Instance)
}
