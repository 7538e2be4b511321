package manager

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/run"
	"brig/instance/size"
	"brig/instance/store"
	"brig/storage"
)

// VolumeUser is an instance with a device that is a custom volume.
type VolumeUser struct {
	Instance string
	Device   string
}

// volumeUsers tells of all custom volumes which instances have them. The error
// names what could not be looked into: then there may be more.
func (m *Manager) volumeUsers(ctx context.Context) (map[volumeRef][]VolumeUser, error) {
	users := map[volumeRef][]VolumeUser{}
	var errs []error
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		var names []string
		if err == nil {
			names, _, err = volumesIn(ctx, pool)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("pool %q cannot be looked into: %w", in, err))
		}
		for _, name := range slices.DeleteFunc(names, halfDone) {
			volume, err := pool.Open(ctx, instanceKey(name))
			var spec *instance.Spec
			if err == nil {
				spec, err = m.loadSpec(volume, name)
			}
			if fault.Is(err, fault.NotFound) {
				continue
			}
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, d := range volumesOf(spec) {
				users[d.ref] = append(users[d.ref], VolumeUser{name, d.name})
			}
		}
	}
	return users, errors.Join(errs...)
}

// lockedVolume is a custom volume that nobody else changes, attaches, detaches,
// starts with or stops with.
type lockedVolume struct {
	*custom
	users   []VolumeUser
	release func()
}

// lockVolume locks a custom volume and the instances that have it, and opens it.
func (m *Manager) lockVolume(ctx context.Context, doing string, ref volumeRef, others ...string) (*lockedVolume, error) {
	if err := checkVolumeName(ref.Name); err != nil {
		return nil, err
	}
	if _, err := m.pool(ctx, ref.Pool); err != nil {
		return nil, err
	}
	for {
		users, err := m.usersOf(ctx, ref)
		if err != nil {
			return nil, fmt.Errorf("cannot %s volume %q: %w", doing, ref.Name, err)
		}
		v, err := m.lockWith(ctx, doing, ref, users, others)
		if err != nil || v != nil {
			return v, err
		}
	}
}

// lockWith is lockVolume for given users. It gives nil if those are others now.
func (m *Manager) lockWith(ctx context.Context, doing string, ref volumeRef, users []VolumeUser, others []string) (_ *lockedVolume, err error) {
	var all []*store.Held
	release := func() {
		for _, h := range slices.Backward(all) {
			h.Release()
		}
	}
	done := false
	defer func() {
		if !done {
			release()
		}
	}()
	for _, names := range [][]string{instancesOf(users), append([]string{ref.lock()}, others...)} {
		if len(names) == 0 {
			continue
		}
		held, err := m.lock(ctx, doing, names...)
		if err != nil {
			return nil, err
		}
		all = append(all, held)
	}
	now, err := m.usersOf(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("cannot %s volume %q: %w", doing, ref.Name, err)
	}
	if !slices.Equal(now, users) {
		return nil, nil
	}
	c, err := m.openVolume(ctx, ref)
	if err != nil {
		return nil, err
	}
	done = true
	return &lockedVolume{c, users, release}, nil
}

func (m *Manager) usersOf(ctx context.Context, ref volumeRef) ([]VolumeUser, error) {
	users, err := m.volumeUsers(ctx)
	if err != nil {
		return nil, fault.New(fault.Unavailable, "it is not known who uses it: %w", err)
	}
	return users[ref], nil
}

func instancesOf(users []VolumeUser) []string {
	var names []string
	for _, u := range users {
		names = append(names, u.Instance)
	}
	return slices.Compact(slices.Sorted(slices.Values(names)))
}

// unused refuses to do something to a volume that instances have, or would have: by
// a profile that nobody may have now.
func (m *Manager) unused(v *lockedVolume, doing string) error {
	if len(v.users) == 0 {
		return m.inNoProfile(v.ref, doing)
	}
	u := v.users[0]
	return fault.New(fault.WrongState, "cannot %s volume %q: it is attached to %s; detach it first, with brig storage volume detach %s %s %s", doing, v.ref.Name, strings.Join(instancesOf(v.users), ", "), v.ref.Pool, v.ref.Name, u.Instance)
}

func (m *Manager) inNoProfile(ref volumeRef, doing string) error {
	names, err := m.everyProfile()
	if err != nil {
		return fmt.Errorf("cannot %s volume %q: %w", doing, ref.Name, err)
	}
	for _, name := range names {
		p, err := m.loadProfile(name)
		if fault.Is(err, fault.NotFound) {
			continue // it has just gone
		}
		if err != nil {
			return fault.New(fault.Unavailable, "cannot %s volume %q: it is not known who uses it: %w", doing, ref.Name, err)
		}
		of := instance.Spec{Effective: instance.Effective{Devices: p.Devices}}
		for _, d := range devicesOf(&of) {
			if d.ref == ref {
				return fault.New(fault.WrongState, "cannot %s volume %q: the profile %s gives it to instances; take it away there first, with brig profile device remove %s %s", doing, ref.Name, name, name, d.name)
			}
		}
	}
	return nil
}

// runner is an instance that runs with a custom volume.
type runner struct {
	inst    *opened
	machine *instance.Machine
	state   instance.State
	as      instance.Attached
}

// runnersOf gives the instances that run with a volume.
func (m *Manager) runnersOf(ctx context.Context, ref volumeRef, users []VolumeUser) ([]runner, error) {
	var found []runner
	for _, name := range instancesOf(users) {
		inst, err := m.open(ctx, name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		machine, state, err := m.live(inst, "look at")
		if fault.Is(err, fault.WrongState) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, a := range machine.Volumes {
			if (volumeRef{a.Pool, a.Volume}) == ref {
				found = append(found, runner{inst, machine, state, a})
			}
		}
	}
	return found, nil
}

// atRestNow refuses to do something to a volume that a running instance has.
func (m *Manager) atRestNow(ctx context.Context, v *lockedVolume, doing string) error {
	running, err := m.runnersOf(ctx, v.ref, v.users)
	if err != nil {
		return err
	}
	if len(running) > 0 {
		name := running[0].inst.spec.Name
		return fault.New(fault.WrongState, "cannot %s volume %q: %q runs with it; stop it first, with brig stop %s", doing, v.ref.Name, name, name)
	}
	return nil
}

// hold makes an instance stand still with all that it has written on its disks,
// until release, which may be called twice. One that has ended stands still.
func (m *Manager) hold(ctx context.Context, r runner) (release func() error, err error) {
	none := func() error { return nil }
	if r.state.Status == instance.Frozen {
		return none, nil
	}
	quiet := none
	if q, ok := r.inst.driver.(instance.Quiescer); ok {
		if quiet, err = q.Quiesce(ctx, r.machine); err != nil {
			return nil, err
		}
	}
	if err := m.standStill(ctx, r.inst.driver, r.machine); err != nil {
		err = errors.Join(err, quiet())
		if fault.Is(err, fault.WrongState) {
			return none, nil
		}
		return nil, err
	}
	held := true
	return func() error {
		if !held {
			return nil
		}
		held = false
		return errors.Join(r.inst.driver.Thaw(context.WithoutCancel(ctx), r.machine), quiet())
	}, nil
}

// stillPoint names the failpoints around the moment at which an instance stands still.
const stillPoint = "hold.still"

// standStill freezes a machine. If this process is killed before it is let go, whoever
// comes next does that, by what the operation has recorded as held.
func (m *Manager) standStill(ctx context.Context, driver instance.Driver, machine *instance.Machine) error {
	err := m.cfg.Failpoints.hit(stillPoint + ".before")
	if err == nil {
		err = driver.Freeze(ctx, machine)
	}
	if err != nil {
		return err
	}
	if err = m.cfg.Failpoints.hit(stillPoint + ".after"); err != nil {
		err = errors.Join(err, driver.Thaw(context.WithoutCancel(ctx), machine))
	}
	return err
}

// holdAll holds instances, those that only read excepted.
func (m *Manager) holdAll(ctx context.Context, list []runner) (release func() error, err error) {
	var all []func() error
	release = func() error {
		var errs []error
		for _, f := range slices.Backward(all) {
			errs = append(errs, f())
		}
		return errors.Join(errs...)
	}
	for _, r := range list {
		if r.as.ReadOnly {
			continue
		}
		f, err := m.hold(ctx, r)
		if err != nil {
			return nil, errors.Join(err, release())
		}
		all = append(all, f)
	}
	return release, nil
}

// livenessOf says how a volume is made consistent that instances run with. Those
// that are held already need not be held again.
func (m *Manager) livenessOf(running []runner, held string) *storage.Live {
	if len(running) == 0 {
		return nil
	}
	others := slices.DeleteFunc(slices.Clone(running), func(r runner) bool { return r.inst.spec.ID == held })
	return &storage.Live{
		Freeze: func(ctx context.Context) (func() error, error) { return m.holdAll(ctx, others) },
		SwitchDisk: func(ctx context.Context, path string) error {
			writers := slices.DeleteFunc(slices.Clone(running), func(r runner) bool { return r.as.ReadOnly })
			if len(writers) != 1 {
				return fault.New(fault.Unsupported, "%d running instances have it; stop all but one", len(running))
			}
			w := writers[0]
			d, ok := w.inst.driver.(instance.VolumeSwitcher)
			if !ok {
				return fault.New(fault.Unsupported, "%q runs with it; stop that first", w.inst.spec.Name)
			}
			_, err := d.SwitchVolume(ctx, w.machine, w.as.Device, instance.Disk{Path: path, Format: "qcow2"})
			return err
		},
	}
}

// growDisk makes a block volume larger, from what it was.
func (m *Manager) growDisk(ctx context.Context, v *lockedVolume, was string) error {
	if err := m.atRestNow(ctx, v, "resize"); err != nil {
		return err
	}
	n, err := size.Parse(v.info.Config[sizeKey])
	if err != nil {
		return err
	}
	if old, err := size.Parse(was); err == nil && n < old {
		return fault.New(fault.Invalid, "it has %s already, and block volumes can only grow", was)
	}
	if g, ok := v.volume.(storage.Grower); ok {
		return g.Grow(ctx, n)
	}
	root := v.volume.Root()
	_, err = run.Output(ctx, "qemu-img", "resize", "-q", "-f", root.DiskFormat, root.DiskPath, strconv.FormatInt(n, 10))
	return err
}
