package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"brig/instance/config"
	"brig/instance/fault"
	"brig/profiles"
)

func newProfileGet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "get PROFILE KEY",
		Short:   "Print the value of a key of a profile",
		Example: "  brig profile get small limits.memory\n  brig profile get default snapshots.schedule",
		Args:    argsOf(2, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := s.profile(cmd, args[0])
			if err != nil {
				return err
			}
			value, ok := p.Config[args[1]]
			if !ok {
				return fault.New(fault.NotFound, "%q is not set in the profile %q", args[1], args[0])
			}
			_, err = fmt.Fprintln(s.Stdout, value)
			return err
		},
		ValidArgsFunction: s.completeProfileKeys,
	}
}

// changeProfile changes a profile and says what that did.
func (s *session) changeProfile(cmd *cobra.Command, name, said string, edit func(*profiles.Profile) error) error {
	m, err := s.manager()
	if err != nil {
		return err
	}
	later, err := m.ChangeProfile(cmd.Context(), name, func(p *profiles.Profile) error {
		p.Config, p.Devices = orEmpty(p.Config), orEmpty(p.Devices)
		return edit(p)
	})
	if err != nil {
		return err
	}
	s.changed(said, later)
	return nil
}

func newProfileSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set PROFILE KEY=VALUE...",
		Short:   "Set keys of a profile, all or none of them",
		Example: "  brig profile set small limits.memory=1GiB\n  brig profile set default snapshots.schedule=@daily snapshots.keep=daily=7",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[1:]))
			if err != nil {
				return err
			}
			return s.changeProfile(cmd, args[0], "Changed the profile "+args[0], func(p *profiles.Profile) error {
				maps.Copy(p.Config, set)
				return nil
			})
		},
		ValidArgsFunction: s.completeNewKeys(s.profileNames),
	}
}

// pairsOf takes KEY VALUE for KEY=VALUE.
func pairsOf(words []string) []string {
	if len(words) == 2 && !strings.Contains(words[0], "=") {
		return []string{words[0] + "=" + words[1]}
	}
	return words
}

func newProfileUnset(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "unset PROFILE KEY...",
		Short:   "Take keys away from a profile, all or none of them",
		Example: "  brig profile unset small limits.memory\n  brig profile unset default snapshots.schedule snapshots.keep",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			return s.changeProfile(cmd, args[0], "Changed the profile "+args[0], func(p *profiles.Profile) error {
				return unsetAll(p.Config, args[1:], known(config.Find))
			})
		},
		ValidArgsFunction: s.completeProfileKeys,
	}
}

// known makes a check of what finds a key.
func known[Key any](find func(name string) (Key, error)) func(string) error {
	return func(name string) error { _, err := find(name); return err }
}

// unsetAll takes keys away. Check says of a key that is not there whether there is one.
func unsetAll(from map[string]string, keys []string, check func(key string) error) error {
	for _, key := range keys {
		if _, ok := from[key]; !ok {
			if err := check(key); err != nil {
				return err
			}
			return fault.New(fault.NotFound, "%q is not set", key)
		}
		delete(from, key)
	}
	return nil
}

func newProfileDevice(s *session) *cobra.Command {
	return newGroup("device", "See and change the devices of profiles",
		newProfileDeviceAdd(s), newProfileDeviceSet(s), newProfileDeviceRemove(s), newProfileDeviceShow(s))
}

func newProfileDeviceAdd(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "add PROFILE DEVICE TYPE [KEY=VALUE...]",
		Short:   "Add a device to a profile",
		Long:    "Add a device to a profile, with the keys of brig config device add. One of the type\nnone takes away the device of this name that an earlier profile has.",
		Example: "  brig profile device add web photos disk pool=default source=photos path=/srv/photos\n  brig profile device add bare photos none",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			keys, err := parseConfig(args[3:])
			if err != nil {
				return err
			}
			if _, twice := keys["type"]; twice {
				return fault.New(fault.Invalid, "%s is given twice", "type")
			}
			keys["type"] = args[2]
			return s.changeProfile(cmd, args[0], "Added the device "+args[1]+" to the profile "+args[0], func(p *profiles.Profile) error {
				if _, ok := p.Devices[args[1]]; ok {
					return fault.New(fault.AlreadyExists, "it has a device %q", args[1])
				}
				p.Devices[args[1]] = keys
				return nil
			})
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

func newProfileDeviceSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "set PROFILE DEVICE KEY=VALUE...",
		Short:   "Change keys of a profile's device; an empty value takes one away",
		Example: "  brig profile device set web photos readonly=true\n  brig profile device set web photos readonly=",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[2:]))
			if err != nil {
				return err
			}
			return s.changeProfile(cmd, args[0], "Changed the device "+args[1]+" of the profile "+args[0], func(p *profiles.Profile) error {
				if p.Devices[args[1]] == nil {
					return fault.New(fault.NotFound, "it has no device %q", args[1])
				}
				return setKeys(p.Devices[args[1]], set)
			})
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

func newProfileDeviceRemove(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "remove PROFILE DEVICE...",
		Aliases: []string{"rm"},
		Short:   "Take devices away from a profile",
		Example: "  brig profile device remove web photos\n  brig profile device remove web photos music",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.changeProfile(cmd, args[0], "Changed the profile "+args[0], func(p *profiles.Profile) error {
				for _, device := range args[1:] {
					if p.Devices[device] == nil {
						return fault.New(fault.NotFound, "it has no device %q", device)
					}
					delete(p.Devices, device)
				}
				return nil
			})
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
}

func newProfileDeviceShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "show PROFILE",
		Aliases: []string{"list"},
		Short:   "Show the devices of a profile with all their keys",
		Example: "  brig profile device show web\n  brig profile device show web -f yaml",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			p, err := s.profile(cmd, args[0])
			if err != nil {
				return err
			}
			return s.print(f, deviceTable(p.Devices), orEmpty(p.Devices))
		},
		ValidArgsFunction: s.completeProfiles(0, 1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

// deviceTable has a line for each key of each device.
func deviceTable(devices map[string]map[string]string) *table {
	t := &table{header: []string{"NAME", "KEY", "VALUE"}}
	for _, name := range slices.Sorted(maps.Keys(devices)) {
		for _, key := range slices.Sorted(maps.Keys(devices[name])) {
			t.add(name, key, devices[name][key])
		}
	}
	return t
}
