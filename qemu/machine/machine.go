// Package machine turns an instance.Machine into the command line of
// qemu-system-x86_64. It is a pure function of its arguments: it opens nothing
// and asks the host nothing, so that golden files can show every word of it.
//
// No text of a user stands where QEMU would read an option, but that of raw.qemu,
// which is meant for it: names are escaped,
// disks are given as JSON, sockets and taps are descriptors that the keeper
// opened.
package machine

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"strings"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/limits"
	"brig/instance/security"
	"brig/instance/size"
)

// The configuration keys that matter here.
const (
	KeyCPU    = "limits.cpu"    // number of processors; default 1
	KeyMemory = "limits.memory" // amount, or percentage of the host's; default 1GiB
	KeyAccel  = "vm.accel"      // auto, kvm or tcg; read by the accel package
)

// AgentPort is the name of the virtio-serial port that the guest's agent opens,
// AgentDevice the id of the port and of the socket behind it.
const (
	AgentPort   = "org.brig.agent"
	AgentDevice = "agent"
)

// BootConfig is the name of the firmware configuration file that holds boot.json.
const BootConfig = "opt/brig/boot.json"

// RootNode is the block node that the root disk starts with, RootDevice the id
// of the disk's device.
const (
	RootNode   = "root-0"
	RootDevice = "root"
)

// Balloon is the id of the device by which a guest gives memory back.
const Balloon = "balloon"

// DefaultMemory is the guest's memory when limits.memory is not set, MinMemory
// the least with which a kernel and its initramfs come up.
const (
	DefaultMemory = 1 << 30
	MinMemory     = 128 << 20
)

// Host is what the keeper found or opened on the host for this machine.
type Host struct {
	Accelerator            string // kvm or tcg
	Memory                 int64  // bytes of the whole host, for percentages
	Initramfs              string // path
	BootFile               string // path of boot.json
	Firmware, FirmwareVars string // paths of UEFI's code and variables
	Seed                   string // path of the disk for cloud-init; empty: none
	ConsoleLog             string // path
	FDs                    FDs
}

// FDs are descriptor numbers in QEMU's process. The sockets listen already.
type FDs struct {
	QMP, Events, Agent, Console int
	Taps                        []int // one a NIC
	Vsock                       int   // vhost-vsock with its CID set; 0: none
	VsockCID                    uint32
	Shares                      []int // one a file system among the volumes: its connection with virtiofsd
}

// sandbox is what QEMU forbids itself.
const sandbox = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

// Args gives QEMU's arguments, without the program's name. Bad configuration, and
// a machine with neither a kernel nor firmware, are invalid.
func Args(m *instance.Machine, h Host) ([]string, error) {
	cpus, err := CPUs(m.Config)
	if err != nil {
		return nil, err
	}
	memory, err := Memory(m.Config, h.Memory)
	if err != nil {
		return nil, err
	}
	a := &args{}
	a.add("-name", "guest="+escape(m.Name))
	a.add("-uuid", UUID(m.ID))
	a.add("-no-user-config", "-nodefaults")
	a.add("-display", "none")
	a.add("-msg", "timestamp=on")
	a.add("-action", "panic=none") // the kernel restarts by itself, and the keeper was told
	a.add("-sandbox", sandbox)
	// Virtiofsd works in the guest's memory.
	options := "q35,usb=off,vmport=off,dump-guest-core=off"
	if len(h.FDs.Shares) > 0 {
		a.add("-object", fmt.Sprintf("memory-backend-memfd,id=memory,size=%dM,share=on", memory>>20))
		options += ",memory-backend=memory"
	}
	if m.Kernel == nil {
		if err := a.firmware(m, h, &options); err != nil {
			return nil, err
		}
	}
	a.add("-machine", options)
	if err := a.accelerator(h.Accelerator); err != nil {
		return nil, err
	}
	a.add("-smp", fmt.Sprintf("cpus=%d,sockets=1,cores=%d,threads=1", cpus, cpus))
	a.add("-m", fmt.Sprintf("size=%dM", memory>>20))
	if m.Kernel != nil {
		a.add("-kernel", m.Kernel.Image, "-initrd", h.Initramfs)
		a.add("-append", KernelArgs)
		a.add("-fw_cfg", "name="+BootConfig+",file="+escape(h.BootFile))
	}
	a.monitors(h)
	a.guestDevices(h)
	var order map[string]int
	boot := ""
	if m.Kernel == nil {
		order = bootOrder(m.Volumes)
		boot = fmt.Sprintf(",bootindex=%d", order[""])
	}
	if err := a.disk(m.Root.Disk, boot); err != nil {
		return nil, err
	}
	if err := a.seed(h.Seed); err != nil {
		return nil, err
	}
	if err := a.volumes(m.Volumes, h.FDs.Shares, order); err != nil {
		return nil, err
	}
	if err := a.nics(m.NICs, h.FDs); err != nil {
		return nil, err
	}
	// The last, so that what guests call their interfaces by is where it was.
	a.add("-device", "virtio-balloon-pci,id="+Balloon)
	for i := range HotPorts {
		a.add("-device", fmt.Sprintf("pcie-root-port,id=%s,chassis=%d", HotPort(i), i+1))
	}
	more, err := security.ParseQEMU(m.Config["raw.qemu"])
	if err != nil {
		return nil, fmt.Errorf("cannot use raw.qemu: %w", err)
	}
	a.add(more...)
	return a.list, nil
}

// KernelArgs is the kernel's command line, the same for every machine: what
// concerns one of them is in boot.json. Interfaces keep the kernel's names (a
// NIC says what it is called), warnings go to the console, and a panic restarts
// the machine, so that the keeper sees it.
const KernelArgs = "console=ttyS0 loglevel=4 panic=-1 net.ifnames=0"

// The kinds of firmware that Machine.Firmware names.
const (
	FirmwareBIOS = "bios"
	FirmwareUEFI = "uefi"
)

// firmware adds what starts a disk that boots by itself. SeaBIOS is QEMU's own
// choice; without graphics both talk to the serial console.
func (a *args) firmware(m *instance.Machine, h Host, options *string) error {
	switch m.Firmware {
	case FirmwareBIOS:
		*options += ",graphics=off"
		return nil
	case FirmwareUEFI:
		*options += ",pflash0=firmware-code,pflash1=firmware-vars"
	default:
		return fault.New(fault.Invalid, "cannot start %q: it has no kernel, and its firmware %q is neither bios nor uefi", m.Name, m.Firmware)
	}
	for _, flash := range []struct {
		name, path string
		readOnly   bool
	}{{"firmware-code", h.Firmware, true}, {"firmware-vars", h.FirmwareVars, false}} {
		b, err := json.Marshal(map[string]any{
			"driver": "raw", "node-name": flash.name, "read-only": flash.readOnly,
			"file": map[string]any{"driver": "file", "filename": flash.path, "read-only": flash.readOnly},
		})
		if err != nil {
			return err
		}
		a.add("-blockdev", string(b))
	}
	return nil
}

// seed adds the disk on which cloud-init finds what it is told.
func (a *args) seed(path string) error {
	if path == "" {
		return nil
	}
	b, err := json.Marshal(map[string]any{
		"driver": "raw", "node-name": "seed", "read-only": true,
		"file": map[string]any{"driver": "file", "filename": path, "read-only": true},
	})
	if err != nil {
		return err
	}
	a.add("-blockdev", string(b))
	a.add("-device", "virtio-blk-pci,id=seed,serial=cidata,drive=seed")
	return nil
}

type args struct {
	list   []string
	drives int // that have a disc
}

func (a *args) add(words ...string) { a.list = append(a.list, words...) }

func (a *args) accelerator(name string) error {
	switch name {
	case "kvm":
		a.add("-accel", "kvm", "-cpu", "host")
	case "tcg":
		a.add("-accel", "tcg,thread=multi", "-cpu", "max")
	default:
		return fault.New(fault.Invalid, "cannot use the accelerator %q: want kvm or tcg", name)
	}
	return nil
}

// monitors adds two QMP monitors, one for the keeper's events and one for
// everybody else, because a monitor serves one client at a time; and the serial
// console with its log.
func (a *args) monitors(h Host) {
	a.add("-chardev", fmt.Sprintf("socket,id=events,fd=%d,server=on,wait=off", h.FDs.Events), "-mon", "chardev=events,mode=control")
	a.add("-chardev", fmt.Sprintf("socket,id=qmp,fd=%d,server=on,wait=off", h.FDs.QMP), "-mon", "chardev=qmp,mode=control")
	a.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d,server=on,wait=off,logfile=%s,logappend=on", h.FDs.Console, escape(h.ConsoleLog)))
	a.add("-serial", "chardev:console")
}

func (a *args) guestDevices(h Host) {
	a.add("-object", "rng-builtin,id=rng0", "-device", "virtio-rng-pci,id=rng,rng=rng0")
	a.add("-device", "virtio-serial-pci,id=ports")
	a.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d,server=on,wait=off", AgentDevice, h.FDs.Agent))
	a.add("-device", "virtserialport,id="+AgentDevice+",bus=ports.0,chardev=agent,name="+AgentPort)
	a.add("-device", "pvpanic-pci,id=panic")
	if h.FDs.Vsock != 0 {
		a.add("-device", fmt.Sprintf("vhost-vsock-pci,id=vsock,guest-cid=%d,vhostfd=%d", h.FDs.VsockCID, h.FDs.Vsock))
	}
}

func (a *args) disk(d instance.Disk, boot string) error {
	if d.Path == "" {
		return fault.New(fault.Invalid, "cannot start a virtual machine without a root disk")
	}
	format, err := FormatNode(d, RootNode)
	if err != nil {
		return err
	}
	for _, node := range []map[string]any{FileNode(d, RootNode), format} {
		b, err := json.Marshal(node)
		if err != nil {
			return err
		}
		a.add("-blockdev", string(b))
	}
	device := "virtio-blk-pci,id=" + RootDevice + ",serial=root,drive=" + RootNode + boot
	a.add("-device", device)
	return nil
}

// FileNode describes the file or block device of a disk to QEMU, FormatNode what is
// in it. The node of the file is called as the other one with "-file" added.
func FileNode(d instance.Disk, name string) map[string]any {
	driver := "file"
	if strings.HasPrefix(d.Path, "/dev/") {
		driver = "host_device" // QEMU takes no device for a file
	}
	return map[string]any{
		"driver": driver, "node-name": name + "-file", "filename": d.Path, "discard": "unmap",
	}
}

// FormatNode describes what the file of FileNode holds.
func FormatNode(d instance.Disk, name string) (map[string]any, error) {
	if d.Format != "qcow2" && d.Format != "raw" {
		return nil, fault.New(fault.Invalid, "cannot use the disk %q of format %q: want qcow2 or raw", d.Path, d.Format)
	}
	return map[string]any{
		"driver": d.Format, "node-name": name, "file": name + "-file", "discard": "unmap",
	}, nil
}

func (a *args) nics(nics []instance.NIC, fds FDs) error {
	if len(nics) != len(fds.Taps) {
		return fmt.Errorf("%d taps for %d network interfaces", len(fds.Taps), len(nics))
	}
	for i, n := range nics {
		mac, err := net.ParseMAC(n.MAC)
		if err != nil || len(mac) != 6 {
			return fault.New(fault.Invalid, "cannot use %q as the hardware address of %q", n.MAC, n.Name)
		}
		a.add("-netdev", fmt.Sprintf("tap,id=net%d,fd=%d", i, fds.Taps[i]))
		// Without romfile= the firmware would load a boot ROM for the network.
		device := fmt.Sprintf("virtio-net-pci,id=nic%d,netdev=net%d,mac=%s,romfile=", i, i, mac)
		if n.MTU > 0 {
			device += ",host_mtu=" + strconv.Itoa(n.MTU)
		}
		a.add("-device", device)
	}
	return nil
}

// CPUs is the number of processors that the configuration asks for.
func CPUs(config map[string]string) (int, error) {
	v := config[KeyCPU]
	if v == "" {
		return 1, nil
	}
	c, err := limits.ParseCPU(v)
	if err != nil {
		return 0, fmt.Errorf("cannot use %q for %s: %w", v, KeyCPU, err)
	}
	return max(c.Count, len(c.Set)), nil
}

// Memory is the size of the guest's memory that the configuration asks for on a
// host with this much, in bytes, whole MiB.
func Memory(config map[string]string, host int64) (int64, error) {
	v := config[KeyMemory]
	if v == "" {
		return DefaultMemory, nil
	}
	n, err := size.ParseOf(v, host)
	if err != nil {
		return 0, fmt.Errorf("cannot use %q for %s: %w", v, KeyMemory, err)
	}
	if n < MinMemory {
		return 0, fault.New(fault.Invalid, "cannot use %q for %s: a virtual machine needs at least %d MiB", v, KeyMemory, MinMemory>>20)
	}
	return n >> 20 << 20, nil
}

// UUID is what the guest sees as its machine's UUID: always the same for an id.
func UUID(id string) string {
	sum := sha256.Sum256([]byte("brig instance " + id))
	sum[6] = sum[6]&0x0f | 0x80
	sum[8] = sum[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", sum[:4], sum[4:6], sum[6:8], sum[8:10], sum[10:16])
}

// escape makes s safe as the value of a QEMU option.
func escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }
