package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
)

// dependent is an instance that says itself that it starts after another.
type dependent struct {
	Name, ID string
}

// dependentsOn gives the instances that start after one, sorted, and those among
// them that say so themselves. Of the others it is a profile that says it. An
// instance that cannot be read is passed over.
func (m *Manager) dependentsOn(ctx context.Context, name string) (all []string, own []dependent, err error) {
	views, err := m.List(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, v := range views {
		if v.Spec.ID == "" || v.Spec.Name == name {
			continue
		}
		if slices.Contains(depends(v.Spec.Name, m.configOf(v.Spec)), name) {
			all = append(all, v.Spec.Name)
		}
		if slices.Contains(depends(v.Spec.Name, v.Spec.Config), name) {
			own = append(own, dependent{v.Spec.Name, v.Spec.ID})
		}
	}
	return all, own, nil
}

// lockToRename is openLocked of an instance, of the name that it is to have, and of
// the instances that are to depend on that.
func (m *Manager) lockToRename(ctx context.Context, name, to string) (*opened, *store.Held, []dependent, error) {
	for {
		_, who, err := m.dependentsOn(ctx, name)
		if err != nil {
			return nil, nil, nil, err
		}
		others := []string{to}
		for _, d := range who {
			others = append(others, d.Name)
		}
		inst, held, err := m.openLocked(ctx, "rename", name, others...)
		if err != nil {
			return nil, nil, nil, err
		}
		_, now, err := m.dependentsOn(ctx, name)
		if err == nil && slices.Equal(now, who) {
			return inst, held, who, nil
		}
		held.Release()
		if err != nil {
			return nil, nil, nil, err
		}
	}
}

// checkRename refuses another name for an instance where a profile says who depends
// on the one it has, or where who depends on whom would go in a circle.
func (m *Manager) checkRename(ctx context.Context, name, to string) error {
	list, err := m.profilesFor(project.Of(name))
	if err != nil {
		return err
	}
	for _, by := range list {
		if p, err := m.loadProfile(by); err == nil && slices.Contains(depends(name, p.Config), name) {
			return fault.New(fault.WrongState, "the profile %q says that instances depend on it; change boot.depends there first, with brig profile edit %s", by, by)
		}
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	after := map[string][]string{}
	for _, v := range views {
		before := depends(v.Spec.Name, m.configOf(v.Spec))
		if slices.Contains(before, name) && v.Spec.Name != name && !slices.Contains(depends(v.Spec.Name, v.Spec.Config), name) {
			return fault.New(fault.WrongState, "%q depends on it by a profile that it brought along; say so in its own boot.depends first, with brig config set %s boot.depends=%s", v.Spec.Name, v.Spec.Name, strings.Join(before, ","))
		}
		as := v.Spec.Name
		if as == name {
			as = to
		}
		after[as] = renamedIn(before, name, to)
	}
	return circleThrough(after, to)
}

// renamedIn gives a list of names where one of them is another.
func renamedIn(names []string, name, to string) []string {
	list := slices.Clone(names)
	for i, n := range list {
		if n == name {
			list[i] = to
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// shortNames are full names as boot.depends has them.
func shortNames(names []string) []string {
	for i := range names {
		names[i] = project.Short(names[i])
	}
	return names
}

// followRename makes instances depend on the new name.
func (m *Manager) followRename(ctx context.Context, a renameArgs) error {
	for _, d := range a.Dependents {
		inst, err := m.same(ctx, d.Name, d.ID)
		if err != nil {
			return err
		}
		if inst == nil || !slices.Contains(depends(a.From, inst.spec.Config), a.From) {
			continue
		}
		inst.spec.Config["boot.depends"] = strings.Join(shortNames(renamedIn(depends(a.From, inst.spec.Config), a.From, a.To)), ",")
		if err := saveSpec(inst.volume, inst.spec); err != nil {
			return err
		}
	}
	return nil
}

// tellDependents says who depended on an instance that was deleted.
func (m *Manager) tellDependents(name string, who []string) {
	if len(who) > 0 {
		m.cfg.Notice(fmt.Sprintf("%s still waits for %s at boot (boot.depends), which is deleted: brig boot starts without it.", strings.Join(who, " and "), name))
	}
}
