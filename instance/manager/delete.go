package manager

import (
	"context"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
)

// deleteArgs are all that is needed to carry on with a delete.
type deleteArgs struct {
	Spec *instance.Spec
	Pool string
}

// Delete removes an instance with its snapshots. A running one is refused
// unless forced.
func (m *Manager) Delete(ctx context.Context, name string, o DeleteOptions) error {
	inst, held, err := m.openLocked(ctx, "delete", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if state := m.state(inst.spec); state.Status != instance.Stopped {
		if !o.Force {
			return fault.New(fault.WrongState, "cannot delete %q: it is %s; stop it first, or delete it with --force", name, stateWord(state.Status))
		}
		machine, _, err := m.live(inst, "stop")
		if err == nil {
			err = m.stop(ctx, inst, machine, StopOptions{Force: true})
		}
		if err != nil && !fault.Is(err, fault.WrongState) {
			return fmt.Errorf("cannot delete %q: %w", name, err)
		}
	}
	if err := m.perform(ctx, "delete", []string{name}, deleteArgs{inst.spec, inst.pool}); err != nil {
		return fmt.Errorf("cannot delete %q: %w", name, err)
	}
	m.sweepLater()
	return nil
}

func (m *Manager) deleteOperation(a deleteArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "volume", do: func(ctx context.Context) error {
			return m.dropVolume(ctx, a.Pool, instanceKey(a.Spec.Name), a.Spec.ID)
		}},
		{name: "files", do: func(context.Context) error { return m.dropFiles(a.Spec.ID) }},
		{name: "address", do: func(context.Context) error { return m.releaseAddress(a.Spec) }},
	}}
}
