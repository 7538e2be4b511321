package cli

import (
	"maps"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newDeviceSet(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "set NAME DEVICE KEY=VALUE...",
		Short: "Change keys of an instance's own device; an empty value takes one away",
		Long: `Change keys of an instance's own device, all or none. A running container has the
device taken away and gets it again as it is to be, which needs that nothing in it uses
the device.`,
		Example: "  brig config device set web src readonly=true\n  brig config device set web src path=/usr/src shift=",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[2:]))
			if err != nil {
				return err
			}
			return s.changeDevice(cmd, args[0], args[1], func(device map[string]string) error {
				return setKeys(device, set)
			})
		},
		ValidArgsFunction: s.completeDevices,
	}
}

func newDeviceUnset(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "unset NAME DEVICE KEY...",
		Short:   "Take keys away from an instance's own device, all or none of them",
		Example: "  brig config device unset web src readonly\n  brig config device unset web src shift required",
		Args:    argsOf(3, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[2:]); err != nil {
				return err
			}
			return s.changeDevice(cmd, args[0], args[1], func(device map[string]string) error {
				for _, key := range args[2:] {
					if _, ok := device[key]; !ok {
						return fault.New(fault.NotFound, "%q of the device %q is not set", key, args[1])
					}
					delete(device, key)
				}
				return nil
			})
		},
		ValidArgsFunction: s.completeDevices,
	}
}

func newDeviceOverride(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "override NAME DEVICE [KEY=VALUE...]",
		Short:   "Give an instance a device of its own like that of its profile, with keys changed",
		Example: "  brig config device override web src readonly=true\n  brig config device override web cache size=1GiB",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			set, err := parseConfig(pairsOf(args[2:]))
			if err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			v, err := m.Get(cmd.Context(), args[0], manager.GetOptions{})
			if err != nil {
				return err
			}
			device := maps.Clone(v.Spec.Effective.Devices[args[1]])
			return s.change(cmd, args[0], "Overrode the device "+args[1]+" of "+args[0], func(st *manager.Settings) error {
				switch {
				case st.Devices[args[1]] != nil:
					return fault.New(fault.AlreadyExists, "the device %q is its own; change it with brig config device set %s %s", args[1], args[0], args[1])
				case device == nil:
					return fault.New(fault.NotFound, "no profile of it has a device %q", args[1])
				}
				st.Devices[args[1]] = device
				return setKeys(device, set)
			})
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}

// changeDevice changes the keys of an instance's own device.
func (s *session) changeDevice(cmd *cobra.Command, name, device string, edit func(map[string]string) error) error {
	return s.change(cmd, name, "Changed the device "+device+" of "+name, func(st *manager.Settings) error {
		keys := maps.Clone(st.Devices[device])
		if keys == nil {
			return fault.New(fault.NotFound, "it has no device %q of its own; one of a profile is changed with brig config device override %s %s", device, name, device)
		}
		if err := edit(keys); err != nil {
			return err
		}
		st.Devices[device] = keys
		return nil
	})
}

// setKeys sets keys of a device; those with an empty value are taken away.
func setKeys(device, set map[string]string) error {
	if _, ok := set["type"]; ok {
		return fault.New(fault.Invalid, "the type of a device stays: remove it and add another")
	}
	for key, value := range set {
		if device[key] = value; value == "" {
			delete(device, key)
		}
	}
	return nil
}
