package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/flock"
	"brig/instance/project"
	"brig/storage"
)

// ProjectView is a project with what is in it.
type ProjectView struct {
	project.Project
	Instances []string // short names, sorted
	Profiles  []string // its own
	Trash     []string // deleted instances that are still kept
	Error     string   // why it cannot be read
}

// UsedBy are the things that keep it from being deleted, as Incus names them.
func (v *ProjectView) UsedBy() []string {
	list := []string{}
	for _, name := range v.Instances {
		list = append(list, "/1.0/instances/"+name+query(v.Name))
	}
	for _, name := range v.Profiles {
		list = append(list, "/1.0/profiles/"+name+query(v.Name))
	}
	return list
}

func query(in string) string {
	if in == project.Default {
		return ""
	}
	return "?project=" + in
}

// Projects shows all projects, sorted by name.
func (m *Manager) Projects(ctx context.Context) ([]ProjectView, error) {
	names, err := m.projects.List()
	if err != nil {
		return nil, err
	}
	instances, trash, err := m.inProjects(ctx)
	if err != nil {
		m.cfg.Notice(err.Error())
	}
	list := []ProjectView{}
	for _, name := range names {
		v, err := m.projectView(name, instances, trash)
		if fault.Is(err, fault.NotFound) {
			continue // gone in the meantime
		}
		if err != nil {
			v.Error = err.Error()
		}
		list = append(list, *v)
	}
	return list, ctx.Err()
}

// Project shows one project.
func (m *Manager) Project(ctx context.Context, name string) (*ProjectView, error) {
	v, err := m.project(ctx, name)
	if v != nil && err != nil {
		m.cfg.Notice(err.Error())
		err = ctx.Err()
	}
	return v, err
}

// project gives a project with what is in it, and with an error if there may be more: what
// is in pools that cannot be looked into.
func (m *Manager) project(ctx context.Context, name string) (*ProjectView, error) {
	if _, err := m.projects.Load(name); err != nil {
		return nil, err
	}
	instances, trash, unknown := m.inProjects(ctx)
	v, err := m.projectView(name, instances, trash)
	if err != nil {
		return nil, err
	}
	return v, unknown
}

// HasProject refuses a project that is not there. It reads next to nothing.
func (m *Manager) HasProject(name string) error {
	_, err := m.projects.Load(name)
	return err
}

func (m *Manager) projectView(name string, instances, trash map[string][]string) (*ProjectView, error) {
	v := &ProjectView{Project: project.Project{Name: name}, Instances: instances[name], Trash: trash[name]}
	p, err := m.projects.Load(name)
	if err != nil {
		return v, err
	}
	v.Project = p.Clone()
	if name == project.Default || p.OwnProfiles() {
		names, err := m.profilesFor(name)
		if err != nil {
			return v, err
		}
		for _, full := range names {
			_, short := project.SplitProfile(full)
			v.Profiles = append(v.Profiles, short)
		}
	}
	return v, nil
}

// inProjects gives the short names of the instances of each project, and of those in
// its trash, of all pools that can be looked into. An error tells of the others.
func (m *Manager) inProjects(ctx context.Context) (instances, trash map[string][]string, err error) {
	all, unknown := m.instances(ctx)
	deleted, err := m.Trash(ctx, GetOptions{})
	if err != nil {
		return nil, nil, err
	}
	instances, trash = map[string][]string{}, map[string][]string{}
	for _, full := range all {
		in, name := project.Split(full)
		instances[in] = append(instances[in], name)
	}
	for _, t := range deleted {
		if t.Class == storage.Instances {
			in, name := project.Split(t.Name)
			trash[in] = append(trash[in], name)
		}
	}
	for _, names := range instances {
		slices.Sort(names)
	}
	return instances, trash, unknown
}

func projectLock(name string) string { return "project:" + name }

// lockProject locks a project against all who change it or its instances.
func (m *Manager) lockProject(ctx context.Context, doing string, names ...string) (release func(), err error) {
	var locks []string
	for _, name := range names {
		if err := project.CheckName(name); err != nil {
			return nil, err
		}
		locks = append(locks, projectLock(name))
	}
	held, err := m.lock(ctx, doing, locks...)
	if err != nil {
		return nil, err
	}
	var alone []*flock.Lock
	release = func() {
		for _, l := range alone {
			l.Discard()
		}
		held.Release()
	}
	for _, name := range slices.Sorted(slices.Values(names)) {
		l, err := flock.Acquire(ctx, m.admissionLock(name))
		if err != nil {
			release()
			return nil, fmt.Errorf("cannot %s the project %q: %w", doing, name, err)
		}
		alone = append(alone, l)
	}
	return release, nil
}

// CreateProject makes a project that is not there yet.
func (m *Manager) CreateProject(ctx context.Context, p project.Project) error {
	release, err := m.lockProject(ctx, "create", p.Name)
	if err != nil {
		return err
	}
	defer release()
	switch _, err := m.projects.Load(p.Name); {
	case err == nil:
		return fault.New(fault.AlreadyExists, "cannot create the project %q: it exists; change it with brig project set %s", p.Name, p.Name)
	case !fault.Is(err, fault.NotFound):
		return err
	}
	err = p.Check()
	if err == nil {
		// A pool of another host may have brought some.
		err = m.projectHolds(ctx, p)
	}
	if err == nil {
		err = m.projects.Save(p)
	}
	if err != nil {
		return fmt.Errorf("cannot create the project %q: %w", p.Name, err)
	}
	m.tell("project-created", projectLock(p.Name), nil)
	return nil
}

// ChangeProject lets edit change a project. What its instances could not be then is
// refused.
func (m *Manager) ChangeProject(ctx context.Context, name string, edit func(*project.Project) error) error {
	release, err := m.lockProject(ctx, "change", name)
	if err != nil {
		return err
	}
	defer release()
	was, err := m.projects.Load(name)
	if err != nil {
		return err
	}
	p := was.Clone()
	err = edit(&p)
	p.Name = name
	if err == nil {
		err = p.Check()
	}
	if err == nil && p.OwnProfiles() != was.OwnProfiles() {
		err = m.changesProfiles(ctx, name)
	}
	if err == nil {
		err = m.projectHolds(ctx, p)
	}
	if err == nil {
		err = m.projects.Save(p)
	}
	if err != nil {
		return fmt.Errorf("cannot change the project %q: %w", name, err)
	}
	m.tell("project-updated", projectLock(name), nil)
	return nil
}

// changesProfiles refuses to change whose profiles the instances of a project have,
// unless there are none.
func (m *Manager) changesProfiles(ctx context.Context, name string) error {
	v, err := m.Project(ctx, name)
	if err != nil {
		return err
	}
	return v.empty("features.profiles can be changed only while it is empty")
}

// projectHolds refuses what a project is to be if its instances could not be in it.
func (m *Manager) projectHolds(ctx context.Context, p project.Project) error {
	if !p.Restricted() && !p.Limited() {
		return nil
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	var all []project.Instance
	for _, v := range views {
		if project.Of(v.Spec.Name) != p.Name {
			continue
		}
		i := judged(v.Spec)
		if err := p.Allows(i); err != nil {
			return fmt.Errorf("its instance %q: %w", project.Short(i.Name), err)
		}
		all = append(all, i)
	}
	return p.Holds(all)
}

// empty refuses to do something because of what is in a project.
func (v *ProjectView) empty(because string) error {
	var has []string
	own := slices.DeleteFunc(slices.Clone(v.Profiles), func(name string) bool { return isDefaultProfile(name) })
	for _, in := range []struct {
		what  string
		names []string
	}{{"the instances", v.Instances}, {"the profiles", own}, {"in the trash", v.Trash}} {
		if len(in.names) > 0 {
			has = append(has, in.what+" "+strings.Join(in.names, ", "))
		}
	}
	if len(has) == 0 {
		return nil
	}
	return fault.New(fault.WrongState, "%s, and it has %s", because, strings.Join(has, "; "))
}

// projectArgs name a project that goes, or gets another name.
type projectArgs struct {
	Name string
	To   *project.Project `json:",omitempty"`
}

// DeleteProject deletes a project in which nothing is.
func (m *Manager) DeleteProject(ctx context.Context, name string) error {
	return m.endProject(ctx, "delete", projectArgs{Name: name})
}

// RenameProject gives a project in which nothing is but profiles another name.
func (m *Manager) RenameProject(ctx context.Context, name, to string) error {
	if err := project.CheckName(to); err != nil {
		return err
	}
	return m.endProject(ctx, "rename", projectArgs{name, &project.Project{Name: to}})
}

func (m *Manager) endProject(ctx context.Context, doing string, a projectArgs) error {
	if a.Name == project.Default {
		return fault.New(fault.Forbidden, "cannot %s the project %q: it is the one that is always there", doing, a.Name)
	}
	names := []string{a.Name}
	if a.To != nil {
		names = append(names, a.To.Name)
	}
	release, err := m.lockProject(ctx, doing, names...)
	if err != nil {
		return err
	}
	defer release()
	v, err := m.project(ctx, a.Name)
	if err != nil {
		return err
	}
	if a.To != nil {
		if _, err := m.projects.Load(a.To.Name); !fault.Is(err, fault.NotFound) {
			return fault.New(fault.AlreadyExists, "cannot rename the project %q: there is one named %q", a.Name, a.To.Name)
		}
		to := v.Project.Clone()
		to.Name, a.To, v.Profiles = a.To.Name, &to, nil
	}
	if err := v.empty("only one in which nothing is can go"); err != nil {
		return fmt.Errorf("cannot %s the project %q: %w", doing, a.Name, err)
	}
	locks := make([]string, len(names))
	for i, name := range names {
		locks[i] = projectLock(name)
	}
	if err := m.perform(ctx, "project-"+doing, locks, a); err != nil {
		return fmt.Errorf("cannot %s the project %q: %w", doing, a.Name, err)
	}
	return nil
}

func (m *Manager) projectDeleteOperation(a projectArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "forget", do: func(context.Context) error { return m.projects.Remove(a.Name) }},
		{name: "profiles", do: func(context.Context) error { return m.projects.Clear(a.Name) }},
	}}
}

func (m *Manager) projectRenameOperation(a projectArgs) *operation {
	return &operation{forward: true, steps: []step{
		{name: "profiles", do: func(context.Context) error { return m.projects.MoveProfiles(a.Name, a.To.Name) }},
		{name: "name", do: func(context.Context) error { return m.projects.Save(*a.To) }},
		{name: "forget", do: func(context.Context) error { return m.projects.Remove(a.Name) }},
	}}
}
