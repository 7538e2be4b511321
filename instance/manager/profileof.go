package manager

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store/profilestore"
	"brig/profiles"
)

// Profiles go by their full names here: those of projects that have their own have the
// project before them.

// profileStores keep the profiles of each project that has its own.
type profileStores struct {
	dir func(project string) string

	mu    sync.Mutex
	known map[string]profilestore.Store // guarded by mu
}

func (s *profileStores) of(in string) profilestore.Store {
	s.mu.Lock()
	defer s.mu.Unlock()
	known, ok := s.known[in]
	if !ok {
		known = profilestore.New(s.dir(in))
		s.known[in] = known
	}
	return known
}

// profileOf gives the full name of a profile that the instance called name has.
func (m *Manager) profileOf(name, profile string) string {
	return m.ProfileIn(project.Of(name), profile)
}

// ProfileIn gives the full name of a profile for those who work in a project.
func (m *Manager) ProfileIn(in, profile string) string {
	if in == project.Default {
		return profile
	}
	if p, err := m.projects.Load(in); err == nil && !p.OwnProfiles() {
		return profile
	}
	return project.FullProfile(in, profile)
}

// profilesOf gives the full names of an instance's profiles.
func (m *Manager) profilesOf(spec *instance.Spec) []string {
	list := make([]string, len(spec.Profiles))
	for i, name := range spec.Profiles {
		list[i] = m.profileOf(spec.Name, name)
	}
	return list
}

func isDefaultProfile(full string) bool {
	_, name := project.SplitProfile(full)
	return name == profiles.Default
}

// checkProfileName refuses what is no profile's name, or one of a project that is not
// there or has none of its own.
func (m *Manager) checkProfileName(full string) error {
	in, name := project.SplitProfile(full)
	if err := profiles.CheckName(name); err != nil {
		return err
	}
	if in == project.Default {
		if name != full {
			return fault.New(fault.Invalid, "cannot use the profile %q: in the project %s it is called %q alone", full, in, name)
		}
		return nil
	}
	p, err := m.projects.Load(in)
	if err == nil && !p.OwnProfiles() {
		err = fault.New(fault.Invalid, "the project %q has the profiles of the project %s", in, project.Default)
	}
	return err
}

// loadProfile gives the profile with this full name. What it calls itself is without
// its project.
func (m *Manager) loadProfile(full string) (profiles.Profile, error) {
	in, name := project.SplitProfile(full)
	if err := project.CheckName(in); err != nil {
		return profiles.Profile{}, err
	}
	p, err := m.profiles.of(in).Load(name)
	if err != nil && in != project.Default {
		err = fmt.Errorf("project %q: %w", in, err)
	}
	return p, err
}

func (m *Manager) saveProfile(full string, p profiles.Profile) error {
	in, name := project.SplitProfile(full)
	if err := project.CheckName(in); err != nil {
		return err
	}
	p.Name = name
	return m.profiles.of(in).Save(p)
}

func (m *Manager) removeProfile(full string) error {
	in, name := project.SplitProfile(full)
	if err := project.CheckName(in); err != nil {
		return err
	}
	return m.profiles.of(in).Remove(name)
}

// profilesFor gives the full names of the profiles that instances of a project can
// have.
func (m *Manager) profilesFor(in string) ([]string, error) {
	if in != project.Default {
		p, err := m.projects.Load(in)
		if err != nil {
			return nil, err
		}
		if !p.OwnProfiles() {
			in = project.Default
		}
	}
	names, err := m.profiles.of(in).List()
	for i := range names {
		names[i] = project.FullProfile(in, names[i])
	}
	return names, err
}

// everyProfile gives the full names of all profiles of all projects.
func (m *Manager) everyProfile() ([]string, error) {
	projects, err := m.projects.List()
	if err != nil {
		return nil, err
	}
	var all []string
	for _, in := range projects {
		names, err := m.profilesFor(in)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return nil, err
		}
		all = append(all, names...)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// checkProfile refuses what a profile cannot say. What it said before is not judged.
func checkProfile(was, is *profiles.Profile) error {
	if was == nil {
		was = new(profiles.Profile)
	}
	set := maps.Clone(is.Config)
	maps.DeleteFunc(set, func(key, value string) bool { old, ok := was.Config[key]; return ok && old == value })
	if err := config.Check("", set); err != nil {
		return err
	}
	if strings.ContainsFunc(is.Description, isControl) {
		return fault.New(fault.Invalid, "the description has a control character")
	}
	for _, name := range slices.Sorted(maps.Keys(is.Devices)) {
		if old, ok := was.Devices[name]; ok && maps.Equal(old, is.Devices[name]) {
			continue
		}
		if err := checkProfileDevice(name, is.Devices[name]); err != nil {
			return err
		}
	}
	return nil
}

func isControl(r rune) bool { return r < ' ' || r == 0x7f }
