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
		newDeviceAdd(s), newDeviceSet(s), newDeviceUnset(s), newDeviceOverride(s), newDeviceRemove(s), newDeviceList(s), newDeviceShow(s))
}

func newDeviceAdd(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "add NAME DEVICE TYPE [KEY=VALUE...]",
		Short: "Add a device to an instance",
		Long: `Add a device to an instance. A disk is a custom volume, a directory of the host, or
memory. Its keys:

  pool=POOL source=VOLUME   the volume
  source=/srv/data          or the directory
  source=tmpfs:             or memory, which is empty at each start
  size=64MiB                how much memory may hold; without it half of what there is
  path=/srv/data            where the instance has it; not for block volumes
  readonly=true             the instance can only read it
  shift=true                directories: the instance sees the owners that files have on
                            the host, and files that it makes belong to its ids there;
                            without it they are nobody's in a container with ids of its
                            own. A virtual machine always sees the owners of the host.
  required=false            directories: do without it if it is not there at the start

A unix-char or unix-block is a device file of the host in a container. Its keys:

  source=/dev/ttyUSB0       where the host has it
  path=/dev/modem           where the instance has it; without it, as the host does
  major=188 minor=0         which device it is; without them, the one at source
  mode=0660 uid=0 gid=0     its permissions, and its owner in the container
  required=false            do without it if it is not there at the start

Each instance has a network card, and a nic with the name eth0 sets it at the next start.
A nic with another name is one more card in the same network. Its keys:

  name=lan0                 what it is called in the instance; without it, as the device
  ipv4.address=10.1.2.3     its address, of brig's subnet
  hwaddr=02:00:00:01:02:03  its hardware address

A running container has a disk, device file or further card at once, and a running
virtual machine a block volume or card, up to four of them. It gets a file system by
virtiofsd, which has to be installed, at its next start. What is mounted on the host
below a directory is not seen in it.`,
		Example: `  brig config device add web data disk pool=default source=photos path=/srv/photos
  brig config device add web src disk source=/srv/src path=/src shift=true readonly=true
  brig config device add web modem unix-char source=/dev/ttyUSB0 gid=20`,
		Args: argsOf(3, -1),
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
			return s.print(f, deviceTable(devices), devices)
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
