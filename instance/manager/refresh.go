package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/transfer"
)

// An instance and a copy of it that is refreshed have a snapshot in common, a mark,
// which no list shows. What changed at the source since then is all that the next
// refresh has to look at, whatever became of the copy meanwhile.

func forRefresh(s storage.Snapshot) bool { return strings.HasPrefix(s.Name, store.RefreshPrefix) }

// markNote is the description of a mark.
type markNote struct {
	Copy string `json:"copy"` // id of the copy
}

func markOf(id string) string {
	text, _ := json.Marshal(markNote{id})
	return string(text)
}

// refreshArgs are all that is needed to carry on with a refresh, or to undo it.
type refreshArgs struct {
	Spec     *instance.Spec // what the copy is to be
	Source   string
	From, To string // pools
	Plan     transfer.Plan
	Work     string
	Held     map[string]string // instances that stand still for it, name to id
}

// refresh brings the copy of src that r names up to date.
func (m *Manager) refresh(ctx context.Context, src *opened, r CopyRequest, admitted *admission) (*instance.Spec, error) {
	fail := func(err error) (*instance.Spec, error) {
		return nil, fmt.Errorf("cannot refresh %q from %q: %w", r.Name, r.Source, err)
	}
	dst, err := m.open(ctx, r.Name)
	if err == nil {
		err = m.settle(ctx, dst)
	}
	if err != nil {
		return fail(err)
	}
	if r.Pool != "" && r.Pool != dst.pool {
		return fail(fault.New(fault.Invalid, "it is in pool %q, not in %q; move it there first", dst.pool, r.Pool))
	}
	if dst.spec.Type != src.spec.Type {
		return fail(fault.New(fault.Invalid, "the one is a %s and the other a %s", src.spec.Type, dst.spec.Type))
	}
	if state := m.state(dst.spec); state.Status != instance.Stopped {
		return fail(fault.New(fault.WrongState, "%q is %s, and only a stopped instance can be refreshed; stop it first with brig stop %s", r.Name, stateWord(state.Status), r.Name))
	}
	a := refreshArgs{Spec: refreshed(src.spec, dst.spec), Source: r.Source, From: src.pool, To: dst.pool, Work: partPrefix + newID()}
	m.resolve(a.Spec)
	if err = admitted.check(ctx, a.Spec); err != nil {
		return fail(err)
	}
	if a.Plan, err = transfer.NewPlan(ctx, src.volume, dst.volume, store.RefreshPrefix+newID(), transfer.PlanOptions{
		Hidden: hidden, Alone: r.InstanceOnly, Same: a.From == a.To,
	}); err != nil {
		return fail(err)
	}
	a.Plan.Old = slices.DeleteFunc(a.Plan.Old, func(name string) bool { return !strings.HasPrefix(name, store.RefreshPrefix) })
	for _, name := range a.Plan.Gone {
		if err := m.notMounted(dst, "refresh", name); err != nil {
			return fail(err)
		}
	}
	if err := m.performRefresh(ctx, src, a, r.Verify); err != nil {
		return fail(err)
	}
	return a.Spec, nil
}

// refreshed is what a copy becomes: its source, with what makes it itself.
func refreshed(from, is *instance.Spec) *instance.Spec {
	spec := *from
	spec.Config, spec.Profiles = maps.Clone(from.Config), slices.Clone(from.Profiles)
	spec.ID, spec.Name, spec.MAC, spec.Address = is.ID, is.Name, is.MAC, is.Address
	spec.CreatedAt, spec.LastUsedAt = is.CreatedAt, is.LastUsedAt
	keepIdentity(&spec, is)
	return &spec
}

func (m *Manager) performRefresh(ctx context.Context, src *opened, a refreshArgs, verify bool) error {
	live, err := m.liveness(src)
	if err != nil {
		return err
	}
	a.Held = m.stands(src, live)
	op := m.refreshOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		task := m.cfg.Progress.Task("Refreshing "+a.Spec.Name, 0, false)
		defer task.Done()
		return m.bring(ctx, a, live, verify)
	}
	err = m.performAs(ctx, "refresh", []string{a.Spec.Name, a.Source}, a, op)
	m.sweepLater()
	return err
}

// bring has the new snapshots put beside what the copy holds.
func (m *Manager) bring(ctx context.Context, a refreshArgs, live *storage.Live, verify bool) error {
	source, dst, err := m.bothVolumes(ctx, a)
	if err != nil {
		return err
	}
	pool, err := m.pool(ctx, a.To)
	if err != nil {
		return err
	}
	return transfer.Refresh(ctx, transfer.RefreshRequest{
		Plan: a.Plan, Description: markOf(a.Spec.ID), Source: source, Live: live,
		Pool: pool, Copy: dst, Work: instanceKey(a.Work), Verify: verify, Dir: m.mountDir(),
		Edit: func(dir *os.Root, _ string) error {
			spec, err := store.LoadSpec(dir, a.Source)
			if err != nil {
				return err
			}
			spec.ID, spec.Name, spec.MAC, spec.Address = a.Spec.ID, a.Spec.Name, a.Spec.MAC, a.Spec.Address
			return store.SaveSpec(dir, spec)
		},
	})
}

// bothVolumes opens the volumes of source and copy. A source that is gone by now is
// nil.
func (m *Manager) bothVolumes(ctx context.Context, a refreshArgs) (source, dst storage.Volume, err error) {
	to, err := m.pool(ctx, a.To)
	if err == nil {
		dst, err = to.Open(ctx, instanceKey(a.Spec.Name))
	}
	if err != nil {
		return nil, nil, err
	}
	from, err := m.pool(ctx, a.From)
	if err == nil {
		source, err = from.Open(ctx, instanceKey(a.Source))
	}
	if fault.Is(err, fault.NotFound) {
		return nil, dst, nil
	}
	return source, dst, err
}

// refreshOperation turns once all snapshots are there: from then on the copy becomes
// what they say, whoever does it.
func (m *Manager) refreshOperation(a refreshArgs) *operation {
	with := func(do func(ctx context.Context, source, dst storage.Volume) error) func(context.Context) error {
		return func(ctx context.Context) error {
			source, dst, err := m.bothVolumes(ctx, a)
			if err != nil {
				return err
			}
			return do(ctx, source, dst)
		}
	}
	return &operation{forward: true, steps: []step{
		{name: "data", undo: with(func(ctx context.Context, source, dst storage.Volume) error {
			pool, err := m.pool(ctx, a.To)
			if err != nil {
				return err
			}
			if err := pool.Delete(ctx, instanceKey(a.Work)); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
			if err := a.Plan.Undo(ctx, source, dst); err != nil {
				return err
			}
			return m.letAllGo(ctx, a.Held)
		})},
		{name: "volume", do: with(func(ctx context.Context, _, dst storage.Volume) error { return dst.Restore(ctx, a.Plan.Mark) })},
		{name: "configuration", do: with(func(_ context.Context, _, dst storage.Volume) error { return saveSpec(dst, a.Spec) })},
		{name: "snapshots", do: with(func(ctx context.Context, _, dst storage.Volume) error { return a.Plan.Settle(ctx, dst) })},
		{name: "forget", do: with(a.Plan.Forget)},
	}, turned: func(ctx context.Context) (bool, error) {
		_, dst, err := m.bothVolumes(ctx, a)
		if err != nil {
			return false, err
		}
		return a.Plan.Complete(ctx, dst)
	}}
}

// expireMarks drops marks of copies that are gone.
func (m *Manager) expireMarks(ctx context.Context) error {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return err
	}
	var marked []string
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err != nil {
			return nil // the copies may be there
		}
		names, _, err := volumesIn(ctx, pool)
		if err != nil {
			return nil
		}
		for _, name := range names {
			volume, err := pool.Open(ctx, instanceKey(name))
			if err != nil {
				continue
			}
			list, err := volume.Snapshots(ctx)
			if err == nil && slices.ContainsFunc(list, forRefresh) {
				marked = append(marked, name)
			}
		}
	}
	var errs []error
	for _, name := range marked {
		errs = append(errs, m.dropMarks(ctx, name))
	}
	return errors.Join(errs...)
}

// dropMarks drops those of one instance. One that is in use has another day.
func (m *Manager) dropMarks(ctx context.Context, name string) error {
	held, err := m.tries.Lock(ctx, "sweep", name)
	if err != nil {
		return nil
	}
	defer held.Release()
	inst, err := m.open(ctx, name)
	if err != nil {
		return nil // it is gone, or not to be touched
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	list, err := inst.volume.Snapshots(ctx)
	for _, s := range list {
		var note markNote
		if !forRefresh(s) || json.Unmarshal([]byte(s.Description), &note) != nil {
			continue
		}
		if !slices.ContainsFunc(views, func(v View) bool { return v.Spec.ID == note.Copy }) {
			err = errors.Join(err, inst.volume.DeleteSnapshot(ctx, s.Name))
		}
	}
	return err
}
