// Package profiles is what profiles are and how an instance's configuration is
// made of them: pure functions over plain values. Several profiles apply in
// order, a later one over an earlier one, and the instance's own configuration
// over all. A key is taken or replaced as a whole, and so is a device: of two
// devices of one name nothing is mixed. A device of type none masks the one that
// an earlier profile has (Incus, "Profiles" and "Devices"). Who keeps profiles,
// and which keys there are, is not known here.
package profiles

import (
	"maps"
	"slices"

	"brig/instance/fault"
)

// Default is the profile that is always there.
const Default = "default"

// Profile is a named part of a configuration.
type Profile struct {
	Name        string
	Description string
	Config      map[string]string
	Devices     map[string]map[string]string
}

// Clone gives a profile that shares nothing with p.
func (p Profile) Clone() Profile {
	p.Config = maps.Clone(p.Config)
	devices := make(map[string]map[string]string, len(p.Devices))
	for name, options := range p.Devices {
		devices[name] = maps.Clone(options)
	}
	p.Devices = devices
	return p
}

// CheckName gives an invalid error unless a profile may have the name: 1 to 63
// letters, digits, dashes, dots and underscores, the first a letter or a digit.
func CheckName(name string) error {
	bad := fault.New(fault.Invalid, "cannot call a profile %q: want 1 to 63 letters, digits, dashes, dots and underscores, the first a letter or a digit", name)
	if name == "" || len(name) > 63 {
		return bad
	}
	for i := range len(name) {
		c := name[i]
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '.' && c != '_') {
			return bad
		}
	}
	return nil
}

// Own is the origin of what an instance itself says.
const Own = ""

// Value is a value of a key, and the profile it comes from, or Own.
type Value struct {
	Value  string
	Origin string
}

// Device is a device, and the profile it comes from, or Own.
type Device struct {
	Options map[string]string
	Origin  string
}

// Merged is a configuration with the origin of every part. Masked devices are
// not in it.
type Merged struct {
	Config  map[string]Value
	Devices map[string]Device
}

// Merge applies profiles in order, and then what the instance itself says. It
// shares nothing with its arguments.
func Merge(applied []Profile, config map[string]string, devices map[string]map[string]string) Merged {
	m := Merged{Config: map[string]Value{}, Devices: map[string]Device{}}
	for _, p := range applied {
		m.add(p.Name, p.Config, p.Devices)
	}
	m.add(Own, config, devices)
	maps.DeleteFunc(m.Devices, func(_ string, d Device) bool { return d.Options["type"] == "none" })
	return m
}

func (m Merged) add(origin string, config map[string]string, devices map[string]map[string]string) {
	for key, value := range config {
		m.Config[key] = Value{value, origin}
	}
	for name, options := range devices {
		m.Devices[name] = Device{maps.Clone(options), origin}
	}
}

// Values gives the configuration without the origins.
func (m Merged) Values() map[string]string {
	values := make(map[string]string, len(m.Config))
	for key, v := range m.Config {
		values[key] = v.Value
	}
	return values
}

// Options gives the devices without the origins.
func (m Merged) Options() map[string]map[string]string {
	devices := make(map[string]map[string]string, len(m.Devices))
	for name, d := range m.Devices {
		devices[name] = maps.Clone(d.Options)
	}
	return devices
}

// Changed gives the keys, sorted, whose values differ between two configurations.
func Changed(before, after map[string]string) []string {
	var keys []string
	for key, value := range after {
		if old, ok := before[key]; !ok || old != value {
			keys = append(keys, key)
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}
