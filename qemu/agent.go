package qemu

import (
	"context"
	"fmt"
	"net"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/qemu/rundir"
)

// Exec runs a command through the guest's agent.
func (d *Driver) Exec(ctx context.Context, m *instance.Machine, c instance.Command) (int, error) {
	if err := d.mustAnswer(m, "run a command in"); err != nil {
		return 0, err
	}
	conn, err := guest.Dial(ctx, m.Path(guest.AgentSocket))
	if err != nil {
		return 0, fmt.Errorf("cannot run a command in %q: %w", m.Name, err)
	}
	code, err := guest.Exec(ctx, conn, c)
	if err != nil {
		return 0, fmt.Errorf("cannot run a command in %q: %w", m.Name, err)
	}
	return code, nil
}

// Files connects to what the guest's agent shows of its files.
func (d *Driver) Files(ctx context.Context, m *instance.Machine) (net.Conn, error) {
	if err := d.mustAnswer(m, "reach the files of"); err != nil {
		return nil, err
	}
	conn, err := guest.Dial(ctx, m.Path(guest.AgentSocket))
	if err == nil {
		if err = guest.Files(ctx, conn); err != nil {
			conn.Close()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot reach the files of %q: %w", m.Name, err)
	}
	return conn, nil
}

// mustAnswer gives a wrong-state error for a machine whose guest cannot answer.
func (d *Driver) mustAnswer(m *instance.Machine, verb string) error {
	if err := mustRun(m, verb); err != nil {
		return err
	}
	if m.Firmware != "" {
		return noAgent(m, verb)
	}
	if d.State(m).Status == instance.Frozen {
		return fault.New(fault.WrongState, "cannot %s %q: it is paused; resume it first", verb, m.Name)
	}
	return nil
}

// noAgent is the error for what takes part of brig's in the guest.
func noAgent(m *instance.Machine, verb string) error {
	return fault.New(fault.Unsupported, "cannot %s %q: its disk boots by itself, without brig's agent; use its console, or log in over the network", verb, m.Name)
}

// WaitReady returns when the guest's init or main process runs and its agent
// answers.
func (d *Driver) WaitReady(ctx context.Context, m *instance.Machine) error {
	if err := mustRun(m, "wait for"); err != nil {
		return err
	}
	if m.Firmware != "" {
		return noAgent(m, "wait for")
	}
	inner, cancel := context.WithCancel(ctx)
	watcher := make(chan struct{})
	go func() {
		defer close(watcher)
		if until(inner, func() bool { return gone(m) }) == nil {
			cancel()
		}
	}()
	err := guest.WaitReady(inner, m.Path(guest.AgentSocket))
	cancel()
	<-watcher
	if err != nil && ctx.Err() == nil && gone(m) {
		return fault.New(fault.WrongState, "cannot wait for %q: it has ended", m.Name)
	}
	return err
}

// ask asks the guest's agent to shut the machine down.
func (d *Driver) ask(ctx context.Context, m *instance.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	conn, err := guest.Dial(ctx, m.Path(guest.AgentSocket))
	if err != nil {
		return err
	}
	return guest.Stop(ctx, conn)
}

// The times of a frozen guest: how long its agent may take to freeze, and when
// it thaws by itself if it hears no more.
const (
	freezeTime = 5 * time.Second
	frozenTime = 10 * time.Second
)

// quiesce freezes the guest's file systems if its agent can. thaw has to be
// called; it tells whether they were frozen until then.
func (d *Driver) quiesce(ctx context.Context, m *instance.Machine) (thaw func() bool, frozen bool) {
	not := func() bool { return false }
	if s, err := rundir.ReadState(m.RunDir); err != nil || s.Frozen || !s.Ready {
		return not, false
	}
	limited, cancel := context.WithTimeout(ctx, freezeTime)
	defer cancel()
	conn, err := guest.Dial(limited, m.Path(guest.AgentSocket))
	if err != nil {
		return not, false
	}
	f, err := guest.Freeze(limited, conn, frozenTime)
	if err != nil {
		return not, false
	}
	return func() bool {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), freezeTime)
		defer cancel()
		return f.Thaw(limited) == nil
	}, f.Count > 0
}
