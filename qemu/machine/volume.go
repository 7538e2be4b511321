package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"

	"brig/instance"
	"brig/instance/fault"
)

// maxSerial is what virtio-blk has room for.
const maxSerial = 20

// Serial is what a guest knows a device by: the serial number of its disk, or the
// tag of its share. It is the name of the device if that is short enough.
func Serial(device string) string {
	if len(device) <= maxSerial {
		return device
	}
	sum := sha256.Sum256([]byte(device))
	return device[:11] + "-" + hex.EncodeToString(sum[:4])
}

// VolumeDevice is the id of the device of a volume.
func VolumeDevice(device string) string { return "volume-" + Serial(device) }

// VirtioFS is how a guest gets file systems, by the name that mount(8) has for it.
const VirtioFS = "virtiofs"

// volumes adds disks for block volumes and shares for file systems.
func (a *args) volumes(list []instance.Attached, shares []int) error {
	for _, v := range list {
		if v.Dir == "" {
			if err := a.volumeDisk(v); err != nil {
				return err
			}
			continue
		}
		if len(shares) == 0 {
			return fmt.Errorf("there is no share for volume %q", v.Volume)
		}
		serial := Serial(v.Device)
		a.add("-chardev", fmt.Sprintf("socket,id=fs-%s,fd=%d", serial, shares[0]))
		a.add("-device", "vhost-user-fs-pci,id="+VolumeDevice(v.Device)+",chardev=fs-"+serial+",tag="+serial)
		shares = shares[1:]
	}
	return nil
}

func (a *args) volumeDisk(v instance.Attached) error {
	if v.Shared && v.Disk.Format != "raw" {
		return fault.New(fault.Unsupported, "cannot share the disk of volume %q: it is %s", v.Volume, v.Disk.Format)
	}
	// Node names begin with a letter.
	node := "v-" + Serial(v.Device)
	format, err := FormatNode(v.Disk, node)
	if err != nil {
		return err
	}
	file := FileNode(v.Disk, node)
	if v.ReadOnly {
		file["read-only"], format["read-only"] = true, true
	}
	for _, n := range []map[string]any{file, format} {
		b, err := json.Marshal(n)
		if err != nil {
			return err
		}
		a.add("-blockdev", string(b))
	}
	device := "virtio-blk-pci,id=" + VolumeDevice(v.Device) + ",serial=" + Serial(v.Device) + ",drive=" + node
	if v.Shared {
		device += ",share-rw=on"
	}
	a.add("-device", device)
	return nil
}
