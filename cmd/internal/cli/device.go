package cli

import (
	"maps"
	"slices"

	"github.com/spf13/cobra"

	"brig/instance/fault"
	"brig/instance/manager"
)

func newConfigDevice(s *session) *cobra.Command {
	return newGroup("device", "See and change the devices of instances",
		newDeviceAdd(s), newDeviceRemove(s), newDeviceList(s), newDeviceShow(s))
}

func newDeviceAdd(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME DEVICE TYPE [KEY=VALUE...]",
		Short: "Add a device to an instance",
		Long: `Add a device to an instance. There is one type, disk: a custom volume. Its keys:

  pool=POOL source=VOLUME   the volume
  path=/srv/data            where the instance has it; not for block volumes
  readonly=true             the instance can only read it

A virtual machine gets a file system by virtiofsd, which has to be installed.`,
		Example: "  brig config device add web data disk pool=default source=photos path=/srv/photos",
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
			m, err := s.manager()
			if err != nil {
				return err
			}
			later, err := m.AddDevice(cmd.Context(), manager.DeviceRequest{Instance: args[0], Name: args[1], Device: keys})
			if err != nil {
				return err
			}
			s.attached("Added the device "+args[1]+" to "+args[0], later)
			return nil
		},
		ValidArgsFunction: s.completeInstances(1),
	}
}

func newDeviceRemove(s *session) *cobra.Command {
	return &cobra.Command{
		Use:     "remove NAME DEVICE...",
		Aliases: []string{"rm"},
		Short:   "Take devices away from an instance",
		Args:    argsOf(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := distinct(args[1:]); err != nil {
				return err
			}
			m, err := s.manager()
			if err != nil {
				return err
			}
			for _, device := range args[1:] {
				if err := m.RemoveDevice(cmd.Context(), args[0], device); err != nil {
					return err
				}
				s.say("Removed the device %s from %s", device, args[0])
			}
			return nil
		},
		ValidArgsFunction: s.completeDevices,
	}
}

func newDeviceList(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:     "list NAME",
		Aliases: []string{"ls"},
		Short:   "List the devices of an instance",
		Args:    argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			devices, err := s.devicesOf(cmd, args[0])
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "TYPE", "POOL", "SOURCE", "PATH"}}
			for _, name := range slices.Sorted(maps.Keys(devices)) {
				d := devices[name]
				t.add(name, d["type"], d["pool"], d["source"], d["path"])
			}
			return s.print(f, t, devices)
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func newDeviceShow(s *session) *cobra.Command {
	var kind string
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "Show the devices of an instance with all their keys",
		Args:  argsOf(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := parseFormat(kind)
			if err != nil {
				return err
			}
			devices, err := s.devicesOf(cmd, args[0])
			if err != nil {
				return err
			}
			t := &table{header: []string{"NAME", "KEY", "VALUE"}}
			for _, name := range slices.Sorted(maps.Keys(devices)) {
				for _, key := range slices.Sorted(maps.Keys(devices[name])) {
					t.add(name, key, devices[name][key])
				}
			}
			return s.print(f, t, devices)
		},
		ValidArgsFunction: s.completeInstances(1),
	}
	formatFlag(cmd, &kind)
	return cmd
}

func (s *session) devicesOf(cmd *cobra.Command, name string) (map[string]map[string]string, error) {
	m, err := s.manager()
	if err != nil {
		return nil, err
	}
	v, err := m.Get(cmd.Context(), name, manager.GetOptions{})
	if err != nil {
		return nil, err
	}
	if v.Spec.Devices == nil {
		return map[string]map[string]string{}, nil
	}
	return v.Spec.Devices, nil
}

// completeDevices completes an instance and then its devices.
func (s *session) completeDevices(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return s.instanceNames(cmd), nothing
	}
	devices, err := s.devicesOf(cmd, args[0])
	if err != nil {
		return nil, nothing
	}
	return without(slices.Sorted(maps.Keys(devices)), args[1:]), nothing
}
