package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/store"
)

// How an instance that fails is started again: at once the first time, after twice
// as long each time from then on, and not any more after so many starts of which
// none lasted. Ten starts take a minute at least, as they do with Incus.
const (
	againTries = 10
	firstPause = 100 * time.Millisecond
	lastPause  = 30 * time.Second
	lasted     = time.Minute
)

// again is what is kept of an instance that was started again by itself, in its run
// directory: a stop, a start by somebody and a reboot of the host end the count.
type again struct {
	Tries   int       `json:"tries"`
	Due     time.Time `json:"due,omitzero"`     // of the next one; zero: none is planned
	Started time.Time `json:"started,omitzero"` // the last time
	GaveUp  bool      `json:"gave_up,omitempty"`
}

// next gives what comes after an end: the next try, and how long to wait before it.
func (a again) next(ended, now time.Time) (again, time.Duration) {
	if !a.Started.IsZero() && ended.Sub(a.Started) >= lasted {
		a = again{}
	}
	if a.Tries >= againTries {
		a.Due, a.GaveUp = time.Time{}, true
		return a, 0
	}
	pause := min(firstPause<<a.Tries, lastPause)
	a.Tries++
	a.Due = now.Add(pause)
	return a, pause
}

// String says it to people.
func (a again) String() string {
	switch {
	case a.GaveUp:
		return fmt.Sprintf("it was started again %d times and failed each time within a minute", a.Tries)
	case !a.Due.IsZero():
		return fmt.Sprintf("it is started again at %s, try %d of %d", a.Due.Local().Format(time.TimeOnly), a.Tries, againTries)
	}
	return ""
}

// readAgain gives what is kept of an instance; nothing is kept of most.
func (m *Manager) readAgain(id string) again {
	var a again
	root, err := os.OpenRoot(m.cfg.Dirs.RunOf(id))
	if err != nil {
		return a
	}
	defer root.Close()
	data, err := store.ReadFile(root, instance.AgainFile)
	if err != nil || json.Unmarshal(data, &a) != nil {
		return again{}
	}
	return a
}

func (m *Manager) writeAgain(id string, a again) error {
	root, err := os.OpenRoot(m.cfg.Dirs.RunOf(id))
	if err != nil {
		return fmt.Errorf("cannot plan to start an instance again: %w", err)
	}
	defer root.Close()
	data, err := json.Marshal(a)
	if err == nil {
		err = store.WriteFile(root, instance.AgainFile, data)
	}
	if err != nil {
		return fmt.Errorf("cannot plan to start an instance again: %w", err)
	}
	return nil
}

// forgetAgain ends the count of an instance, and what waits to start it.
func (m *Manager) forgetAgain(id string) error {
	root, err := os.OpenRoot(m.cfg.Dirs.RunOf(id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = root.Remove(instance.AgainFile)
		root.Close()
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot end the starting again of an instance: %w", err)
	}
	return nil
}

// Again starts an instance that has failed, if its configuration wants that, after
// a pause. It returns when the instance runs, or when there is nothing to be done,
// be it because somebody has started, stopped or deleted it meanwhile. Whatever ends
// this process, a tick begins anew.
func (m *Manager) Again(ctx context.Context, id, name string) error {
	alone, err := flock.Acquire(ctx, m.againLock(id))
	if err != nil {
		return err
	}
	defer alone.Discard()
	for {
		inst, exit := m.failed(ctx, id, name)
		if inst == nil {
			return nil
		}
		plan, pause := m.readAgain(id).next(exit.At, time.Now())
		if err := m.writeAgain(id, plan); err != nil {
			return err
		}
		if plan.GaveUp {
			return nil
		}
		if called := m.pause(ctx, id, pause); called || ctx.Err() != nil {
			return ctx.Err()
		}
		if err := m.startAgain(ctx, id, name, plan); err == nil || fault.Is(err, fault.NotFound) {
			return nil
		} else {
			m.cfg.Notice(err.Error())
		}
	}
}

// failed gives an instance that is to be started again, and how it ended, or nil.
func (m *Manager) failed(ctx context.Context, id, name string) (*opened, *instance.Exit) {
	inst, err := m.open(ctx, name)
	if err != nil || inst.spec.ID != id || !isTrue(m.configOf(inst.spec), "boot.autorestart") {
		return nil, nil
	}
	exit := m.lastExit(inst.spec)
	if exit == nil && !m.readAgain(id).Started.IsZero() {
		// It was started again, and that failed or was killed before it ran.
		exit = &instance.Exit{Code: lostExit, At: time.Now()}
	}
	if exit == nil || exit.Asked || exit.Code == 0 || m.goingDown() || !m.cfg.Dirs.Power().Has(id) {
		return nil, nil
	}
	if m.state(inst.spec).Status != instance.Stopped {
		return nil, nil
	}
	return inst, exit
}

// startAgain is a start that is still wanted.
func (m *Manager) startAgain(ctx context.Context, id, name string, plan again) error {
	held, err := m.lock(ctx, "start again", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if now := m.readAgain(id); !now.Due.Equal(plan.Due) {
		return nil // somebody has ended it
	}
	inst, _ := m.failed(ctx, id, name)
	if inst == nil {
		return nil
	}
	plan.Due, plan.Started = time.Time{}, time.Now()
	if err := m.writeAgain(id, plan); err != nil {
		return err
	}
	return m.startLocked(ctx, inst)
}

// pause waits, and tells whether somebody has ended the plan meanwhile.
func (m *Manager) pause(ctx context.Context, id string, d time.Duration) (called bool) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	planned := m.readAgain(id).Due
	if w, err := watch(m.cfg.Dirs.RunOf(id), unix.IN_DELETE|unix.IN_DELETE_SELF|unix.IN_MOVED_TO); err == nil {
		defer w.Close()
		for ctx.Err() == nil {
			if !m.readAgain(id).Due.Equal(planned) {
				return true
			}
			w.wait(ctx)
		}
	}
	<-ctx.Done() // also where nothing more can be watched
	return !m.readAgain(id).Due.Equal(planned)
}

// reviveLater has an instance started again beside this process if it failed and
// nobody does so already: whoever had begun to was killed, or its keeper was.
func (m *Manager) reviveLater(ctx context.Context, spec *instance.Spec) error {
	if m.cfg.Again == nil || !isTrue(m.configOf(spec), "boot.autorestart") {
		return nil
	}
	machine, err := m.running(spec)
	if err != nil {
		return err
	}
	if machine != nil {
		driver, err := m.driver(spec.Type)
		if err != nil || driver.State(machine).Status != instance.Stopped {
			return err
		}
		// It ended, and its keeper did not see it.
		_, held, err := m.openLocked(ctx, "look after", spec.Name)
		if err != nil {
			return err
		}
		held.Release()
	}
	if inst, _ := m.failed(ctx, spec.ID, spec.Name); inst == nil || m.readAgain(spec.ID).GaveUp {
		return nil
	}
	alone, err := flock.Try(m.againLock(spec.ID))
	if err != nil || alone == nil {
		return err
	}
	alone.Discard()
	return m.cfg.Again(spec.ID, spec.Name)
}

// againLock is held by the one process that starts an instance again.
func (m *Manager) againLock(id string) string { return m.hiddenLock("again-" + id) }

// dropAgain removes that lock if its holder was killed.
func (m *Manager) dropAgain(id string) {
	if _, err := os.Lstat(m.againLock(id)); err != nil {
		return
	}
	if alone, err := flock.Try(m.againLock(id)); err == nil && alone != nil {
		alone.Discard()
	}
}

// asked notes, while a command stops a machine, that its end is wanted. It is undone
// when the machine goes on.
func asked(machine *instance.Machine) (undo func()) {
	f, err := os.OpenFile(machine.Path(instance.AskedFile), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return func() {} // it has ended and was cleaned up after
	}
	f.Close()
	return func() { os.Remove(machine.Path(instance.AskedFile)) }
}
