package manager

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/profiles"
)

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
	if slices.Contains([]string{"none", "nic"}, r.Device["type"]) || r.Name == nicName || m.ofProfile(ctx, r.Instance, r.Name) {
		return m.overrideDevice(ctx, r.Instance, r.Name, r.Device)
	}
	admitted, err := m.admit(ctx, "attach", r.Instance)
	if err != nil {
		return false, err
	}
	defer admitted.release()
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
	err = apart(d, devicesOf(inst.spec))
	if err == nil {
		err = m.allowedDevice(inst.spec, r.Name, r.Device, instance.Attached{})
	}
	if err != nil {
		return false, fmt.Errorf("cannot add a device to %q: %w", r.Instance, err)
	}
	locked, err := m.lockSource(ctx, "attach", d)
	if err != nil {
		return false, err
	}
	defer locked.Release()
	args := deviceArgs{Instance: r.Instance, ID: inst.spec.ID, Name: r.Name, Device: r.Device}
	if !d.absent() {
		a, err := m.attached(ctx, inst.spec.Type, d)
		if err == nil {
			args.Device, err = asDisc(r.Device, a)
		}
		if err == nil {
			err = m.allowedDevice(inst.spec, r.Name, r.Device, a)
		}
		if err != nil {
			return false, err
		}
		args.Attached = &a
	}
	if running, state, err := m.live(inst, "attach to"); err == nil && args.Attached != nil {
		args.Live = attaches(ctx, inst.driver, running, *args.Attached)
		if args.Live {
			err = notFrozen(state, r.Instance)
			if err == nil {
				err = m.alone(ctx, inst.spec, *args.Attached)
			}
		}
		if err != nil {
			return false, err
		}
		later = !args.Live
	}
	if err := m.perform(ctx, "attach", append([]string{r.Instance}, d.locks()...), args); err != nil {
		return false, fmt.Errorf("cannot add the device %q to %q: %w", r.Name, r.Instance, err)
	}
	return later, nil
}

// ofProfile tells whether a profile of an instance has a device of this name, or the
// instance masks what no profile has any more.
func (m *Manager) ofProfile(ctx context.Context, name, device string) bool {
	inst, err := m.open(ctx, name)
	if err != nil {
		return false // whoever opens it next says so
	}
	layers, _, _ := m.layers(inst.spec, nil)
	return inst.spec.Devices[device]["type"] == "none" || slices.ContainsFunc(layers, func(p profiles.Profile) bool { return p.Devices[device] != nil })
}

// overrideDevice puts a device in the place of that of a profile, or with nil takes
// it away, so that the profile's counts again.
func (m *Manager) overrideDevice(ctx context.Context, name, device string, keys map[string]string) (later bool, err error) {
	what, err := m.Change(ctx, name, func(s *Settings) error {
		_, has := s.Devices[device]
		switch {
		case keys == nil && !has && device == nicName:
			return fault.New(fault.WrongState, "every instance has the device %q, and this one says nothing of it", device)
		case keys == nil && !has:
			return fault.New(fault.WrongState, "the device %q is of a profile; mask it with brig config device add %s %s none", device, name, device)
		case keys == nil:
			delete(s.Devices, device)
		case has:
			return fault.New(fault.AlreadyExists, "it has a device %q of its own", device)
		default:
			s.Devices[device] = keys
		}
		return nil
	})
	return slices.Contains(what, "device "+device), err
}

// apart refuses a device that gets into the way of others.
func apart(d diskDevice, others []diskDevice) error {
	for _, other := range others {
		switch {
		case d.name == other.name: // a profile's, which the own one stands for
		case d.path != "" && path.Clean(other.path) == path.Clean(d.path):
			return fault.New(fault.AlreadyExists, "the devices %q and %q would both be at %q", d.name, other.name, d.path)
		case d.source == "" && d.ref == other.ref:
			return fault.New(fault.AlreadyExists, "the devices %q and %q would be the same volume", d.name, other.name)
		}
	}
	return nil
}

// checkDevices looks whether a new instance can have the devices that it is to
// have.
func (m *Manager) checkDevices(ctx context.Context, spec *instance.Spec) error {
	if err := m.checkNIC(ctx, nil, spec); err != nil {
		return err
	}
	list := devicesOf(spec)
	for i, d := range list {
		if err := apart(d, list[:i]); err != nil {
			return err
		}
		if d.absent() {
			continue
		}
		a, err := m.attached(ctx, spec.Type, d)
		if keys, own := spec.Devices[d.name]; own && err == nil {
			spec.Devices[d.name], err = asDisc(keys, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// asDisc has the device of a disc say that it is only read, which is what snapshots and
// others go by.
func asDisc(keys map[string]string, a instance.Attached) (map[string]string, error) {
	if !a.CDROM || keys["readonly"] == "true" {
		return keys, nil
	}
	if keys["readonly"] != "" {
		return nil, fault.New(fault.Invalid, "cannot use the device %q: volume %q is the image of a disc, which is only read", a.Device, a.Volume)
	}
	keys = maps.Clone(keys)
	keys["readonly"] = "true"
	return keys, nil
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
	if device == nicName || m.ofProfile(ctx, name, device) {
		_, err := m.overrideDevice(ctx, name, device, nil)
		return err
	}
	inst, held, err := m.openLocked(ctx, "detach a device from", name)
	if err != nil {
		return err
	}
	defer held.Release()
	keys, ok := inst.spec.Devices[device]
	if !ok {
		return fault.New(fault.NotFound, "cannot remove the device %q from %q: it has none of this name; see brig config device list %s", device, name, name)
	}
	if keys["type"] == "nic" {
		err := m.canLose(ctx, inst, device)
		held.Release()
		if err != nil {
			return err
		}
		_, err = m.overrideDevice(ctx, name, device, nil)
		return err
	}
	names := []string{name}
	args := deviceArgs{Instance: name, ID: inst.spec.ID, Name: device, Device: keys}
	if d, err := parseDevice(device, keys); err == nil {
		names = append(names, d.locks()...)
		locked, err := m.lockSource(ctx, "detach", d)
		if err != nil {
			return err
		}
		defer locked.Release()
	}
	if running, state, err := m.live(inst, "detach from"); err == nil {
		if args.Attached = deviceIn(running, device); args.Attached != nil {
			if !attaches(ctx, inst.driver, running, *args.Attached) {
				return keeps(inst, device)
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

// keeps is the error for a device that a running machine cannot lose.
func keeps(inst *opened, device string) error {
	name := inst.spec.Name
	return fault.New(fault.WrongState, "cannot remove the device %q from %q: a running %s keeps what it has had since its start; stop it first, with brig stop %s", device, name, inst.spec.Type, name)
}

// attaches tells whether a running machine can be given a device, or lose it.
func attaches(ctx context.Context, driver instance.Driver, machine *instance.Machine, a instance.Attached) bool {
	attacher, ok := driver.(instance.Attacher)
	return ok && attacher.Attaches(ctx, machine, a)
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
