package manager

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"brig/instance"
	"brig/instance/fault"

	"golang.org/x/sys/unix"
)

// Exec runs a command in a running instance and returns its exit code. It takes
// no lock.
func (m *Manager) Exec(ctx context.Context, name string, c instance.Command) (int, error) {
	if len(c.Args) == 0 {
		return 0, fault.New(fault.Invalid, "cannot run a command in %q: there is none; write it after --", name)
	}
	o, err := m.open(ctx, name)
	if err != nil {
		return 0, err
	}
	machine, err := m.running(o.spec)
	if err != nil {
		return 0, err
	}
	// The driver asks for the state itself. It is asked here for the better words.
	code := 0
	if machine != nil {
		code, err = o.driver.Exec(ctx, machine, c)
	}
	if machine == nil || fault.Is(err, fault.WrongState) {
		if why := m.mustBeAwake(o, "run a command in"); why != nil {
			return 0, why
		}
	}
	return code, err
}

// Console connects to the console of a running instance.
func (m *Manager) Console(ctx context.Context, name string, c instance.ConsoleOptions) error {
	o, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	machine, _, err := m.live(o, "open the console of")
	if err != nil {
		return err
	}
	return o.driver.Console(ctx, machine, c)
}

// ConsoleLog writes what the console said so far, also of a stopped instance.
func (m *Manager) ConsoleLog(ctx context.Context, name string, w io.Writer) error {
	o, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(m.cfg.Dirs.LogOf(o.spec.ID), "console.log"), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot read the console log of %q: %w", name, err)
	}
	defer f.Close()
	if _, err := io.Copy(w, f); err != nil {
		return fmt.Errorf("cannot read the console log of %q: %w", name, err)
	}
	return nil
}

// WaitReady returns when the guest of a running instance can run commands.
func (m *Manager) WaitReady(ctx context.Context, name string) error {
	o, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	machine, _, err := m.live(o, "wait for")
	if err != nil {
		return err
	}
	return o.driver.WaitReady(ctx, machine)
}

// Pause stops the processes or processors of a running instance.
func (m *Manager) Pause(ctx context.Context, name string) error {
	return m.freeze(ctx, name, "pause", instance.Frozen, instance.Driver.Freeze)
}

// Resume lets a paused instance go on.
func (m *Manager) Resume(ctx context.Context, name string) error {
	return m.freeze(ctx, name, "resume", instance.Running, instance.Driver.Thaw)
}

func (m *Manager) freeze(ctx context.Context, name, doing string, to instance.Status, do func(instance.Driver, context.Context, *instance.Machine) error) error {
	o, held, err := m.openLocked(ctx, doing, name)
	if err != nil {
		return err
	}
	defer held.Release()
	machine, state, err := m.live(o, doing)
	if err != nil {
		return err
	}
	if state.Status == to {
		return fault.New(fault.WrongState, "cannot %s %q: it is already %s", doing, name, stateWord(to))
	}
	if err := do(o.driver, ctx, machine); err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, name, err)
	}
	m.tell("instance-"+doing+"d", name, nil)
	return nil
}

// mustBeAwake gives a wrong-state error for an instance whose guest cannot answer.
func (m *Manager) mustBeAwake(o *opened, doing string) error {
	_, state, err := m.live(o, doing)
	if err == nil && state.Status == instance.Frozen {
		err = fault.New(fault.WrongState, "cannot %s %q: it is paused; let it go on with brig resume %s", doing, o.spec.Name, o.spec.Name)
	}
	return err
}

func stateWord(s instance.Status) string {
	switch s {
	case instance.Running:
		return "running"
	case instance.Frozen:
		return "paused"
	case instance.Stopped:
		return "stopped"
	}
	return "broken"
}
