package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
	"brig/instance/store"
	"brig/storage"
)

// An instance is damaged if there is a volume of its name and what it is cannot be
// read: its instance.json is broken or was written by a newer brig, or its data are
// gone behind brig's back. It is listed with the reason, and can be deleted.

// damaged tells whether that is so.
func (m *Manager) damaged(ctx context.Context, name string) bool {
	if store.CheckFullName(name) != nil {
		return false
	}
	volume, in, err := m.locate(ctx, name)
	if err != nil || in == "" {
		return false
	}
	if volume == nil {
		return true
	}
	_, err = readSpec(volume, name)
	return err != nil
}

// locate gives the volume of an instance and its pool. One that is there and cannot
// be opened is nil.
func (m *Manager) locate(ctx context.Context, name string) (storage.Volume, string, error) {
	volume, in, err := m.find(ctx, instanceKey(name))
	if err == nil || fault.Is(err, fault.NotFound) {
		return volume, in, err
	}
	pools, e := m.cfg.Pools.Names()
	if e != nil {
		return nil, "", e
	}
	for _, in := range pools {
		pool, e := m.pool(ctx, in)
		if e != nil {
			continue
		}
		if names, _, e := volumesIn(ctx, pool); e == nil && slices.Contains(names, name) {
			return nil, in, nil
		}
	}
	return nil, "", err
}

// deleteDamaged deletes such an instance: into the trash, if that can be done with
// what is left of it.
func (m *Manager) deleteDamaged(ctx context.Context, name string, o DeleteOptions) error {
	held, err := m.lock(ctx, "delete", name)
	if err != nil {
		return err
	}
	defer held.Release()
	volume, in, err := m.locate(ctx, name)
	if err != nil {
		return err
	}
	spec := m.salvage(volume, name)
	if err := m.noneMounted(spec, "delete"); err != nil {
		return err
	}
	if _, err := m.stopKnown(ctx, spec, StopOptions{Force: true}); err != nil {
		return fmt.Errorf("cannot delete %q: %w", name, err)
	}
	if err := m.remove(ctx, &opened{spec: spec, pool: in, volume: volume}, o.Now || !keepable(volume), false); err != nil {
		return err
	}
	m.sweepLater()
	return nil
}

// keepable tells whether what is left of an instance can be in the trash.
func keepable(volume storage.Volume) bool {
	if volume == nil {
		return false
	}
	dir, err := volume.Dir()
	if err != nil {
		return false
	}
	dir.Close()
	return true
}

// salvage makes of an instance that cannot be read what is needed to delete it. Its
// machine, if it was started, knows it.
func (m *Manager) salvage(volume storage.Volume, name string) *instance.Spec {
	var read struct {
		ID string `json:"id"`
	}
	if volume != nil {
		if dir, err := volume.Dir(); err == nil {
			if data, err := store.ReadFile(dir, store.SpecFile); err == nil {
				json.Unmarshal(data, &read)
			}
			dir.Close()
		}
	}
	spec := &instance.Spec{ID: read.ID, Name: name}
	if !store.ValidID(spec.ID) {
		spec.ID = newID()
	}
	if started := m.startedAs(name); started != nil {
		return started
	}
	return spec
}

// startedAs gives what is known of an instance without its volume: what its machine
// was started as. Nil: it was not started, or is cleaned up after.
func (m *Manager) startedAs(name string) *instance.Spec {
	for id := range m.started() {
		machine, err := keeper.Load(m.cfg.Dirs.RunOf(id))
		if err != nil || machine.Name != name {
			continue
		}
		spec := &instance.Spec{ID: machine.ID, Name: name, Type: machine.Type}
		if len(machine.NICs) > 0 && len(machine.NICs[0].Addresses) > 0 {
			spec.Address = machine.NICs[0].Addresses[0]
		}
		return spec
	}
	return nil
}

// stopLost stops an instance that cannot be read, for example because its pool is
// gone.
func (m *Manager) stopLost(ctx context.Context, spec *instance.Spec, o StopOptions) error {
	held, err := m.locks.Lock(ctx, "stop", spec.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	stopped, err := m.stopKnown(ctx, spec, o)
	if err == nil && !stopped {
		err = fault.New(fault.WrongState, "it is already stopped")
	}
	if err != nil {
		return fmt.Errorf("cannot stop %q: %w", spec.Name, err)
	}
	return nil
}

// stopKnown stops the machine of an instance of which no more is known than that,
// and tells whether it ran.
func (m *Manager) stopKnown(ctx context.Context, spec *instance.Spec, o StopOptions) (bool, error) {
	if spec.Type == "" {
		return false, nil
	}
	driver, err := m.driver(spec.Type)
	if err != nil {
		return false, err
	}
	inst := &opened{spec: spec, driver: driver}
	machine, _, err := m.live(inst, "stop")
	if fault.Is(err, fault.WrongState) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, m.stopForGood(ctx, inst, machine, o)
}
