package manager

import (
	"context"
	"errors"
	"slices"
)

// expire drops what was kept for as long as it had to be.
func (m *Manager) expire(ctx context.Context) error {
	passed := m.passed(ctx)
	var errs []error
	found, _ := m.findTrash(ctx, "") // Sweep itself tells of pools that cannot be used
	for _, t := range found {
		volume, err := m.openTrash(ctx, t)
		if err != nil {
			continue // it has just gone, or cannot be used
		}
		note, err := readNote(volume)
		switch {
		case err != nil:
			// There was no room for one, or it is damaged.
			errs = append(errs, m.renote(ctx, t, deletion{m.cfg.Clock().UTC(), passed}))
		case note.over(passed, m.cfg.Clock()):
			errs = append(errs, m.discard(ctx, t))
		}
	}
	return errors.Join(append(errs, m.expireUndo(ctx, passed), m.expireMarks(ctx))...)
}

// renote notes anew since when something in the trash is kept.
func (m *Manager) renote(ctx context.Context, t trashed, note deletion) error {
	held, err := m.lock(ctx, "sweep", t.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	volume, err := m.openTrash(ctx, t)
	if err != nil {
		return nil
	}
	return writeNote(volume, note)
}

// overdue tells whether something in the trash was kept long enough.
func (m *Manager) overdue() bool {
	ctx := context.Background()
	found, _ := m.findTrash(ctx, "")
	if len(found) == 0 {
		return false
	}
	_, clock := m.readClock()
	return slices.ContainsFunc(found, func(t trashed) bool {
		volume, err := m.openTrash(ctx, t)
		if err != nil {
			return false
		}
		note, err := readNote(volume)
		return err != nil || note.over(clock.Passed, m.cfg.Clock())
	})
}
