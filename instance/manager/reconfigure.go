package manager

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/profiles"
)

// Settings are the part of an instance that people write.
type Settings struct {
	Description string                       `json:"description"`
	Ephemeral   bool                         `json:"ephemeral"`
	Config      map[string]string            `json:"config"`
	Devices     map[string]map[string]string `json:"devices"`
	Profiles    []string                     `json:"profiles"` // a later one counts more
}

func settingsOf(spec *instance.Spec) Settings {
	s := Settings{spec.Description, spec.Ephemeral, maps.Clone(spec.Config), devices(spec.Devices), slices.Clone(spec.Profiles)}
	if s.Config == nil {
		s.Config = map[string]string{}
	}
	return s
}

func (s Settings) applyTo(spec *instance.Spec) {
	spec.Description, spec.Ephemeral = s.Description, s.Ephemeral
	spec.Config, spec.Devices, spec.Profiles = s.Config, s.Devices, s.Profiles
}

// reconfigureArgs are all that is needed to change profiles and the instances that
// have them, or to change them back.
type reconfigureArgs struct {
	Profiles  []profileChange  `json:",omitempty"`
	Instances []instanceChange `json:",omitempty"`
}

// profileChange says what a profile was and what it is to be; nil is none.
type profileChange struct {
	Name     string
	From, To *profiles.Profile
}

// instanceChange says the same of an instance. Nil: what it says itself stays, and
// only its profiles become others.
type instanceChange struct {
	Name, ID string
	From, To *Settings
}

// reconfigureOperation changes files first and then the machines that run. If one of
// those cannot be as it should, everything is changed back, the machines included:
// that is what the first step undoes, when the files say again what they said.
func (m *Manager) reconfigureOperation(a reconfigureArgs) *operation {
	return &operation{steps: []step{
		{
			name: "begin",
			do:   func(context.Context) error { return nil },
			undo: func(ctx context.Context) error { return m.conformAll(ctx, a.Instances) },
		},
		{
			name: "profiles",
			do:   func(context.Context) error { return m.writeProfiles(a.Profiles, false) },
			undo: func(context.Context) error { return m.writeProfiles(a.Profiles, true) },
		},
		{
			name: "configuration",
			do:   func(ctx context.Context) error { return m.writeSettings(ctx, a.Instances, false) },
			undo: func(ctx context.Context) error {
				// The copies of profiles are to be those that were there.
				err := m.writeProfiles(a.Profiles, true)
				return errors.Join(err, m.writeSettings(ctx, a.Instances, true))
			},
		},
		{name: "machines", do: func(ctx context.Context) error { return m.conformAll(ctx, a.Instances) }},
	}}
}

// writeProfiles makes profiles what they are to be, or with back what they were.
func (m *Manager) writeProfiles(changes []profileChange, back bool) error {
	for _, c := range changes {
		to := c.To
		if back {
			to = c.From
		}
		var err error
		if to == nil {
			err = m.removeProfile(c.Name)
		} else {
			err = m.saveProfile(c.Name, *to)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeSettings does so for instances. Those that are gone are passed over.
func (m *Manager) writeSettings(ctx context.Context, changes []instanceChange, back bool) error {
	for _, c := range changes {
		inst, err := m.same(ctx, c.Name, c.ID)
		if err != nil {
			return err
		}
		if inst == nil {
			continue
		}
		to := c.To
		if back {
			to = c.From
		}
		if to != nil {
			to.applyTo(inst.spec)
		}
		if err := m.copyProfiles(inst.spec); err != nil && !back {
			return err
		}
		if err := saveSpec(inst.volume, inst.spec); err != nil {
			return err
		}
	}
	return nil
}

// same opens an instance that is still the one with an id, or gives nil.
func (m *Manager) same(ctx context.Context, name, id string) (*opened, error) {
	inst, err := m.open(ctx, name)
	if fault.Is(err, fault.NotFound) || err == nil && inst.spec.ID != id {
		return nil, nil
	}
	return inst, err
}

func (m *Manager) conformAll(ctx context.Context, changes []instanceChange) error {
	for _, c := range changes {
		inst, err := m.same(ctx, c.Name, c.ID)
		if err == nil && inst != nil {
			err = m.conform(ctx, inst)
		}
		if err != nil {
			return fmt.Errorf("%q, which runs, cannot be changed: %w", c.Name, err)
		}
	}
	return nil
}

// conform makes a running machine what its configuration says now, as far as that is
// possible while it runs.
func (m *Manager) conform(ctx context.Context, inst *opened) error {
	machine, state, err := m.live(inst, "change")
	if fault.Is(err, fault.WrongState) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := m.conformDevices(ctx, inst, machine, state); err != nil {
		return err
	}
	if err := m.conformNICs(ctx, inst, machine, state); err != nil {
		return err
	}
	now := maps.Clone(machine.Config)
	if now == nil {
		now = map[string]string{}
	}
	if l, ok := inst.driver.(instance.Limiter); ok {
		later, err := l.Limit(ctx, machine, inst.spec.Effective.Config)
		if err != nil {
			return err
		}
		for _, key := range pendingKeys(inst.spec, machine) {
			if k, err := config.Find(key); err != nil || !k.Live || slices.Contains(later, key) {
				continue
			}
			if value, ok := inst.spec.Effective.Config[key]; ok {
				now[key] = value
			} else {
				delete(now, key)
			}
		}
	}
	if maps.Equal(now, machine.Config) {
		return nil
	}
	machine.Config = now
	return keeper.Save(machine)
}

// conformDevices gives a running machine the volumes that it is to have, and takes
// others away, where its driver can do that.
func (m *Manager) conformDevices(ctx context.Context, inst *opened, machine *instance.Machine, state instance.State) error {
	driver, ok := inst.driver.(instance.Attacher)
	if !ok {
		return nil
	}
	wanted := devicesOf(inst.spec)
	for _, a := range slices.Clone(machine.Volumes) {
		if slices.ContainsFunc(wanted, func(d diskDevice) bool { return d.is(a) }) || !driver.Attaches(ctx, machine, a) {
			continue
		}
		if err := notFrozen(state, inst.spec.Name); err != nil {
			return err
		}
		if err := driver.Detach(ctx, machine, a); err != nil {
			return err
		}
		machine.Volumes = slices.DeleteFunc(machine.Volumes, func(v instance.Attached) bool { return v.Device == a.Device })
		if err := keeper.Save(machine); err != nil {
			return err
		}
	}
	for _, d := range wanted {
		if deviceIn(machine, d.name) != nil || d.absent() {
			continue
		}
		a, err := m.attached(ctx, inst.spec.Type, d)
		if err == nil {
			err = m.allowedDevice(inst.spec, d.name, inst.spec.Effective.Devices[d.name], a)
		}
		if err == nil && !driver.Attaches(ctx, machine, a) {
			continue
		}
		if err == nil {
			err = notFrozen(state, inst.spec.Name)
		}
		if err == nil {
			err = m.alone(ctx, inst.spec, a)
		}
		if err == nil {
			err = driver.Attach(ctx, machine, a)
		}
		if err != nil {
			return err
		}
		machine.Volumes = append(machine.Volumes, a)
		if err := keeper.Save(machine); err != nil {
			return err
		}
	}
	return nil
}

// is tells whether a machine has the device as it is described here.
func (d diskDevice) is(a instance.Attached) bool {
	if d.node.kind != "" || a.Node != nil {
		return d.isNode(a)
	}
	if d.source != a.Source || d.source != "" && (d.shift == a.Unshifted || d.size != a.Size) {
		return false
	}
	return d.name == a.Device && d.ref == (volumeRef{a.Pool, a.Volume}) && (d.readOnly == a.ReadOnly || a.CDROM) && (a.Path == "" || path.Clean(d.path) == a.Path)
}
