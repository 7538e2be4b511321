package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/keeper"
)

// startArgs are all that is needed to undo a start.
type startArgs struct {
	Name  string
	ID    string
	Meant bool // it was meant to run before: it failed, or the host was restarted
}

// Start starts a stopped instance and returns when its init runs, or when it is
// ready if o says so.
func (m *Manager) Start(ctx context.Context, name string, o StartOptions) error {
	inst, held, err := m.openLocked(ctx, "start", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if state := m.state(inst.spec); state.Status != instance.Stopped {
		return fault.New(fault.WrongState, "cannot start %q: it is %s", name, stateWord(state.Status))
	}
	// Whoever waits to start it again need not any more.
	if err := m.forgetAgain(inst.spec.ID); err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	if err := m.startLocked(ctx, inst); err != nil {
		return err
	}
	held.Release()
	return m.waitStarted(ctx, name, o)
}

// startLocked starts a stopped instance whose lock the caller holds.
func (m *Manager) startLocked(ctx context.Context, inst *opened) error {
	name := inst.spec.Name
	if err := inst.spec.Effective.Err; err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	if err := m.allowed(inst.spec); err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	if err := inst.driver.Check(ctx); err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	m.snapshotAtStart(ctx, inst)
	locked, err := m.lockVolumesOf(ctx, "start", inst.spec)
	if err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	defer locked.Release()
	ctx, drop := keeper.Ahead(ctx, m.cfg.Helpers.Keeper, m.cfg.Dirs.RunOf(inst.spec.ID))
	defer drop()
	args := startArgs{name, inst.spec.ID, m.cfg.Dirs.Power().Has(inst.spec.ID)}
	if err := m.perform(ctx, "start", []string{name}, args); err != nil {
		return fmt.Errorf("cannot start %q: %w", name, err)
	}
	return nil
}

func (m *Manager) waitStarted(ctx context.Context, name string, o StartOptions) error {
	if err := m.runScript(ctx, name); err != nil {
		return err
	}
	switch o.Wait {
	case "":
		return nil
	case "ready":
	default:
		return fault.New(fault.Invalid, "cannot wait until %q is %q: the only thing to wait for is ready", name, o.Wait)
	}
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, o.Timeout)
		defer cancel()
	}
	if err := m.WaitReady(ctx, name); err != nil {
		return fmt.Errorf("cannot wait until %q is ready: %w", name, err)
	}
	return nil
}

func (m *Manager) startOperation(a startArgs) *operation {
	return &operation{
		steps: []step{
			{name: "network", do: func(ctx context.Context) error { return m.takeNIC(ctx, a) }, undo: func(ctx context.Context) error { return m.keepNIC(ctx, a) }},
			{name: "prepare", do: func(ctx context.Context) error { return m.makeRunDir(a) }, undo: func(ctx context.Context) error { return m.dropRun(ctx, a) }},
			{name: "run", do: func(ctx context.Context) error { return m.run(ctx, a) }, undo: func(ctx context.Context) error { return m.halt(ctx, a) }},
		},
		settled: func(ctx context.Context) bool {
			o, err := m.open(ctx, a.Name)
			if err != nil || o.spec.ID != a.ID {
				return false
			}
			// One that is still starting may yet fail.
			state := m.state(o.spec)
			return state.Status == instance.Running && state.PID != 0
		},
	}
}

func (m *Manager) makeRunDir(a startArgs) error {
	for _, dir := range []string{m.cfg.Dirs.RunOf(a.ID), m.cfg.Dirs.LogOf(a.ID)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("cannot make a folder for it: %w", err)
		}
	}
	return nil
}

// dropRun removes what makeRunDir made if there is nothing else in it: the exit
// of an earlier run and its logs stay.
func (m *Manager) dropRun(_ context.Context, a startArgs) error {
	for _, dir := range []string{m.cfg.Dirs.RunOf(a.ID), m.cfg.Dirs.LogOf(a.ID)} {
		os.Remove(dir)
	}
	return nil
}

// run lends the machine what it needs from the host and starts it.
func (m *Manager) run(ctx context.Context, a startArgs) error {
	o, err := m.open(ctx, a.Name)
	if err != nil {
		return err
	}
	machine, err := m.machine(ctx, o)
	if err != nil {
		return err
	}
	// From here on the machine can be found and cleaned up after.
	if err := keeper.Save(machine); err != nil {
		return err
	}
	os.Remove(machine.Path(instance.ExitFile))
	os.Remove(machine.Path(instance.AskedFile))
	// That waits for the disk, which the start does not have to.
	remembered := make(chan error, 1)
	go func() { remembered <- keeper.Remember(machine) }()
	if err = keeper.Lend(ctx, machine); err == nil {
		err = o.driver.Start(ctx, machine)
	}
	if lost := <-remembered; fault.Is(lost, fault.Exhausted) {
		m.cfg.Notice(fmt.Sprintf("%s may not be started by the next brig boot: %v.", a.Name, lost))
	} else {
		err = errors.Join(err, lost)
	}
	if err != nil {
		return err
	}
	return m.renewed(o)
}

// halt ends a machine that a start has left, whatever state it is in.
func (m *Manager) halt(ctx context.Context, a startArgs) error {
	if !a.Meant {
		if err := m.cfg.Dirs.Power().Clear(a.ID); err != nil {
			return err
		}
	}
	machine, err := keeper.Load(m.cfg.Dirs.RunOf(a.ID))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	driver, err := m.driver(machine.Type)
	if err != nil {
		return err
	}
	_, missing := os.Lstat(machine.Path(instance.ExitFile))
	asked(machine)
	if err := keeper.Abort(ctx, machine); err != nil {
		return err
	}
	if err := driver.Stop(ctx, machine, instance.StopOptions{Force: true}); err != nil {
		return err
	}
	if err := m.cleanUp(ctx, machine); err != nil {
		return err
	}
	if missing == nil {
		return nil // it ran, and ended by itself
	}
	// It never ran: there is no exit to remember.
	if err := os.Remove(machine.Path(instance.ExitFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot clean up: %w", err)
	}
	return nil
}

func now() time.Time { return time.Now().UTC().Truncate(time.Millisecond) }
