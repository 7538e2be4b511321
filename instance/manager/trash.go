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
// and work on a full pool. Custom volumes are kept in the same way.

// keptFor is how long what was deleted, and states before a restore, are kept.
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

// trashed is a deleted instance or custom volume.
type trashed struct {
	class        storage.Class
	pool, volume string
	name, id     string
}

func (t trashed) key() storage.Key { return storage.Key{Class: t.class, Name: t.volume} }

// called is how users name it: NAME, or POOL/NAME of a custom volume.
func (t trashed) called() string {
	if t.class == storage.Custom {
		return t.pool + "/" + t.name
	}
	return t.name
}

// lock is the name of its lock.
func (t trashed) lock() string {
	if t.class == storage.Custom {
		return volumeTrashLock(t.pool, t.volume)
	}
	return trashLock(t.volume)
}

func trashName(spec *instance.Spec) string { return spec.Name + trashMark + spec.ID }

// trashLock is the name of the lock of a deleted instance.
func trashLock(volume string) string { return "trash:" + volume }

// volumeTrashLock is the name of the lock of a deleted custom volume.
func volumeTrashLock(pool, volume string) string { return "trash-volume:" + pool + ":" + volume }

// volumesIn names the instances in a pool, and those in its trash.
func volumesIn(ctx context.Context, pool storage.Pool) (instances, trash []string, err error) {
	return namesIn(ctx, pool, storage.Instances)
}

// namesIn names the volumes of a class, and those of them that are in the trash.
func namesIn(ctx context.Context, pool storage.Pool, class storage.Class) (there, trash []string, err error) {
	all, err := pool.List(ctx, class)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range all {
		if strings.Contains(name, trashMark) {
			trash = append(trash, name)
		} else {
			there = append(there, name)
		}
	}
	return there, trash, nil
}

// trashIn gives what is in the trash of a pool, instances first.
func trashIn(ctx context.Context, in string, pool storage.Pool) (found []trashed, err error) {
	for _, class := range []storage.Class{storage.Instances, storage.Custom} {
		_, names, err := namesIn(ctx, pool, class)
		if err != nil {
			return nil, err
		}
		for _, volume := range names {
			name, id, _ := strings.Cut(volume, trashMark)
			found = append(found, trashed{class, in, volume, name, id})
		}
	}
	return found, nil
}

// TrashView is a deleted instance or custom volume as it is shown.
type TrashView struct {
	ID, Name  string        // the name is POOL/NAME of a custom volume
	Class     storage.Class // Instances or Custom
	Type      instance.Type // of an instance; empty: it cannot be told
	Pool      string
	DeletedAt time.Time // zero: not known yet
	KeptUntil time.Time
	Usage     *storage.Usage
}

// Trash shows the deleted instances and custom volumes that are still kept, sorted by
// name, and those of one name the newest first.
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
		v := TrashView{ID: t.id, Name: t.called(), Class: t.class, Pool: t.pool}
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

// describe fills in what the volume tells. What it does not tell stays empty.
func (v *TrashView) describe(ctx context.Context, volume storage.Volume, o GetOptions) {
	if v.Class == storage.Custom {
		// It has no form.
	} else if spec, err := readSpec(volume, v.Name); err == nil {
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

// findTrash gives what was deleted and is called like this or has this id, the
// newest first. Empty stands for all. The error tells of pools that could not be
// looked into.
func (m *Manager) findTrash(ctx context.Context, what string) ([]trashed, error) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	var found []trashed
	var errs []error
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		var list []trashed
		if err == nil {
			list, err = trashIn(ctx, in, pool)
		}
		if err != nil {
			errs = append(errs, fault.New(fault.Of(err), "cannot look into the trash of pool %q: %w", in, err))
		}
		for _, t := range list {
			if what == "" || what == t.called() || what == t.id {
				found = append(found, t)
			}
		}
	}
	if len(found) > 1 && what != "" {
		at := map[trashed]time.Time{}
		for _, t := range found {
			if volume, err := m.openTrash(ctx, t); err == nil {
				note, _ := readNote(volume)
				at[t] = note.At
			}
		}
		slices.SortStableFunc(found, func(a, b trashed) int { return at[b].Compare(at[a]) })
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
		err = fault.New(fault.NotFound, "cannot find %q in the trash: see brig trash list; a volume is called POOL/VOLUME there", what)
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
	return pool.Open(ctx, t.key())
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
	if spec, err := readSpec(volume, a.Spec.Name); err == nil && spec.ID != a.Spec.ID {
		return nil
	}
	return toTrash(ctx, pool, volume, a.Trash, a.Note)
}

// toTrash gives a volume its name in the trash, and a note.
func toTrash(ctx context.Context, pool storage.Pool, volume storage.Volume, name string, note deletion) error {
	err := writeNote(volume, note)
	if fault.Is(err, fault.Exhausted) {
		// Without a note it counts as deleted when the next sweep sees it.
		err = dropNote(volume)
	}
	if err != nil {
		return err
	}
	return pool.Rename(ctx, volume.Key(), name)
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

// Emptied counts what was removed for good.
type Emptied struct{ Instances, Volumes int }

// EmptyTrash removes for good all that was deleted and is called by one of the
// given names or has one of the given ids, or all when none is given. If one is
// not there, nothing is removed.
func (m *Manager) EmptyTrash(ctx context.Context, namesOrIDs []string) (count Emptied, err error) {
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
			return count, err
		}
		found = append(found, these...)
	}
	for _, t := range found {
		err := m.discard(ctx, t)
		switch {
		case err != nil:
		case t.class == storage.Custom:
			count.Volumes++
		default:
			count.Instances++
		}
		errs = append(errs, err)
	}
	m.sweepLater()
	return count, errors.Join(errs...)
}

// discard removes what was deleted for good. That is one step of its pool, so
// it needs no intent; which, on a full file system, there may be no room for.
func (m *Manager) discard(ctx context.Context, t trashed) error {
	held, err := m.lock(ctx, "delete", t.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	pool, err := m.pool(ctx, t.pool)
	if err == nil {
		err = pool.Delete(ctx, t.key())
	}
	if err != nil && !fault.Is(err, fault.NotFound) {
		return fmt.Errorf("cannot remove %q from the trash: %w", t.called(), err)
	}
	if t.class == storage.Instances {
		m.forgetParts(ctx, t.id)
	}
	return nil
}
