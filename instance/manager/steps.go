package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"brig/instance/store"
)

// step is one part of an operation. Both functions are safe to repeat, and undo
// also when do never ran or stopped half way.
type step struct {
	name string
	do   func(context.Context) error
	undo func(context.Context) error // nil: there is nothing to undo
}

// operation is a command that changes more than one thing. Its steps are built
// from its arguments alone, by the process that begins it and by any that
// recovers it.
//
// An operation goes backward when it fails: what its steps did is undone. A
// forward one (delete, restore) is carried on instead: once its step number turn
// is done, whoever comes next repeats its steps until they are all done. The
// steps before that one prepare it, and are undone if it does not come to it. With a turn
// of -1 it is carried on from the moment that its intent is there.
type operation struct {
	steps   []step
	forward bool
	turn    int
	// turned tells a recovering process whether a forward operation had come to its
	// turn, where the steps before that are not to be repeated. Nil: it carries on.
	turned func(context.Context) (bool, error)
	// spoiled tells of a forward operation that failed before it came to its turn whether
	// it has to be carried on all the same, because what was there is not whole any more.
	// Nil: it is.
	spoiled func(context.Context) bool
	// settled tells a recovering process that the operation had reached its end
	// and only the intent was left. Nil: never.
	settled func(context.Context) bool
}

// undoTimeout bounds the undoing of an operation, which goes on after its
// caller gave up.
const undoTimeout = 60 * time.Second

// perform records the intent to do kind with args, does its steps, and forgets
// the intent. The caller holds the locks of names.
func (m *Manager) perform(ctx context.Context, kind string, names []string, args any) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("cannot record the intent to %s: %v", kind, err)
	}
	op, err := m.operation(kind, raw)
	if err != nil {
		return err
	}
	return m.performAs(ctx, kind, names, args, op)
}

// performAs is perform with steps of which some need what only this process
// has; recovery undoes them by the recorded arguments alone.
func (m *Manager) performAs(ctx context.Context, kind string, names []string, args any, op *operation) error {
	raw, err := json.Marshal(args)
	if err != nil {
		return fmt.Errorf("cannot record the intent to %s: %v", kind, err)
	}
	intent := store.Intent{ID: newID(), Kind: kind, Names: names, Args: raw, Since: time.Now()}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("cannot %s %q: %w", kind, names[0], err)
	}
	if err := m.intents.Begin(intent); err != nil {
		return err
	}
	for i, s := range op.steps {
		turned := i > op.turn
		err := m.cfg.Failpoints.hit(kind + "." + s.name + ".before")
		if err == nil {
			err = s.do(ctx)
		}
		if err == nil {
			turned = i >= op.turn
			err = m.cfg.Failpoints.hit(kind + "." + s.name + ".after")
		}
		if err == nil {
			continue
		}
		defer m.sweepLater()
		defer m.noteFailure(ctx, kind, s.name, names, err)
		if op.forward && !turned && op.spoiled != nil {
			turned = op.spoiled(context.WithoutCancel(ctx))
		}
		if op.forward && turned {
			return fmt.Errorf("%w (the next command on it will carry on)", err)
		}
		if op.forward {
			err = errors.Join(err, undo(ctx, op.steps[:i+1]))
		} else {
			if undoErr := undo(ctx, op.steps[:i+1]); undoErr != nil {
				return errors.Join(err, undoErr)
			}
		}
		return errors.Join(err, m.intents.End(intent.ID))
	}
	m.announce(kind, names)
	return m.intents.End(intent.ID)
}

// undo undoes steps, last first, whatever became of the caller's ctx.
func undo(ctx context.Context, steps []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	for _, s := range slices.Backward(steps) {
		if s.undo == nil {
			continue
		}
		if err := s.undo(ctx); err != nil {
			return fmt.Errorf("cannot undo %s: %w", s.name, err)
		}
	}
	return nil
}

// recoverIntents finishes or undoes what earlier commands that held one of
// names left unfinished. The caller holds the locks of all names of the
// intents that concern it.
func (m *Manager) recoverIntents(ctx context.Context, intents []store.Intent) error {
	for _, i := range intents {
		op, err := m.operation(i.Kind, i.Args)
		if err == nil {
			err = recoverOne(ctx, op)
		}
		if err == nil && (op.forward || op.settled != nil && op.settled(ctx)) {
			m.announce(i.Kind, i.Names)
		}
		if err == nil {
			err = m.intents.End(i.ID)
		}
		if err != nil {
			return fmt.Errorf("cannot recover from an interrupted %s of %q: %w", i.Kind, i.Names[0], err)
		}
	}
	return nil
}

func recoverOne(ctx context.Context, op *operation) error {
	switch {
	case op.settled != nil && op.settled(ctx):
		return nil
	case op.forward && op.turned != nil:
		yes, err := op.turned(ctx)
		if err != nil {
			return err
		}
		if !yes {
			return undo(ctx, op.steps)
		}
		return repeat(ctx, op.steps[op.turn+1:])
	case op.forward:
		return repeat(ctx, op.steps)
	}
	return undo(ctx, op.steps)
}

// repeat does steps again.
func repeat(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := s.do(ctx); err != nil {
			return err
		}
	}
	return nil
}

// lock takes the locks of names for a command, after recovering what earlier
// commands on them left unfinished.
func (m *Manager) lock(ctx context.Context, doing string, names ...string) (*store.Held, error) {
	m.tidy(ctx)
	return m.lockMore(ctx, doing, names...)
}

// lockMore is lock for a command that took its first locks before, and found by that
// what killed commands had left.
func (m *Manager) lockMore(ctx context.Context, doing string, names ...string) (*store.Held, error) {
	for {
		held, err := m.lockRecovered(ctx, doing, names)
		if err != nil {
			return nil, err
		}
		stopped, err := m.restartsOf(names)
		if err == nil && len(stopped) == 0 {
			return held, nil
		}
		held.Release()
		if err != nil {
			return nil, err
		}
		for _, i := range stopped {
			if err := m.resume(ctx, i); err != nil {
				if m.unfinished(i.ID) {
					return nil, err
				}
				m.cfg.Notice(fmt.Sprintf("Something is left from before: %v", err))
			}
		}
	}
}

// lockRecovered is lockMore without starting what was stopped to be started again.
func (m *Manager) lockRecovered(ctx context.Context, doing string, names []string) (*store.Held, error) {
	for {
		concerned, wanted, err := m.concerning(names)
		if err != nil {
			return nil, err
		}
		held, err := m.locks.Lock(ctx, doing, wanted...)
		if err != nil {
			return nil, err
		}
		// What was read without the lock may be over, or there may be more.
		again, wantedNow, err := m.concerning(names)
		if err == nil && !slices.Equal(wanted, wantedNow) {
			held.Release()
			continue
		}
		if err == nil && len(again) > 0 {
			err = m.recoverIntents(ctx, again)
		}
		if err != nil {
			held.Release()
			return nil, err
		}
		if len(concerned) > 0 {
			// Hold only what was asked for.
			held.Release()
			continue
		}
		return held, nil
	}
}

// concerning gives the intents that share a name with names, and all the locks
// that are needed to recover them.
func (m *Manager) concerning(names []string) ([]store.Intent, []string, error) {
	all, err := m.intents.List()
	if err != nil {
		return nil, nil, err
	}
	wanted := slices.Clone(names)
	var concerned []store.Intent
	for _, i := range all {
		if i.Kind != restartKind && slices.ContainsFunc(i.Names, func(n string) bool { return slices.Contains(names, n) }) {
			concerned = append(concerned, i)
			wanted = append(wanted, i.Names...)
		}
	}
	return concerned, slices.Compact(slices.Sorted(slices.Values(wanted))), nil
}
