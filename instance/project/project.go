// Package project is what projects are: name spaces of instances with profiles,
// limits and restrictions of their own, in Incus's words
// (https://linuxcontainers.org/incus/docs/main/reference/projects/). It is pure: who
// keeps projects, and where, is not known here.
//
// Everywhere in brig an instance goes by its full name: its name alone in the project
// default, PROJECT_NAME in another one. That is what its volume is called, its lock and
// its intents; since no name has an underscore in it, two never meet, and what was made
// before there were projects is in default, as it is on disk. Names of networks
// interfaces, cgroups, run directories and processes come of an instance's id, which
// is its own in all projects; addresses are given out over all of them. Inside, an
// instance is called by its short name. The full name is good in every command, in
// whatever project it is given.
//
// A project other than default with features.profiles has profiles of its own, which
// are called PROJECT/NAME inside brig. Images and custom volumes are those of all.
package project

import (
	"maps"
	"slices"
	"strings"

	"brig/instance/fault"
	"brig/instance/spelling"
)

// Project is a name space of instances.
type Project struct {
	Name        string
	Description string
	Config      map[string]string
}

// Clone gives a project that shares nothing with p.
func (p Project) Clone() Project {
	p.Config = maps.Clone(p.Config)
	if p.Config == nil {
		p.Config = map[string]string{}
	}
	return p
}

// value is what counts for a key.
func (p Project) value(key string) string {
	if v, ok := p.Config[key]; ok {
		return v
	}
	if k, err := Find(key); err == nil {
		return k.Default
	}
	return ""
}

// OwnProfiles tells whether the project has profiles of its own.
func (p Project) OwnProfiles() bool {
	return p.Name != Default && p.value("features.profiles") == "true"
}

// Restricted tells whether the restricted.* keys count.
func (p Project) Restricted() bool { return p.value("restricted") == "true" }

// Limited tells whether the project says how much its instances may be or use.
func (p Project) Limited() bool {
	for key := range p.Config {
		if strings.HasPrefix(key, "limits.") {
			return true
		}
	}
	return false
}

// Check refuses keys that are unknown, and values that make no sense.
func (p Project) Check() error {
	for _, name := range slices.Sorted(maps.Keys(p.Config)) {
		k, err := Find(name)
		if err != nil {
			return err
		}
		value := p.Config[name]
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(value) > 4<<10 {
			return fault.New(fault.Invalid, "the value of %q is too long or has a control character", name)
		}
		if err := k.check(value); err != nil {
			return fault.New(fault.Of(err), "the value %q of %q cannot be used: %w", value, name, err)
		}
		if p.Name == Default && strings.HasPrefix(name, "features.") {
			return fault.New(fault.Invalid, "the project %q has all that is its own: %q cannot be set", Default, name)
		}
	}
	if strings.ContainsFunc(p.Description, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return fault.New(fault.Invalid, "the description has a control character")
	}
	return nil
}

// Find gives the key of a name. One that there is not is invalid; the error names the
// key that was probably meant.
func Find(name string) (Key, error) {
	var names []string
	for _, k := range Keys() {
		if k.Name == name || strings.HasPrefix(k.Name, "user.") && strings.HasPrefix(name, "user.") && len(name) > len("user.") {
			return k, nil
		}
		names = append(names, k.Name)
	}
	if why, ok := unsupported[name]; ok {
		return Key{}, fault.New(fault.Unsupported, "the key %q of a project cannot be used: %s", name, why)
	}
	if near := spelling.Nearest(name, names); near != "" {
		return Key{}, fault.New(fault.Invalid, "there is no key %q of a project; did you mean %q? (brig project --help lists all)", name, near)
	}
	return Key{}, fault.New(fault.Invalid, "there is no key %q of a project; brig project --help lists those there are", name)
}
