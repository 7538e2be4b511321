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

// volumes adds disks for block volumes and shares for file systems.
func (a *args) volumes(list []instance.Attached, shares []Share) error {
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
		if err := a.share(v, shares[0]); err != nil {
			return err
		}
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

func (a *args) share(v instance.Attached, s Share) error {
	serial, id := Serial(v.Device), VolumeDevice(v.Device)
	switch s.Type {
	case Plan9:
		fs := "local,id=fs-" + serial + ",path=" + escape(v.Dir) + ",security_model=passthrough,multidevs=remap"
		if v.ReadOnly {
			fs += ",readonly=on"
		}
		a.add("-fsdev", fs)
		a.add("-device", "virtio-9p-pci,id="+id+",fsdev=fs-"+serial+",mount_tag="+serial)
	case VirtioFS:
		if v.ReadOnly {
			return fault.New(fault.Unsupported, "virtiofs cannot give volume %q for reading only; 9p can", v.Volume)
		}
		a.add("-chardev", fmt.Sprintf("socket,id=fs-%s,fd=%d", serial, s.FD))
		a.add("-device", "vhost-user-fs-pci,id="+id+",chardev=fs-"+serial+",tag="+serial)
	default:
		return fault.New(fault.Invalid, "cannot share volume %q by %q: want virtiofs or 9p", v.Volume, s.Type)
	}
	return nil
}
