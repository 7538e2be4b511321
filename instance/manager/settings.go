package manager

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
)

// Configure changes configuration keys of an instance, all of them or none. It
// gives those, sorted, that a running instance obeys only after its next start.
func (m *Manager) Configure(ctx context.Context, name string, c ConfigChange) (later []string, err error) {
	inst, held, err := m.openLocked(ctx, "configure", name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	spec := *inst.spec
	spec.Config = maps.Clone(spec.Config)
	if spec.Config == nil {
		spec.Config = map[string]string{}
	}
	changed := slices.Collect(maps.Keys(c.Set))
	for _, key := range c.Unset {
		if _, ok := spec.Config[key]; !ok {
			// A key that is no key at all is worth to be told apart.
			if _, err := config.Find(key); err != nil {
				return nil, fmt.Errorf("cannot configure %q: %w", name, err)
			}
			return nil, fault.New(fault.NotFound, "cannot configure %q: %q is not set", name, key)
		}
		delete(spec.Config, key)
		changed = append(changed, key)
	}
	// What was set before may come from a newer brig, and is not judged.
	if err := config.Check(spec.Type, c.Set); err != nil {
		return nil, fmt.Errorf("cannot configure %q: %w", name, err)
	}
	maps.Copy(spec.Config, c.Set)
	if maps.Equal(spec.Config, inst.spec.Config) {
		return nil, nil
	}
	if err := saveSpec(inst.volume, &spec); err != nil {
		return nil, err
	}
	if m.state(&spec).Status == instance.Stopped {
		return nil, nil
	}
	for _, key := range changed {
		if o, err := config.Find(key); (err != nil || !o.Live) && spec.Config[key] != inst.spec.Config[key] {
			later = append(later, key)
		}
	}
	slices.Sort(later)
	return later, nil
}
