package manager

import (
	"context"
	"fmt"
	"maps"
	"os"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/size"
	"brig/instance/store"
	"brig/storage"
)

// emptyFirmware starts an installer, and what that installs: SeaBIOS remembers nothing.
const emptyFirmware = "bios"

// minEmpty is the least that a system could be installed on, in bytes.
const minEmpty = 1 << 20

// emptyMachine has a virtual machine begin with an empty disk. The one thing that can be
// said of its root disk is the size: by the device root, as Incus has it.
func emptyMachine(args createArgs, r CreateRequest) (createArgs, error) {
	spec := args.Spec
	spec.Architecture = images.HostArchitecture()
	spec.Image = instance.Image{Firmware: emptyFirmware, Description: "Empty"}
	if spec.Config == nil {
		spec.Config = map[string]string{}
	}
	args.Empty = diskSize
	if text := r.Devices[rootDevice]["size"]; text != "" {
		n, err := size.Parse(text)
		if err != nil || n < minEmpty || n > maxVolume {
			return args, fault.New(fault.Invalid, "the root disk cannot have the size %q: want from 1MiB to 64TiB, for example 20GiB", text)
		}
		args.Empty = n
	}
	return args, nil
}

// rootDevice is the name of the device that every instance has for its root.
const rootDevice = "root"

// checkEmpty refuses what an instance without an image cannot have, and gives the
// devices without that of the root.
func checkEmpty(r CreateRequest) (map[string]map[string]string, error) {
	switch {
	case r.Image != "":
		return nil, fault.New(fault.Invalid, "an empty machine has no image, and %q is given", r.Image)
	case r.Type != instance.VirtualMachine:
		return nil, fault.New(fault.Unsupported, "a container cannot be empty: it would have nothing to run; use --vm")
	case len(r.Command) > 0:
		return nil, fault.New(fault.Invalid, "an empty machine has no command")
	}
	others := maps.Clone(r.Devices)
	for key := range others[rootDevice] {
		if key != "size" {
			return nil, fault.New(fault.Unsupported, "the key %q of the root disk cannot be set yet, only size", key)
		}
	}
	delete(others, rootDevice)
	return others, nil
}

// makeEmpty makes the volume of an empty machine.
func makeEmpty(ctx context.Context, pool storage.Pool, key storage.Key, a createArgs) error {
	_, err := pool.Create(ctx, key, storage.Disk, func(dir *os.Root) error {
		if err := store.SaveSpec(dir, a.Spec); err != nil {
			return err
		}
		if err := blankDisk(dir, a.Empty); err != nil {
			return fmt.Errorf("cannot make the disk: %w", err)
		}
		return nil
	})
	return err
}
