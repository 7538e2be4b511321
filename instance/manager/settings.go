package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/profiles"
)

// Configure changes configuration keys of an instance, all of them or none. It
// gives those, sorted, that a running instance obeys only after its next start.
func (m *Manager) Configure(ctx context.Context, name string, c ConfigChange) (later []string, err error) {
	return m.Change(ctx, name, func(s *Settings) error {
		for _, key := range c.Unset {
			if _, ok := s.Config[key]; !ok {
				// A key that is no key at all is worth to be told apart.
				if _, err := config.Find(key); err != nil {
					return err
				}
				return fault.New(fault.NotFound, "%q is not set", key)
			}
			delete(s.Config, key)
		}
		maps.Copy(s.Config, c.Set)
		return nil
	})
}

// Settings gives what people wrote for an instance.
func (m *Manager) Settings(ctx context.Context, name string) (Settings, error) {
	inst, err := m.open(ctx, name)
	if err != nil {
		return Settings{}, err
	}
	return settingsOf(inst.spec), nil
}

// Change lets edit change the settings of an instance, all or none. A running one
// obeys what it can at once. What it obeys only after its next start, of what was
// changed, is given: keys, and devices as "device NAME".
func (m *Manager) Change(ctx context.Context, name string, edit func(*Settings) error) (later []string, err error) {
	admitted, err := m.admit(ctx, "configure", name)
	if err != nil {
		return nil, err
	}
	defer admitted.release()
	inst, held, err := m.openLocked(ctx, "configure", name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	from, to := settingsOf(inst.spec), settingsOf(inst.spec)
	if err := edit(&to); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	spec := *inst.spec
	to.applyTo(&spec)
	if !slices.Equal(from.Profiles, to.Profiles) {
		held, err := m.lock(ctx, "configure", profileLocks(m.profilesOf(&spec))...)
		if err != nil {
			return nil, err
		}
		defer held.Release()
	}
	err = m.checkSettings(inst.spec, &spec)
	if err == nil {
		err = admitted.check(ctx, &spec)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	if err := m.checkNewDepends(ctx, inst.spec, &spec); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	locked, err := m.lockDevices(ctx, "configure", []*instance.Spec{inst.spec, &spec})
	if err != nil {
		return nil, err
	}
	defer locked.Release()
	if err := m.checkNIC(ctx, inst.spec, &spec); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	if err := m.checkNewDevices(ctx, inst.spec, &spec); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	before := m.pendingOf(inst.spec)
	if m.state(inst.spec).Status == instance.Stopped {
		if err := m.copyProfiles(&spec); err != nil {
			return nil, fmt.Errorf("cannot configure %q: %w", name, err)
		}
		if err := saveSpec(inst.volume, &spec); err != nil {
			return nil, err
		}
		m.tell("instance-updated", name, nil)
		if len(moreNICs(inst.spec)) > 0 {
			return nil, m.keepOneAddress(&spec)
		}
		return nil, nil
	}
	args := reconfigureArgs{Instances: []instanceChange{{name, inst.spec.ID, &from, &to}}}
	locks := append([]string{name}, deviceLocks([]*instance.Spec{inst.spec, &spec})...)
	if err := m.perform(ctx, "reconfigure", locks, args); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	m.tell("instance-updated", name, nil)
	return newlyPending(before, m.pendingOf(&spec), inst.spec, &spec), nil
}

// newlyPending leaves of what waits for the next start what a change made wait, or
// what it was about.
func newlyPending(before, after []string, was, is *instance.Spec) []string {
	changed := profiles.Changed(was.Effective.Config, is.Effective.Config)
	return slices.DeleteFunc(after, func(what string) bool {
		return slices.Contains(before, what) && !slices.Contains(changed, what)
	})
}

// checkSettings refuses what an instance cannot become. What it has already may come
// from a newer brig, and is not judged.
func (m *Manager) checkSettings(was, is *instance.Spec) error {
	set := maps.Clone(is.Config)
	maps.DeleteFunc(set, func(key, value string) bool { old, ok := was.Config[key]; return ok && old == value })
	if err := config.Check(is.Type, set); err != nil {
		return err
	}
	for device, keys := range is.Devices {
		if old, ok := was.Devices[device]; ok && maps.Equal(old, keys) {
			continue
		}
		if keys["type"] == "none" {
			if err := checkMask(device, keys); err != nil {
				return err
			}
		} else if _, err := parseDevice(device, keys); err != nil {
			return err
		}
	}
	if !slices.Equal(was.Profiles, is.Profiles) {
		if err := m.hasProfiles(is, was.Applied); err != nil {
			return err
		}
	}
	m.resolve(is)
	return m.check(is)
}

// checkNewDevices refuses devices that an instance cannot have, as far as they are
// others than those it has.
func (m *Manager) checkNewDevices(ctx context.Context, was, is *instance.Spec) error {
	old := devicesOf(was)
	for _, d := range devicesOf(is) {
		if slices.Contains(old, d) || d.absent() {
			continue
		}
		if _, err := m.attached(ctx, is.Type, d); err != nil {
			return err
		}
	}
	return nil
}

// checkNewDepends refuses what an instance cannot wait for at boot, if that changes.
func (m *Manager) checkNewDepends(ctx context.Context, was, is *instance.Spec) error {
	value := is.Effective.Config["boot.depends"]
	if value == "" || value == was.Effective.Config["boot.depends"] {
		return nil
	}
	return m.checkDepends(ctx, is.Name, value)
}

// deviceLocks are the locks of the volumes that are devices of instances.
func deviceLocks(specs []*instance.Spec) []string {
	var names []string
	for _, spec := range specs {
		names = append(names, volumeLocks(volumesOf(spec), func(d diskDevice) volumeRef { return d.ref })...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (m *Manager) lockDevices(ctx context.Context, doing string, specs []*instance.Spec) (*store.Held, error) {
	names := deviceLocks(specs)
	if len(names) == 0 {
		return new(store.Held), nil
	}
	return m.lock(ctx, doing, names...)
}
