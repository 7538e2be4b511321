package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/profiles"
)

// resolve makes what counts for an instance of its profiles and of what it says
// itself.
func (m *Manager) resolve(spec *instance.Spec) { m.resolveWith(spec, nil) }

// resolveWith is resolve where some profiles are others than those in the files.
func (m *Manager) resolveWith(spec *instance.Spec, instead map[string]*profiles.Profile) {
	layers, carried, err := m.layers(spec, instead)
	spec.Effective = instance.Effective{Config: spec.Config, Devices: spec.Devices, Carried: carried, Err: err}
	if slices.ContainsFunc(layers, says) {
		merged := merge(spec, layers)
		spec.Effective.Config, spec.Effective.Devices = merged.Values(), merged.Options()
	}
}

func says(p profiles.Profile) bool { return len(p.Config)+len(p.Devices) > 0 }

// merge applies profiles to an instance. What a profile says for the other form is
// left out: that is how one profile serves both.
func merge(spec *instance.Spec, layers []profiles.Profile) profiles.Merged {
	merged := profiles.Merge(layers, spec.Config, spec.Devices)
	maps.DeleteFunc(merged.Config, func(key string, v profiles.Value) bool {
		if v.Origin == profiles.Own {
			return false
		}
		k, err := config.Find(key)
		return err == nil && !k.For(spec.Type)
	})
	return merged
}

// layers gives the profiles of an instance in their order. Where there is none of
// the name, or it cannot be read, the copy that the instance carries counts; without
// one that is an error, and the others are given.
func (m *Manager) layers(spec *instance.Spec, instead map[string]*profiles.Profile) (list []profiles.Profile, carried []string, err error) {
	for _, name := range spec.Profiles {
		p, e := m.profile(m.profileOf(spec.Name, name), instead)
		if e == nil {
			p.Name = name
			list = append(list, p)
			continue
		}
		if i := slices.IndexFunc(spec.Applied, func(l instance.Layer) bool { return l.Name == name }); i >= 0 {
			l := spec.Applied[i]
			list = append(list, profiles.Profile{Name: name, Config: l.Config, Devices: l.Devices})
			carried = append(carried, name)
			continue
		}
		if fault.Is(e, fault.NotFound) {
			e = fault.New(fault.NotFound, "it has the profile %q, which is not here; create it with brig profile create %s, or take it away with brig profile remove %s %s", name, name, spec.Name, name)
		}
		if err == nil {
			err = e
		}
	}
	return list, carried, err
}

func (m *Manager) profile(name string, instead map[string]*profiles.Profile) (profiles.Profile, error) {
	p, ok := instead[name]
	switch {
	case !ok:
		return m.loadProfile(name)
	case p == nil:
		return profiles.Profile{}, fault.New(fault.NotFound, "there is no profile %q", name)
	}
	return *p, nil
}

// copyProfiles notes copies of its profiles in an instance that is about to be
// written. One that is not here stays as the instance carries it.
func (m *Manager) copyProfiles(spec *instance.Spec) error {
	layers, _, err := m.layers(spec, nil)
	if err != nil {
		return err
	}
	spec.Applied = nil
	for _, p := range layers {
		if says(p) || p.Name != profiles.Default {
			p = p.Clone()
			spec.Applied = append(spec.Applied, instance.Layer{Name: p.Name, Config: p.Config, Devices: p.Devices})
		}
	}
	return nil
}

// freshenProfiles makes the copies of its profiles in a new instance what those say by
// now. Its volume is there: whoever edits a profile from now on changes it, too, and an
// edit that has not seen it is over when the profile's lock is free.
func (m *Manager) freshenProfiles(ctx context.Context, made *instance.Spec) error {
	if len(made.Profiles) == 0 {
		return nil
	}
	held, err := m.lockMore(ctx, "create", profileLocks(m.profilesOf(made))...)
	if err != nil {
		return err
	}
	defer held.Release()
	spec := *made
	m.resolve(&spec)
	if err := m.copyProfiles(&spec); err != nil || slices.EqualFunc(spec.Applied, made.Applied, sameLayer) {
		return err
	}
	if err := m.check(&spec); err != nil {
		return err
	}
	inst, err := m.open(ctx, spec.Name)
	if err != nil {
		return err
	}
	inst.spec.Applied = spec.Applied
	return saveSpec(inst.volume, inst.spec)
}

func sameLayer(a, b instance.Layer) bool {
	return a.Name == b.Name && maps.Equal(a.Config, b.Config) && maps.EqualFunc(a.Devices, b.Devices, maps.Equal)
}

// hasProfiles refuses a list of profiles that an instance cannot have: of one that
// is not here, unless the instance carries it, or of one twice.
func (m *Manager) hasProfiles(spec *instance.Spec, applied []instance.Layer) error {
	names := spec.Profiles
	for i, name := range names {
		if err := profiles.CheckName(name); err != nil {
			return err
		}
		if slices.Contains(names[:i], name) {
			return fault.New(fault.Invalid, "the profile %q is given twice", name)
		}
		if slices.ContainsFunc(applied, func(l instance.Layer) bool { return l.Name == name }) {
			continue
		}
		if _, err := m.loadProfile(m.profileOf(spec.Name, name)); err != nil {
			return err
		}
	}
	return nil
}

// check refuses what an instance would have with its profiles, if that cannot be:
// keys that contradict each other, devices in each other's way, what the host lacks.
func (m *Manager) check(spec *instance.Spec) error {
	if spec.Effective.Err != nil {
		return spec.Effective.Err
	}
	if err := m.allowed(spec); err != nil {
		return err
	}
	if err := config.Together(spec.Type, spec.Effective.Config); err != nil {
		return err
	}
	list := devicesOf(spec)
	for i, d := range list {
		if err := apart(d, list[:i]); err != nil {
			return err
		}
	}
	driver, err := m.driver(spec.Type)
	if err != nil {
		return err
	}
	if l, ok := driver.(instance.Limiter); ok {
		return l.CheckLimits(spec.ID, spec.Effective.Config)
	}
	return nil
}

// pending tells what a machine that runs will be given only by its next start: keys,
// and devices as "device NAME".
func pending(spec *instance.Spec, machine *instance.Machine) []string {
	list := pendingKeys(spec, machine)
	for _, d := range devicesOf(spec) {
		if a := deviceIn(machine, d.name); a == nil && !d.absent() || a != nil && !d.is(*a) {
			list = append(list, "device "+d.name)
		}
	}
	for _, a := range machine.Volumes {
		if _, ok := spec.Effective.Devices[a.Device]; !ok {
			list = append(list, "device "+a.Device)
		}
	}
	list = append(list, pendingNICs(spec, machine)...)
	if len(machine.NICs) > 0 && first(machine.NICs[0]) {
		mac, address := wantedNIC(spec)
		if nic := machine.NICs[0]; nic.MAC != mac || !slices.Contains(nic.Addresses, address) {
			list = append(list, "device "+nicName)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

func pendingKeys(spec *instance.Spec, machine *instance.Machine) []string {
	return slices.DeleteFunc(profiles.Changed(machine.Config, spec.Effective.Config), func(key string) bool {
		k, err := config.Find(key)
		return err != nil || !k.OfMachine()
	})
}

// pendingOf is pending for an instance that may be stopped.
func (m *Manager) pendingOf(spec *instance.Spec) []string {
	machine, err := m.running(spec)
	if err != nil || machine == nil {
		return nil
	}
	return pending(spec, machine)
}

// errFor names an instance in an error about what it would become.
func errFor(doing, what, name string, err error) error {
	return fmt.Errorf("cannot %s %q: %q cannot have that: %w", doing, what, name, err)
}
