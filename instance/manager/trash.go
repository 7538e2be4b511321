package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
)

// A deleted instance stays in its pool under a name that no instance can have,
// NAME.deleted-ID, with its snapshots and a note of when it was deleted. So
// deleting and bringing back are one rename each, whatever the instance holds,
// and work on a full pool.

// keptFor is how long deleted instances, and states before a restore, are kept.
const keptFor = 7 * 24 * time.Hour

// trashMark is what is between name and id in the name of a deleted instance's
// volume.
const trashMark = ".deleted-"

// noteFile is the metadata file of a deleted instance's volume.
const noteFile = "trash.json"

// deletion is what noteFile says.
type deletion struct {
	At     time.Time     `json:"deleted_at"`
	Passed time.Duration `json:"passed"` // of the clock, then
}

// over tells whether what was kept since d has been kept long enough: by the
// time that has certainly passed, and by the wall clock, unless that was wrong
// then.
func (d deletion) over(passed time.Duration, wall time.Time) bool {
	since := passed - d.Passed
	if since < 0 {
		since = passed // the count was lost, and began anew after d
	}
	return since >= keptFor && (wall.Sub(d.At) >= keptFor || wall.Before(d.At))
}

// trashed is a deleted instance.
type trashed struct {
	pool, volume string
	name, id     string
}

func trashName(spec *instance.Spec) string { return spec.Name + trashMark + spec.ID }

// trashLock is the name of the lock of a deleted instance.
func trashLock(volume string) string { return "trash:" + volume }

// volumesIn names the instances in a pool, and those in its trash.
func volumesIn(ctx context.Context, pool storage.Pool) (instances, trash []string, err error) {
	all, err := pool.List(ctx, storage.Instances)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range all {
		if strings.Contains(name, trashMark) {
			trash = append(trash, name)
		} else {
			instances = append(instances, name)
		}
	}
	return instances, trash, nil
}

// TrashView is a deleted instance as it is shown.
type TrashView struct {
	ID, Name  string
	Type      instance.Type // empty: it cannot be told
	Pool      string
	DeletedAt time.Time // zero: not known yet
	KeptUntil time.Time
	Usage     *storage.Usage
}

// Trash shows the deleted instances that are still kept, sorted by name, and
// those of one name the newest first.
func (m *Manager) Trash(ctx context.Context, o GetOptions) ([]TrashView, error) {
	list, err := m.findTrash(ctx, "")
	if err != nil {
		m.cfg.Notice(err.Error())
	}
	views := make([]TrashView, 0, len(list))
	for _, t := range list {
		volume, err := m.openTrash(ctx, t)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		v := TrashView{ID: t.id, Name: t.name, Pool: t.pool}
		if err == nil {
			v.describe(ctx, volume, o)
		}
		views = append(views, v)
	}
	slices.SortFunc(views, func(a, b TrashView) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), b.DeletedAt.Compare(a.DeletedAt))
	})
	return views, ctx.Err()
}

// describe fills in what a deleted instance's volume tells. What it does not
// tell stays empty.
func (v *TrashView) describe(ctx context.Context, volume storage.Volume, o GetOptions) {
	if spec, err := loadSpec(volume, v.Name); err == nil {
		v.Type = spec.Type
	}
	if note, err := readNote(volume); err == nil {
		v.DeletedAt, v.KeptUntil = note.At, note.At.Add(keptFor)
	}
	if o.Usage {
		if usage, err := volume.Usage(ctx); err == nil {
			v.Usage = &usage
		}
	}
}

// findTrash gives the deleted instances with a name or an id; those of a name
// with the newest first. Empty stands for all. The error tells of pools that
// could not be looked into.
func (m *Manager) findTrash(ctx context.Context, what string) ([]trashed, error) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	var found []trashed
	var errs []error
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		var names []string
		if err == nil {
			_, names, err = volumesIn(ctx, pool)
		}
		if err != nil {
			errs = append(errs, fault.New(fault.Of(err), "cannot look into the trash of pool %q: %w", in, err))
		}
		for _, volume := range names {
			name, id, _ := strings.Cut(volume, trashMark)
			if what == "" || what == name || what == id {
				found = append(found, trashed{in, volume, name, id})
			}
		}
	}
	if len(found) > 1 && what != "" {
		at := map[string]time.Time{}
		for _, t := range found {
			if volume, err := m.openTrash(ctx, t); err == nil {
				note, _ := readNote(volume)
				at[t.volume] = note.At
			}
		}
		slices.SortStableFunc(found, func(a, b trashed) int { return at[b.volume].Compare(at[a.volume]) })
	}
	return found, errors.Join(errs...)
}

// inTrash is findTrash for a name or id that has to be there.
func (m *Manager) inTrash(ctx context.Context, what string) ([]trashed, error) {
	if what == "" {
		return nil, fault.New(fault.Invalid, "cannot find anything in the trash without a name")
	}
	found, err := m.findTrash(ctx, what)
	if len(found) == 0 && err == nil {
		err = fault.New(fault.NotFound, "cannot find %q in the trash: see brig trash list", what)
	}
	if len(found) > 0 {
		return found, nil
	}
	return nil, err
}

func (m *Manager) openTrash(ctx context.Context, t trashed) (storage.Volume, error) {
	pool, err := m.pool(ctx, t.pool)
	if err != nil {
		return nil, err
	}
	return pool.Open(ctx, instanceKey(t.volume))
}

// throwAway moves the volume of an instance to the trash.
func (m *Manager) throwAway(ctx context.Context, a deleteArgs) error {
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return err
	}
	volume, err := pool.Open(ctx, instanceKey(a.Spec.Name))
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if spec, err := loadSpec(volume, a.Spec.Name); err == nil && spec.ID != a.Spec.ID {
		return nil
	}
	err = writeNote(volume, a.Note)
	if fault.Is(err, fault.Exhausted) {
		// Without a note it counts as deleted when the next sweep sees it.
		err = dropNote(volume)
	}
	if err != nil {
		return err
	}
	return pool.Rename(ctx, volume.Key(), a.Trash)
}

func readNote(volume storage.Volume) (note deletion, err error) {
	dir, err := volume.Dir()
	if err != nil {
		return note, err
	}
	defer dir.Close()
	data, err := store.ReadFile(dir, noteFile)
	if err != nil {
		return note, err
	}
	return note, json.Unmarshal(data, &note)
}

func writeNote(volume storage.Volume, note deletion) error {
	dir, err := volume.Dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	data, err := json.Marshal(note)
	if err != nil {
		return err
	}
	return store.WriteFile(dir, noteFile, data)
}

func dropNote(volume storage.Volume) error {
	dir, err := volume.Dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := dir.Remove(noteFile); err != nil && !isGone(err) {
		return fmt.Errorf("cannot remove %s: %w", noteFile, err)
	}
	return nil
}

// EmptyTrash removes for good all deleted instances with the given names and
// those with the given ids, or all when none is given. It gives how many they
// were. If one is not there, nothing is removed.
func (m *Manager) EmptyTrash(ctx context.Context, namesOrIDs []string) (int, error) {
	m.tidy(ctx) // which may bring something back to the trash
	var found []trashed
	var errs []error
	if len(namesOrIDs) == 0 {
		all, err := m.findTrash(ctx, "")
		found, errs = all, append(errs, err)
	}
	for _, what := range namesOrIDs {
		these, err := m.inTrash(ctx, what)
		if err != nil {
			return 0, err
		}
		found = append(found, these...)
	}
	count := 0
	for _, t := range found {
		err := m.discard(ctx, t)
		if err == nil {
			count++
		}
		errs = append(errs, err)
	}
	m.sweepLater()
	return count, errors.Join(errs...)
}

// discard removes a deleted instance for good. That is one step of its pool, so
// it needs no intent; which, on a full file system, there may be no room for.
func (m *Manager) discard(ctx context.Context, t trashed) error {
	held, err := m.lock(ctx, "delete", trashLock(t.volume))
	if err != nil {
		return err
	}
	defer held.Release()
	pool, err := m.pool(ctx, t.pool)
	if err == nil {
		err = pool.Delete(ctx, instanceKey(t.volume))
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("cannot remove %q from the trash: %w", t.name, err)
	}
	m.forgetParts(ctx, t.id)
	return nil
}
