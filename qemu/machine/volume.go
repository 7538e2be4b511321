package machine

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"

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
func (a *args) volumes(list []instance.Attached, shares []int, order map[string]int) error {
	for _, v := range list {
		if v.Source == instance.Tmpfs {
			continue // the guest has it of its own memory
		}
		if v.Dir == "" {
			boot := ""
			if i, ok := order[v.Device]; ok {
				boot = fmt.Sprintf(",bootindex=%d", i)
			}
			if err := a.volumeDisk(v, boot); err != nil {
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

func (a *args) volumeDisk(v instance.Attached, boot string) error {
	file, format, err := VolumeNodes(v)
	if err != nil {
		return err
	}
	for _, n := range []map[string]any{file, format} {
		b, err := json.Marshal(n)
		if err != nil {
			return err
		}
		a.add("-blockdev", string(b))
	}
	driver := "virtio-blk-pci"
	if v.CDROM {
		if a.drives == maxDrives {
			return fault.New(fault.Unsupported, "cannot put a disc in for volume %q: a machine has %d drives", v.Volume, maxDrives)
		}
		// Every system knows these drives, also that of an installer.
		driver = fmt.Sprintf("ide-cd,bus=ide.%d", a.drives)
		a.drives++
	}
	device := driver + ",id=" + VolumeDevice(v.Device) + ",serial=" + Serial(v.Device) + ",drive=" + VolumeNode(v.Device)
	if v.Shared {
		device += ",share-rw=on"
	}
	a.add("-device", device+boot)
	return nil
}

// maxDrives is how many q35 has ports for.
const maxDrives = 6

// HotPorts is how many devices a running machine can be given: q35 takes none on the bus
// that it has by itself, and one on each of these ports.
const HotPorts = 4

// HotPort is the id of such a port, and of the bus behind it.
func HotPort(i int) string { return fmt.Sprintf("hot%d", i) }

// VolumeNodes describes the disk of a volume to QEMU: its file, and what is in it.
func VolumeNodes(v instance.Attached) (file, format map[string]any, err error) {
	if v.Shared && v.Disk.Format != "raw" {
		return nil, nil, fault.New(fault.Unsupported, "cannot share the disk of volume %q: it is %s", v.Volume, v.Disk.Format)
	}
	node := VolumeNode(v.Device)
	if format, err = FormatNode(v.Disk, node); err != nil {
		return nil, nil, err
	}
	file = FileNode(v.Disk, node)
	if v.ReadOnly || v.CDROM {
		file["read-only"], format["read-only"] = true, true
	}
	return file, format, nil
}

// VolumeNode is the block node that the disk of a volume starts with. Names begin with a
// letter.
func VolumeNode(device string) string { return "v-" + Serial(device) }

// bootOrder gives the place of each device that the firmware tries, by name; the root
// disk has none.
func bootOrder(list []instance.Attached) map[string]int {
	tried := []instance.Attached{{Priority: 1}}
	for _, v := range list {
		if v.Dir == "" && (v.CDROM || v.Priority > 0) {
			tried = append(tried, v)
		}
	}
	slices.SortStableFunc(tried, func(a, b instance.Attached) int { return b.Priority - a.Priority })
	order := map[string]int{}
	for i, v := range tried {
		order[v.Device] = i
	}
	return order
}
