package manager

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/storage"
)

// deviceTypes are the types of devices that Incus and LXD have.
var deviceTypes = []string{"disk", "gpu", "infiniband", "nic", "none", "pci", "proxy", "tpm", "unix-block", "unix-char", "unix-hotplug", "usb"}

// refusedTypes says of types why an instance cannot have such a device of its own.
var refusedTypes = map[string]string{
	"gpu":          "the graphics of the host are not shared with containers or handed to virtual machines yet",
	"infiniband":   "network cards of the host are not handed to instances",
	"none":         "that masks a device of a profile: it is added to an instance that is there",
	"pci":          "the host would have to give its hardware to a virtual machine, which is not possible yet; a container cannot drive any",
	"proxy":        "ports of the host are not forwarded yet; an instance can be reached at its address",
	"tpm":          "virtual machines get no TPM yet, and a container has no firmware that would use one",
	"unix-hotplug": "devices that come and go on the host cannot be in instances yet",
	"usb":          "USB devices of the host are not handed to instances yet",
}

// checkProfileDevice refuses what is no device at all. A profile may have devices
// that brig makes nothing of, such as the root disk and the network card that every
// profile of Incus has: what an instance has by itself stays as it is.
func checkProfileDevice(name string, keys map[string]string) error {
	if keys["type"] == "disk" && keys["source"] != "" && name != "root" {
		_, err := parseDevice(name, keys)
		if keys["pool"] != "" || (path.IsAbs(keys["source"]) || keys["source"] == instance.Tmpfs) && !fault.Is(err, fault.Unsupported) {
			return err
		}
	}
	if keys["type"] == unixChar || keys["type"] == unixBlock {
		if err := checkNode(name, keys); err != nil {
			return err
		}
	}
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, "cannot use the device %q: %w", name, fmt.Errorf(format, args...))
	}
	if err := storage.CheckName("device", name); err != nil || len(name) > 63 {
		return bad("its name has to be 1 to 63 letters, digits, dots, hyphens and underscores, starting with a letter or digit")
	}
	if !slices.Contains(deviceTypes, keys["type"]) {
		return bad("its type is %q; there are %s", keys["type"], strings.Join(deviceTypes, ", "))
	}
	for key, value := range keys {
		if strings.ContainsFunc(key+value, isControl) || key == "" || len(key)+len(value) > 4<<10 {
			return bad("%q or its value is too long or has a control character", key)
		}
	}
	return nil
}

// checkMask refuses a device of type none that is more than a mask.
func checkMask(name string, keys map[string]string) error {
	if err := checkProfileDevice(name, keys); err != nil {
		return err
	}
	if len(keys) > 1 || name == "root" || name == "eth0" {
		return fault.New(fault.Invalid, "cannot mask the device %q: a device of type none has no other keys, and root and eth0 stay", name)
	}
	return nil
}
