package manager

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/project"
)

// A project's limits are about all its instances together. So whoever makes one, or
// changes what one may use, holds the lock of its project from the moment in which that
// is judged to the one in which others can see it: alone where the project has limits,
// and else beside others, which keeps away only those who give it some. These locks are
// taken before those of instances and profiles.

// admission is the right to change instances of projects.
type admission struct {
	m        *Manager
	locks    []*flock.Lock
	projects map[string]project.Project
	missing  map[string]error
}

// admit locks the projects of instances, by their full names, for a change of those. The
// project of one that is there may be missing: its pool came from another host.
func (m *Manager) admit(ctx context.Context, doing string, names ...string) (*admission, error) {
	var in []string
	for _, name := range names {
		in = append(in, project.Of(name))
	}
	return m.admitIn(ctx, doing, in)
}

// admitNew is admit for an instance that is to be in its project, which has to be there.
func (m *Manager) admitNew(ctx context.Context, doing, name string) (*admission, error) {
	a, err := m.admit(ctx, doing, name)
	if err != nil {
		return nil, err
	}
	if err := a.missing[project.Of(name)]; err != nil {
		a.release()
		return nil, fmt.Errorf("cannot %s %q: %w", doing, project.Short(name), err)
	}
	return a, nil
}

// admitProfiles is admit for all instances that may have a profile.
func (m *Manager) admitProfiles(ctx context.Context, doing, profile string) (*admission, error) {
	in, _ := project.SplitProfile(profile)
	if in != project.Default {
		return m.admitIn(ctx, doing, []string{in})
	}
	all, err := m.projects.List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(name string) bool {
		p, err := m.projects.Load(name)
		return err == nil && p.OwnProfiles()
	})
	return m.admitIn(ctx, doing, all)
}

func (m *Manager) admitIn(ctx context.Context, doing string, projects []string) (*admission, error) {
	a := &admission{m: m, projects: map[string]project.Project{}, missing: map[string]error{}}
	for _, in := range slices.Compact(slices.Sorted(slices.Values(projects))) {
		if err := a.lock(ctx, in); err != nil {
			a.release()
			return nil, fmt.Errorf("cannot %s anything in the project %q: %w", doing, in, err)
		}
	}
	return a, nil
}

// lock locks a project: alone if it has limits.
func (a *admission) lock(ctx context.Context, in string) error {
	if err := project.CheckName(in); err != nil {
		return err
	}
	for acquire, alone := flock.AcquireShared, false; ; {
		l, err := acquire(ctx, a.m.admissionLock(in))
		if err != nil {
			return err
		}
		p, err := a.m.projects.Load(in)
		if p.Limited() && !alone {
			l.Discard()
			acquire, alone = flock.Acquire, true
			continue
		}
		a.locks = append(a.locks, l)
		if fault.Is(err, fault.NotFound) {
			a.missing[in] = err
			p, err = project.Project{Name: in}, nil
		}
		a.projects[in] = p
		return err
	}
}

// admissionLock is the file that guards what instances a project has.
func (m *Manager) admissionLock(in string) string {
	return filepath.Join(m.cfg.Dirs.Run, "locks", "project-"+in+"-instances.lock")
}

// release gives the locks back. Doing it again is fine.
func (a *admission) release() {
	for _, l := range a.locks {
		l.Discard()
	}
	a.locks = nil
}

// until has an operation that makes an instance give the locks back when its first step
// has made it: then everybody can see it.
func (a *admission) until(op *operation) *operation {
	do := op.steps[0].do
	op.steps[0].do = func(ctx context.Context) error {
		err := do(ctx)
		if err == nil {
			a.release()
		}
		return err
	}
	return op
}

// check refuses what instances are to become if their projects do not allow it, or
// would have too much of it.
func (a *admission) check(ctx context.Context, become ...*instance.Spec) error {
	for _, spec := range become {
		if err := a.projects[project.Of(spec.Name)].Allows(judged(spec)); err != nil {
			return err
		}
	}
	return a.m.holds(ctx, a.projects, become)
}

// holds refuses instances that are too much for their projects, beside those that are
// there.
func (m *Manager) holds(ctx context.Context, projects map[string]project.Project, become []*instance.Spec) error {
	var views []View
	for _, in := range slices.Sorted(maps.Keys(projects)) {
		p := projects[in]
		of := func(s *instance.Spec) bool { return project.Of(s.Name) == in }
		if !p.Limited() || !slices.ContainsFunc(become, of) {
			continue
		}
		if views == nil {
			var err error
			if views, err = m.List(ctx); err != nil {
				return err
			}
		}
		var all []project.Instance
		for _, spec := range become {
			if of(spec) {
				all = append(all, judged(spec))
			}
		}
		for _, v := range views {
			same := func(s *instance.Spec) bool { return s.ID == v.Spec.ID || s.Name == v.Spec.Name }
			if of(v.Spec) && !slices.ContainsFunc(become, same) {
				all = append(all, judged(v.Spec))
			}
		}
		if err := p.Holds(all); err != nil {
			return err
		}
	}
	return nil
}

// wouldAdmit is a first look whether a new instance will be admitted, before much is
// done for it.
func (m *Manager) wouldAdmit(ctx context.Context, spec *instance.Spec) error {
	in := project.Of(spec.Name)
	p, err := m.projects.Load(in)
	if err == nil {
		err = p.Allows(judged(spec))
	}
	if err != nil {
		return err
	}
	return m.holds(ctx, map[string]project.Project{in: p}, []*instance.Spec{spec})
}

// judged is what a project has to know of an instance.
func judged(spec *instance.Spec) project.Instance {
	return project.Instance{
		Name: spec.Name, VM: spec.Type == instance.VirtualMachine,
		Config: spec.Effective.Config, Devices: spec.Effective.Devices,
	}
}

// projectOf gives the project of an instance; one that is not here restricts nothing.
func (m *Manager) projectOf(name string) (project.Project, error) {
	p, err := m.projects.Load(project.Of(name))
	if fault.Is(err, fault.NotFound) {
		return project.Project{Name: project.Of(name)}, nil
	}
	return p, err
}

// allowed refuses an instance that its project does not allow.
func (m *Manager) allowed(spec *instance.Spec) error {
	p, err := m.projectOf(spec.Name)
	if err != nil {
		return err
	}
	return p.Allows(judged(spec))
}

// allowedDevice refuses a device that the project of an instance does not allow. Where
// its source leads is known by now.
func (m *Manager) allowedDevice(spec *instance.Spec, name string, keys map[string]string, a instance.Attached) error {
	p, err := m.projectOf(spec.Name)
	if err != nil {
		return err
	}
	one := project.Instance{Name: spec.Name, Devices: map[string]map[string]string{name: keys}}
	if err := p.Allows(one); err != nil || a.Dir == "" {
		return err
	}
	one.Devices[name] = map[string]string{"type": "disk", "source": a.Dir}
	return p.Allows(one)
}

// allowedTo refuses what a restricted project does not allow to do with its instances.
func (m *Manager) allowedTo(name, key string) error {
	p, err := m.projectOf(name)
	if err != nil {
		return err
	}
	return p.Permits(key)
}

// checkNewProject refuses another full name for an instance if its new project, in case
// it is another one, cannot have it.
func (m *Manager) checkNewProject(ctx context.Context, a *admission, is *instance.Spec, to string) error {
	if project.Of(is.Name) == project.Of(to) {
		return nil
	}
	who, _, err := m.dependentsOn(ctx, is.Name)
	if err != nil {
		return err
	}
	if len(who) > 0 {
		return fault.New(fault.WrongState, "%s depends on it at boot (boot.depends), and only instances of one project do", who[0])
	}
	spec := *is
	spec.Name = to
	m.resolve(&spec)
	if err := m.check(&spec); err != nil {
		return err
	}
	if err := m.checkNewDepends(ctx, &instance.Spec{}, &spec); err != nil {
		return err
	}
	return a.check(ctx, &spec)
}

// checkGoBack refuses to bring an instance back to a state that its project does not
// allow now.
func (m *Manager) checkGoBack(ctx context.Context, a *admission, inst *opened, snapshot string) error {
	p := a.projects[project.Of(inst.spec.Name)]
	if !p.Restricted() && !p.Limited() {
		return nil
	}
	spec, err := snapshotSpec(ctx, inst, snapshot)
	if err != nil {
		return err
	}
	spec.ID = inst.spec.ID
	m.resolve(spec)
	return a.check(ctx, spec)
}
