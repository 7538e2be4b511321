package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"brig/instance/fault"
	"brig/storage"
)

// Plan says what has to be done to bring a copy up to date. It can be written down
// before anything of it is done, and is what Settle needs to carry on.
type Plan struct {
	Mark string // the snapshot that is the source as it is now, in both volumes
	Keep bool   // it stays, for the next refresh
	New  []Step // snapshots to be brought, oldest first
	Gone []string
	Old  []string // marks of earlier refreshes, in both volumes
	Last Step     // how the mark is brought
}

// Step brings one snapshot of the source.
type Step struct {
	Snapshot storage.Snapshot // of the source
	As       string           // what it is called in the copy until all are there
	Base     string           // of the source: one that the copy has when it comes to this; empty: there is none
	BaseAs   string           // what that is called in the copy then
}

// PlanOptions are what a plan depends on beside the volumes.
type PlanOptions struct {
	Hidden func(s storage.Snapshot) bool
	Alone  bool // leave the snapshots as they are
	Same   bool // both volumes are in one pool
}

// NewPlan compares the snapshots of a volume with those of a copy. Snapshots that
// are alike but for their data are taken for the same: name, dates and description
// came with the copy. Hidden ones, which a person does not see, are left where they
// are, and used as what both have in common. An alone copy keeps its snapshots. In
// one pool, where nothing is copied, the mark does not stay.
func NewPlan(ctx context.Context, source, copy storage.Volume, mark string, o PlanOptions) (Plan, error) {
	if source.Content() != copy.Content() {
		return Plan{}, fault.New(fault.Invalid, "the one holds a %s volume and the other a %s volume", source.Content(), copy.Content())
	}
	theirs, err := source.Snapshots(ctx)
	if err != nil {
		return Plan{}, err
	}
	ours, err := copy.Snapshots(ctx)
	if err != nil {
		return Plan{}, err
	}
	hidden, alone := o.Hidden, o.Alone
	plan := Plan{Mark: mark, Keep: !o.Same}
	base, baseAs := earliest(theirs, ours)
	for _, s := range theirs {
		switch {
		case slices.ContainsFunc(ours, func(o storage.Snapshot) bool { return equal(s, o) }):
			base, baseAs = s.Name, s.Name
			if hidden(s) {
				plan.Old = append(plan.Old, s.Name)
			}
		case !hidden(s) && !alone:
			step := Step{Snapshot: s, As: fmt.Sprintf("%s.%d", mark, len(plan.New)), Base: base, BaseAs: baseAs}
			plan.New = append(plan.New, step)
			base, baseAs = s.Name, step.As
		}
	}
	plan.Last = Step{Snapshot: storage.Snapshot{Name: mark}, As: mark, Base: base, BaseAs: baseAs}
	for _, s := range ours {
		if !hidden(s) && !alone && !slices.ContainsFunc(theirs, func(t storage.Snapshot) bool { return equal(s, t) }) {
			plan.Gone = append(plan.Gone, s.Name)
		}
	}
	return plan, nil
}

// earliest gives a snapshot that both have, for what is older than any of those.
func earliest(theirs, ours []storage.Snapshot) (base, baseAs string) {
	for _, s := range theirs {
		if slices.ContainsFunc(ours, func(o storage.Snapshot) bool { return equal(s, o) }) {
			return s.Name, s.Name
		}
	}
	return "", ""
}

func equal(a, b storage.Snapshot) bool {
	return a.Name == b.Name && a.Description == b.Description && a.Auto == b.Auto &&
		a.CreatedAt.Equal(b.CreatedAt) && a.ExpiresAt.Equal(b.ExpiresAt)
}

// RefreshRequest says how a plan is carried out.
type RefreshRequest struct {
	Plan
	Description string // of the mark
	Source      storage.Volume
	Live        *storage.Live // the source is in use; nil: it is not

	Pool   storage.Pool // of the copy
	Copy   storage.Volume
	Work   storage.Key // of a volume for what cannot be brought otherwise
	Verify bool        // compare all data in the end

	Edit func(dir *os.Root, snapshot string) error // as in Request
	Dir  string                                    // as in Request
}

// Refresh brings the snapshots of the plan, the mark last, which is the sign that
// all are there. What the copy holds now does not change; Settle does that. After an
// error Undo takes away what was brought.
func Refresh(ctx context.Context, r RefreshRequest) error {
	mark := Mark{Name: r.Mark, Description: r.Description}
	if err := r.Source.Snapshot(ctx, r.Mark, mark.options(r.Live)); err != nil {
		return err
	}
	for _, s := range append(slices.Clone(r.New), r.Last) {
		if err := r.bring(ctx, s); err != nil {
			return classified(fmt.Errorf("snapshot %q: %w", s.Snapshot.Name, err))
		}
	}
	return nil
}

// bring keeps one snapshot in the copy, in the quickest way there is.
func (r *RefreshRequest) bring(ctx context.Context, s Step) error {
	as, err := r.asSnapshot(ctx, s)
	if err != nil {
		return err
	}
	edit := func(dir *os.Root) error { return r.edit(dir, s) }
	if quick(r.Source, r.Copy) {
		p := passage{from: r.Source, to: r.Copy, snapshot: s.Snapshot.Name, as: as, base: s.Base, baseAs: s.BaseAs, edit: edit}
		err := p.bring(ctx)
		if err == nil && r.Verify && s.Snapshot.Name == r.Mark {
			return r.verify(ctx, s)
		}
		if !errors.Is(err, errSlow) && !fault.Is(err, fault.Unsupported) {
			return err
		}
	}
	return r.build(ctx, s, as, edit)
}

// asSnapshot describes the snapshot in the copy.
func (r *RefreshRequest) asSnapshot(ctx context.Context, s Step) (storage.Snapshot, error) {
	as := s.Snapshot
	if as.Name == r.Mark {
		list, err := r.Source.Snapshots(ctx)
		if err != nil {
			return as, err
		}
		i := slices.IndexFunc(list, func(s storage.Snapshot) bool { return s.Name == r.Mark })
		if i < 0 {
			return as, fault.New(fault.NotFound, "it is gone")
		}
		as = list[i]
	}
	as.Name = s.As
	return as, nil
}

func (r *RefreshRequest) edit(dir *os.Root, s Step) error {
	if r.Edit == nil {
		return nil
	}
	return r.Edit(dir, s.Snapshot.Name)
}

// verify compares all data of a snapshot.
func (r *RefreshRequest) verify(ctx context.Context, s Step) error {
	from, err := r.Source.SnapshotRoot(ctx, s.Snapshot.Name)
	if err != nil {
		return err
	}
	to, err := r.Copy.SnapshotRoot(ctx, s.As)
	if err != nil {
		return err
	}
	return contents(r.Source, r.Dir, false).prove(ctx, from, to)
}

// build makes the snapshot in a clone of the copy, from what changed since base.
func (r *RefreshRequest) build(ctx context.Context, s Step, as storage.Snapshot, edit func(*os.Root) error) (err error) {
	keeper, ok := r.Copy.(storage.Adopter)
	if !ok {
		return fault.New(fault.Unsupported, "its pool cannot bring a copy up to date; delete the copy, and copy anew")
	}
	work, err := r.Pool.Clone(ctx, storage.Source{Key: r.Copy.Key(), Snapshot: s.BaseAs}, r.Work, storage.CloneOptions{Edit: func(dir *os.Root) error {
		if err := removeFiles(dir); err != nil {
			return err
		}
		if err := copyMetadata(ctx, r.Source, s.Snapshot.Name, dir); err != nil {
			return err
		}
		return edit(dir)
	}})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.Pool.Delete(context.WithoutCancel(ctx), r.Work)) }()
	if err := r.fill(ctx, s, work); err != nil {
		return err
	}
	if err := work.Snapshot(ctx, as.Name, options(as)); err != nil {
		return err
	}
	return keeper.Adopt(ctx, work, as.Name, as, nil)
}

// fill writes what changed into the clone, and proves that.
func (r *RefreshRequest) fill(ctx context.Context, s Step, work storage.Volume) error {
	from, err := r.Source.SnapshotRoot(ctx, s.Snapshot.Name)
	if err != nil {
		return err
	}
	to, err := root(ctx, work, "")
	if err != nil {
		return err
	}
	c := contents(r.Source, r.Dir, false)
	var base *storage.Root
	if s.Base != "" {
		before, err := r.Source.SnapshotRoot(ctx, s.Base)
		if err != nil {
			return err
		}
		base = &before
	}
	if err := fit(ctx, work, from); err != nil {
		return err
	}
	if err := c.apply(ctx, base, from, to); err != nil {
		return err
	}
	if base == nil || r.Verify && s.Snapshot.Name == r.Mark {
		return c.prove(ctx, from, to)
	}
	return c.changed(ctx, base, from, to)
}

// Complete tells whether everything of the plan was brought.
func (p Plan) Complete(ctx context.Context, copy storage.Volume) (bool, error) {
	return has(ctx, copy, p.Mark)
}

func has(ctx context.Context, v storage.Volume, snapshot string) (bool, error) {
	list, err := v.Snapshots(ctx)
	return slices.ContainsFunc(list, func(s storage.Snapshot) bool { return s.Name == snapshot }), err
}

// Undo takes away what was brought. It can be repeated.
func (p Plan) Undo(ctx context.Context, source, copy storage.Volume) error {
	if err := drop(ctx, copy, p.Mark); err != nil {
		return err
	}
	for _, s := range p.New {
		if err := drop(ctx, copy, s.As); err != nil {
			return err
		}
	}
	return drop(ctx, source, p.Mark)
}

// Settle gives the snapshots that were brought their names, in the place of those
// that are gone at the source. It can be repeated.
func (p Plan) Settle(ctx context.Context, copy storage.Volume) error {
	for _, s := range p.New {
		there, err := has(ctx, copy, s.As)
		if err != nil {
			return err
		}
		if !there {
			continue // it has its name
		}
		if err := drop(ctx, copy, s.Snapshot.Name); err != nil {
			return err
		}
		if err := copy.RenameSnapshot(ctx, s.As, s.Snapshot.Name); err != nil {
			return err
		}
	}
	for _, name := range p.Gone {
		if slices.ContainsFunc(p.New, func(s Step) bool { return s.Snapshot.Name == name }) {
			continue
		}
		if err := drop(ctx, copy, name); err != nil {
			return err
		}
	}
	return nil
}

// Forget drops what only earlier refreshes needed. It can be repeated.
func (p Plan) Forget(ctx context.Context, source, copy storage.Volume) error {
	old := p.Old
	if !p.Keep {
		old = append(slices.Clone(old), p.Mark)
	}
	for _, name := range old {
		if err := errors.Join(drop(ctx, copy, name), drop(ctx, source, name)); err != nil {
			return err
		}
	}
	return nil
}

// drop deletes a snapshot, if it is there.
func drop(ctx context.Context, v storage.Volume, snapshot string) error {
	if v == nil {
		return nil
	}
	if err := v.DeleteSnapshot(ctx, snapshot); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
