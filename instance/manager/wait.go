package manager

import (
	"context"
	"fmt"
	"time"

	"brig/instance"
	"brig/instance/events"
	"brig/instance/fault"
)

// States that Wait knows.
const (
	WaitRunning = "running"
	WaitStopped = "stopped"
	WaitFrozen  = "frozen"
	WaitReady   = "ready" // commands can be run in it
)

// lookAgain is how long after the last look Wait looks again, if nobody has told
// of anything: whoever should have may have been killed.
const lookAgain = time.Second

// Wait returns when an instance is in a state. It is told of what happens, and does
// not ask all the time.
func (m *Manager) Wait(ctx context.Context, name, state string) error {
	want, ok := map[string]instance.Status{
		WaitRunning: instance.Running, WaitReady: instance.Running, WaitStopped: instance.Stopped, WaitFrozen: instance.Frozen,
	}[state]
	if !ok {
		return fault.New(fault.Invalid, "cannot wait until %q is %q: it can be running, stopped, frozen or ready", name, state)
	}
	// However short the time, what is told is how the instance is.
	look := context.WithoutCancel(ctx)
	inst, err := m.open(look, name)
	if err != nil {
		return err
	}
	// Who listens before looking misses nothing. Who cannot listen looks again.
	l, _ := events.Listen(events.Dir(m.cfg.Dirs.Run))
	if l != nil {
		defer l.Close()
	}
	for {
		is := m.state(inst.spec)
		if is.Status == want && (want != instance.Running || is.PID != 0) {
			if state != WaitReady {
				return nil
			}
			if err := m.WaitReady(ctx, name); !fault.Is(err, fault.WrongState) {
				return err
			}
		}
		if err := pauseFor(ctx, l); err != nil {
			return fmt.Errorf("cannot wait until %q is %s, it is %s now: %w", name, state, stateWord(is.Status), err)
		}
		if inst, err = m.open(look, name); err != nil {
			return err // it may have been deleted
		}
	}
}

// pauseFor waits for an event, at most for a while.
func pauseFor(ctx context.Context, l *events.Listener) error {
	short, cancel := context.WithTimeout(ctx, lookAgain)
	defer cancel()
	if l == nil {
		<-short.Done()
		return ctx.Err()
	}
	if _, err := l.Next(short); err != nil && short.Err() == nil {
		<-short.Done()
	}
	return ctx.Err()
}

// Listen calls each with what happens from now on, until ctx ends or each fails.
// Ready is called once nothing is missed any more.
func (m *Manager) Listen(ctx context.Context, ready func(), each func(events.Event) error) error {
	l, err := events.Listen(events.Dir(m.cfg.Dirs.Run))
	if err != nil {
		return err
	}
	defer l.Close()
	ready()
	for {
		e, err := l.Next(ctx)
		if err == nil {
			err = each(e)
		}
		if err != nil {
			return err
		}
	}
}
