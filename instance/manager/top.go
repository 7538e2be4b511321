package manager

import (
	"context"
	"maps"
	"slices"
	"time"

	"brig/instance"
	"brig/instance/keeper"
)

// Sample is what an instance that runs has used since it started.
type Sample struct {
	ID, Name, Pool string
	Type           instance.Type
	State          instance.State
	At             time.Time // when it was measured
	Use            instance.Use
	Received, Sent int64 // bytes, through all its interfaces
}

// Samples measures all instances that run, paused ones too. It takes no lock, starts
// no program and looks at no pool, so that it can be called often. One that ends
// meanwhile is left out.
func (m *Manager) Samples(ctx context.Context) ([]Sample, error) {
	var list []Sample
	for _, id := range slices.Sorted(maps.Keys(m.started())) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		machine, err := keeper.Load(m.cfg.Dirs.RunOf(id))
		if err != nil {
			continue // it has ended
		}
		if s, ok := m.sample(machine); ok {
			list = append(list, s)
		}
	}
	return list, nil
}

func (m *Manager) sample(machine *instance.Machine) (s Sample, ok bool) {
	driver, err := m.driver(machine.Type)
	if err != nil {
		return Sample{}, false
	}
	s = Sample{ID: machine.ID, Name: machine.Name, Pool: machine.Pool, Type: machine.Type, At: time.Now()}
	if meter, ok := driver.(instance.Meter); ok {
		// What cannot be measured has ended, which is seen below.
		s.Use, _ = meter.Use(machine)
	}
	for _, nic := range machine.NICs {
		state := m.nicState(nic)
		s.Received, s.Sent = s.Received+state.BytesReceived, s.Sent+state.BytesSent
	}
	s.State = driver.State(machine) // after all the rest, which may have gone meanwhile
	return s, s.State.Status == instance.Running || s.State.Status == instance.Frozen
}
