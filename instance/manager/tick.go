package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"brig/instance"
	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/schedule"
	"brig/instance/store"
	"brig/storage"
)

// Bounds of a tick.
const (
	tickWorkers = 4
	tickTime    = 15 * time.Minute // for one instance
	maxPause    = time.Hour        // between tries of what fails
)

// Tick does what is due now: it takes the snapshots that schedules ask for, deletes
// those that have expired or that a schedule does not keep, those of custom volumes
// included, and has images cared for in a process of its own, which may take long. A
// timer calls
// it every minute; missed or doubled calls do no harm. An instance that is busy
// waits for the next call, and one that is broken stops no other.
func (m *Manager) Tick(ctx context.Context) error {
	t := *m
	t.locks = store.NewLocks(filepath.Join(m.cfg.Dirs.Run, "locks"), 0)
	names, err := t.instances(ctx)
	errs := []error{err}
	var mu sync.Mutex // guards errs
	work := make(chan string)
	var wg sync.WaitGroup
	for range tickWorkers {
		wg.Go(func() {
			for name := range work {
				err := t.tick(ctx, name)
				if fault.Is(err, fault.Busy) || fault.Is(err, fault.NotFound) {
					continue // next time, or never more
				}
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	for _, name := range names {
		work <- name
	}
	close(work)
	wg.Wait()
	errs = append(errs, t.tickVolumes(ctx))
	m.sweepLater()
	return errors.Join(append(errs, m.cfg.Looker.Tidy(ctx), m.careLater(ctx))...)
}

// instances names the instances in all pools that can be used; the error tells
// about the others.
func (m *Manager) instances(ctx context.Context) (names []string, err error) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	var errs []error
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err == nil {
			var found []string
			found, _, err = volumesIn(ctx, pool)
			names = append(names, found...)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("cannot look after the instances in pool %q: %w", in, err))
		}
	}
	return names, errors.Join(errs...)
}

// tick does what is due for one instance. The lock is taken only if there is
// anything.
func (m *Manager) tick(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, tickTime)
	defer cancel()
	inst, err := m.open(ctx, name)
	if err != nil {
		return err
	}
	if err := m.reviveLater(ctx, inst.spec); err != nil {
		return err
	}
	if d, err := m.duties(ctx, inst); err != nil || d.none() {
		return err
	}
	inst, held, err := m.openLocked(ctx, "look after", name)
	if err != nil {
		return err
	}
	defer held.Release()
	d, err := m.duties(ctx, inst)
	if err != nil {
		return err
	}
	var errs []error
	if d.due {
		errs = append(errs, m.takeDue(ctx, inst, &d))
	}
	if d.remember {
		errs = append(errs, m.remember(inst.spec.ID, d.memory))
	}
	// What is taken now may be the successor of what was kept until now.
	if d, err = m.duties(ctx, inst); err == nil {
		if d.expiries != nil {
			errs = append(errs, m.writeExpiries(inst.spec.ID, d.expiries))
		}
		errs = append(errs, m.dropSnapshots(ctx, inst, d.expired, "has expired"))
		err = m.dropSnapshots(ctx, inst, d.surplus, "is not kept any longer")
	}
	return errors.Join(append(errs, err)...)
}

// duties are what is due for an instance.
type duties struct {
	expired, surplus []string // snapshots
	due              bool     // for a new snapshot
	old              memory
	memory           memory // as it has to become, if remember says so
	remember         bool
	expiries         expiries // as they have to become, if they are not nil
}

func (d duties) none() bool {
	return len(d.expired)+len(d.surplus) == 0 && !d.due && !d.remember && d.expiries == nil
}

func (m *Manager) duties(ctx context.Context, inst *opened) (d duties, err error) {
	spec, at := inst.spec, m.cfg.Clock()
	fail := func(err error) (duties, error) {
		return d, fmt.Errorf("cannot look after the snapshots of %q: %w", spec.Name, err)
	}
	list, err := inst.volume.Snapshots(ctx)
	if err != nil {
		return fail(err)
	}
	keep, err := schedule.ParseKeep(spec.Effective.Config["snapshots.keep"])
	if err != nil {
		return fail(err)
	}
	plan, err := schedule.Parse(spec.Effective.Config["snapshots.schedule"])
	if err != nil {
		return fail(err)
	}
	passed := m.passed(ctx)
	noted := m.readExpiries(spec.ID)
	if next, changed := noted.with(list, passed, at); changed {
		d.expiries, noted = next, next
	}
	list = slices.DeleteFunc(list, func(s storage.Snapshot) bool {
		over := !s.ExpiresAt.IsZero() && !s.ExpiresAt.After(at) && noted.over(s, passed) || forUndo(s) && noteOf(s).over(passed, at)
		if over {
			d.expired = append(d.expired, s.Name)
		}
		return over || !s.Auto
	})
	var times []time.Time
	for _, s := range list {
		times = append(times, s.CreatedAt)
	}
	for _, i := range keep.Drop(times, at) {
		d.surplus = append(d.surplus, list[i].Name)
	}
	if plan.Never() {
		return d, nil
	}
	d.old = m.recall(spec, times, at)
	d.memory = d.old
	d.due, d.memory.Settled = plan.Due(d.old.Settled, at)
	if d.due && (d.old.pausing(at) || spec.Effective.Config["snapshots.schedule.stopped"] != "true" && m.state(spec).Status == instance.Stopped) {
		// It stays due.
		d.due, d.memory = false, d.old
	}
	d.remember = d.due || !d.old.known || !d.memory.Settled.Equal(d.old.Settled)
	return d, nil
}

// takeDue takes a snapshot that is due, and notes how that went.
func (m *Manager) takeDue(ctx context.Context, inst *opened, d *duties) error {
	snapshot, err := m.takeScheduled(ctx, inst)
	if err != nil {
		// It stays due, but is tried less and less often: a try may make an instance
		// stand still.
		d.memory = d.old
		d.memory.Failures, d.memory.TriedAt = d.old.Failures+1, m.cfg.Clock()
		return err
	}
	d.memory.Failures, d.memory.TriedAt = 0, time.Time{}
	m.cfg.Notice(fmt.Sprintf("Kept %s as %s", inst.spec.Name, snapshot))
	return nil
}

func (m *Manager) takeScheduled(ctx context.Context, inst *opened) (string, error) {
	span, err := schedule.ParseSpan(inst.spec.Effective.Config["snapshots.expiry"])
	if err != nil {
		return "", fmt.Errorf("cannot snapshot %q: %w", inst.spec.Name, err)
	}
	return m.takeSnapshot(ctx, inst, "", SnapshotRequest{Auto: true, ExpiresAt: span.From(m.cfg.Clock())})
}

// snapshotAtStart takes the snapshot that a schedule wants before each start. An
// instance starts even if that fails.
func (m *Manager) snapshotAtStart(ctx context.Context, inst *opened) {
	plan, err := schedule.Parse(inst.spec.Effective.Config["snapshots.schedule"])
	if err == nil && plan.AtStartup() {
		_, err = m.takeScheduled(ctx, inst)
	}
	if err != nil {
		m.cfg.Notice(fmt.Sprintf("The snapshot that is due when %s starts was not taken: %v", inst.spec.Name, err))
	}
}

// dropSnapshots deletes snapshots of an instance, as many as it can.
func (m *Manager) dropSnapshots(ctx context.Context, inst *opened, names []string, why string) error {
	var errs []error
	for _, s := range names {
		if m.notMounted(inst, "delete", s) != nil {
			continue // next time
		}
		err := m.dropSnapshot(ctx, inst, s)
		if err == nil {
			m.cfg.Notice(fmt.Sprintf("Deleted %s of %s, which %s", s, inst.spec.Name, why))
		} else if !fault.Is(err, fault.NotFound) {
			errs = append(errs, fmt.Errorf("cannot delete snapshot %q of %q: %w", s, inst.spec.Name, err))
		}
	}
	return errors.Join(errs...)
}

// memory is what is remembered of an instance's schedule between two ticks. It
// may be lost: then the newest automatic snapshot tells about as much.
type memory struct {
	Schedule string    `json:"schedule"` // that it is about
	Settled  time.Time `json:"settled"`  // all that was due until then is done
	Failures int       `json:"failures,omitempty"`
	TriedAt  time.Time `json:"tried_at,omitzero"` // the last failure

	known bool // it was there
}

func (m *Manager) memoryPath(id string) string {
	return filepath.Join(m.cfg.Dirs.State, "schedules", id+".json")
}

// recall reads the memory of an instance with automatic snapshots taken at times.
// A schedule that is new begins now.
func (m *Manager) recall(spec *instance.Spec, times []time.Time, at time.Time) memory {
	text := spec.Effective.Config["snapshots.schedule"]
	found, known := m.readMemory(spec.ID)
	if known && found.Schedule != text {
		return memory{Schedule: text, Settled: at}
	}
	found.Schedule, found.known = text, known
	// A snapshot that was taken, but not remembered.
	for _, t := range times {
		if t.After(found.Settled) && !t.After(at) {
			found.Settled = t
		}
	}
	if found.Settled.IsZero() {
		found.Settled = at
	}
	return found
}

// readMemory reads the memory of an instance. One that is damaged is none.
func (m *Manager) readMemory(id string) (found memory, ok bool) {
	root, err := os.OpenRoot(filepath.Dir(m.memoryPath(id)))
	if err != nil {
		return memory{}, false
	}
	defer root.Close()
	data, err := store.ReadFile(root, filepath.Base(m.memoryPath(id)))
	if err != nil || json.Unmarshal(data, &found) != nil {
		return memory{}, false
	}
	return found, true
}

// remember writes the memory of an instance.
func (m *Manager) remember(id string, what memory) error { return noteDone(m.memoryPath(id), what) }

// noteDone writes a file in the folder of what is remembered.
func noteDone(path string, what any) error {
	dir := filepath.Dir(path)
	if err := durable.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("cannot note what was done: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("cannot note what was done: %w", err)
	}
	defer root.Close()
	data, err := json.Marshal(what)
	if err != nil {
		return fmt.Errorf("cannot note what was done: %v", err)
	}
	return store.WriteFile(root, filepath.Base(path), append(data, '\n'))
}

// pausing tells whether it is too early to try again what failed.
func (old memory) pausing(at time.Time) bool {
	if old.Failures == 0 || old.TriedAt.After(at) {
		return false
	}
	pause := min(time.Minute<<min(old.Failures-1, 10), maxPause)
	return at.Before(old.TriedAt.Add(pause))
}
