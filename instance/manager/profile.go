package manager

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/profiles"
)

// ProfileView is a profile with the instances that have it.
type ProfileView struct {
	profiles.Profile
	UsedBy []string
	Error  string // why it cannot be read
}

// Profiles shows all profiles that instances of a project can have, sorted by name.
func (m *Manager) Profiles(ctx context.Context, in string) ([]ProfileView, error) {
	names, err := m.profilesFor(in)
	if err != nil {
		return nil, err
	}
	users, err := m.profileUsers(ctx)
	if err != nil {
		return nil, err
	}
	list := make([]ProfileView, 0, len(names))
	for _, name := range names {
		p, err := m.loadProfile(name)
		v := ProfileView{Profile: p, UsedBy: users[name]}
		if fault.Is(err, fault.NotFound) {
			continue // gone in the meantime
		}
		if err != nil {
			_, v.Name = project.SplitProfile(name)
			v.Error = err.Error()
		}
		list = append(list, v)
	}
	return list, nil
}

// Profile shows one profile.
func (m *Manager) Profile(ctx context.Context, name string) (*ProfileView, error) {
	p, err := m.loadProfile(name)
	if err != nil {
		return nil, err
	}
	users, err := m.profileUsers(ctx)
	if err != nil {
		return nil, err
	}
	return &ProfileView{Profile: p.Clone(), UsedBy: users[name]}, nil
}

// profileUsers gives the names of the instances that have each profile, sorted.
func (m *Manager) profileUsers(ctx context.Context) (map[string][]string, error) {
	views, err := m.List(ctx)
	if err != nil {
		return nil, err
	}
	users := map[string][]string{}
	for _, v := range views {
		for _, name := range v.Spec.Profiles {
			full := m.profileOf(v.Spec.Name, name)
			users[full] = append(users[full], v.Spec.Name)
		}
	}
	return users, nil
}

// PendingView is what an instance obeys only after its next start.
type PendingView struct {
	Instance string
	What     []string // keys, and devices as "device NAME"
}

// CreateProfile makes a profile that is not there yet. Instances that carry a profile
// of this name from elsewhere have this one from now on.
func (m *Manager) CreateProfile(ctx context.Context, p profiles.Profile) ([]PendingView, error) {
	return m.changeProfiles(ctx, "create", []string{p.Name}, func(have map[string]*profiles.Profile) error {
		if have[p.Name] != nil {
			return fault.New(fault.AlreadyExists, "cannot create profile %q: it exists; change it with brig profile edit %s", p.Name, p.Name)
		}
		have[p.Name] = &p
		return nil
	}, nil)
}

// CopyProfile makes a profile that says what another does.
func (m *Manager) CopyProfile(ctx context.Context, name, to string) error {
	p, err := m.loadProfile(name)
	if err != nil {
		return err
	}
	p = p.Clone()
	p.Name = to
	_, err = m.CreateProfile(ctx, p)
	return err
}

// ChangeProfile lets edit change a profile and gives what instances obey only after
// their next start. All instances that have it are changed with it, the running ones
// at once as far as that is possible; if one of them cannot be, nothing changes.
func (m *Manager) ChangeProfile(ctx context.Context, name string, edit func(*profiles.Profile) error) ([]PendingView, error) {
	return m.changeProfiles(ctx, "change", []string{name}, func(have map[string]*profiles.Profile) error {
		if have[name] == nil {
			_, err := m.loadProfile(name)
			return err
		}
		p := have[name].Clone()
		if err := edit(&p); err != nil {
			return fmt.Errorf("cannot change profile %q: %w", name, err)
		}
		p.Name = name
		have[name] = &p
		return nil
	}, nil)
}

// DeleteProfile deletes a profile that no instance has.
func (m *Manager) DeleteProfile(ctx context.Context, name string) error {
	if isDefaultProfile(name) {
		return fault.New(fault.Forbidden, "cannot delete profile %q: it is the one that is always there", name)
	}
	users, err := m.profileUsers(ctx)
	if err != nil {
		return err
	}
	if by := users[name]; len(by) > 0 {
		return fault.New(fault.WrongState, "cannot delete profile %q: %s; take it away first, with brig profile remove %s %s", name, haveIt(by), by[0], name)
	}
	_, err = m.changeProfiles(ctx, "delete", []string{name}, func(have map[string]*profiles.Profile) error {
		if have[name] == nil {
			_, err := m.loadProfile(name)
			if fault.Is(err, fault.NotFound) {
				return err
			}
		}
		have[name] = nil
		return nil
	}, func(users []*opened) error {
		if len(users) > 0 {
			return fault.New(fault.WrongState, "cannot delete profile %q: %q has it", name, users[0].spec.Name)
		}
		return nil
	})
	return err
}

func haveIt(names []string) string {
	if len(names) == 1 {
		return fmt.Sprintf("the instance %s has it", names[0])
	}
	return fmt.Sprintf("the instances %s have it", strings.Join(names, ", "))
}

// RenameProfile gives a profile another name, and so the instances that have it.
func (m *Manager) RenameProfile(ctx context.Context, name, to string) error {
	if isDefaultProfile(name) {
		return fault.New(fault.Forbidden, "cannot rename profile %q: it is the one that is always there", name)
	}
	_, err := m.changeProfiles(ctx, "rename", []string{name, to}, func(have map[string]*profiles.Profile) error {
		if have[name] == nil {
			_, err := m.loadProfile(name)
			return err
		}
		if have[to] != nil {
			return fault.New(fault.AlreadyExists, "cannot rename profile %q: there is one named %q", name, to)
		}
		p := have[name].Clone()
		p.Name = to
		have[to], have[name] = &p, nil
		return nil
	}, nil)
	return err
}

// profileLocks are the locks of profiles. Who needs those of instances, too, takes
// the instances' first.
func profileLocks(names []string) []string {
	locks := make([]string, len(names))
	for i, name := range names {
		locks[i] = "profile:" + name
	}
	return locks
}

// changeProfiles changes some profiles, and all instances that have one of them. What
// it does to what it is given in have is done; if a profile is gone then, and another
// is there that was not, instances have that one in its place. Allow, which may be
// nil, has a word on who is concerned.
func (m *Manager) changeProfiles(ctx context.Context, doing string, names []string, edit func(have map[string]*profiles.Profile) error, allow func([]*opened) error) ([]PendingView, error) {
	for _, name := range names {
		if err := m.checkProfileName(name); err != nil {
			return nil, err
		}
	}
	admitted, err := m.admitProfiles(ctx, doing, names[0])
	if err != nil {
		return nil, err
	}
	defer admitted.release()
	if in, _ := project.SplitProfile(names[0]); admitted.missing[in] != nil {
		return nil, admitted.missing[in]
	}
	users, release, err := m.lockProfiles(ctx, doing, names)
	if err != nil {
		return nil, err
	}
	defer release()
	if allow != nil {
		if err := allow(users); err != nil {
			return nil, err
		}
	}
	was, is := map[string]*profiles.Profile{}, map[string]*profiles.Profile{}
	for _, name := range names {
		if p, err := m.loadProfile(name); err == nil {
			was[name], is[name] = &p, &p
		} else if !fault.Is(err, fault.NotFound) && doing != "delete" {
			return nil, err
		}
	}
	if err := edit(is); err != nil {
		return nil, err
	}
	args, specs, err := m.planProfiles(ctx, doing, names, was, is, users)
	if err != nil {
		return nil, err
	}
	var become []*instance.Spec
	for i := 1; i < len(specs); i += 2 {
		become = append(become, specs[i])
	}
	if err := admitted.check(ctx, become...); err != nil {
		return nil, fmt.Errorf("cannot %s profile %q: %w", doing, names[0], err)
	}
	locked, err := m.lockDevices(ctx, doing, specs)
	if err != nil {
		return nil, err
	}
	defer locked.Release()
	locks := profileLocks(names)
	for _, c := range args.Instances {
		locks = append(locks, c.Name)
	}
	locks = append(locks, deviceLocks(specs)...)
	if err := m.perform(ctx, "reconfigure", locks, args); err != nil {
		return nil, fmt.Errorf("cannot %s profile %q: %w", doing, names[0], err)
	}
	m.tellProfiles(doing, names)
	return m.waiting(ctx, users), nil
}

// tellProfiles tells those who listen that profiles were changed.
func (m *Manager) tellProfiles(doing string, names []string) {
	lock := profileLocks(names)
	switch doing {
	case "create":
		m.tell("profile-created", lock[0], nil)
	case "change":
		m.tell("profile-updated", lock[0], nil)
	case "delete":
		m.tell("profile-deleted", lock[0], nil)
	case "rename":
		m.tell("profile-renamed", lock[1], map[string]any{"old_name": names[0]})
	}
}

// lockProfiles locks the instances that have one of some profiles, and then those
// profiles, and opens the instances.
func (m *Manager) lockProfiles(ctx context.Context, doing string, names []string) (list []*opened, release func(), err error) {
	for {
		users, err := m.usersOfProfiles(ctx, names)
		if err != nil {
			return nil, nil, err
		}
		instances, err := m.lock(ctx, doing, users...)
		if err != nil {
			return nil, nil, err
		}
		held, err := m.lock(ctx, doing, profileLocks(names)...)
		if err != nil {
			instances.Release()
			return nil, nil, err
		}
		release := func() { held.Release(); instances.Release() }
		now, err := m.usersOfProfiles(ctx, names)
		if err == nil && !slices.Equal(now, users) {
			release()
			continue
		}
		if err == nil {
			list, err = m.openAll(ctx, users)
		}
		if err != nil {
			release()
			return nil, nil, err
		}
		return list, release, nil
	}
}

func (m *Manager) usersOfProfiles(ctx context.Context, names []string) ([]string, error) {
	users, err := m.profileUsers(ctx)
	var all []string
	for _, name := range names {
		all = append(all, users[name]...)
	}
	slices.Sort(all)
	return slices.Compact(all), err
}

// openAll opens instances whose locks are held.
func (m *Manager) openAll(ctx context.Context, names []string) ([]*opened, error) {
	list := make([]*opened, len(names))
	for i, name := range names {
		var err error
		if list[i], err = m.open(ctx, name); err == nil {
			err = m.settle(ctx, list[i])
		}
		if err != nil {
			return nil, err
		}
	}
	return list, nil
}

// planProfiles says what a change of profiles does to the instances that have them,
// or why one of those refuses it. Specs are those instances before and after.
func (m *Manager) planProfiles(ctx context.Context, doing string, names []string, was, is map[string]*profiles.Profile, users []*opened) (args reconfigureArgs, specs []*instance.Spec, err error) {
	for _, name := range names {
		if is[name] != nil && is[name] != was[name] {
			if err := checkProfile(was[name], is[name]); err != nil {
				return args, nil, fmt.Errorf("cannot %s profile %q: %w", doing, name, err)
			}
		}
		args.Profiles = append(args.Profiles, profileChange{name, was[name], is[name]})
	}
	instead := map[string]*profiles.Profile{}
	for _, name := range names {
		instead[name] = is[name]
	}
	for _, u := range users {
		spec := *u.spec
		change := instanceChange{Name: spec.Name, ID: spec.ID}
		if len(names) == 2 { // renamed
			from, to := settingsOf(u.spec), settingsOf(u.spec)
			for i, p := range to.Profiles {
				if m.profileOf(spec.Name, p) == names[0] {
					_, to.Profiles[i] = project.SplitProfile(names[1])
				}
			}
			change.From, change.To = &from, &to
			to.applyTo(&spec)
		}
		m.resolveWith(&spec, instead)
		err := m.check(&spec)
		if err == nil {
			err = m.checkNewDevices(ctx, u.spec, &spec)
		}
		if err == nil {
			err = m.checkNewDepends(ctx, u.spec, &spec)
		}
		if err != nil {
			return args, nil, errFor(doing+" profile", names[0], spec.Name, err)
		}
		args.Instances = append(args.Instances, change)
		specs = append(specs, u.spec, &spec)
	}
	return args, specs, nil
}

// waiting gives what instances obey only after their next start.
func (m *Manager) waiting(ctx context.Context, users []*opened) []PendingView {
	var list []PendingView
	for _, u := range users {
		inst, err := m.same(ctx, u.spec.Name, u.spec.ID)
		if err != nil || inst == nil {
			continue
		}
		if what := m.pendingOf(inst.spec); len(what) > 0 {
			list = append(list, PendingView{u.spec.Name, what})
		}
	}
	return list
}
