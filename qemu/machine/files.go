package machine

import (
	"fmt"

	"brig/instance"
)

// restMemory is the memory of a machine that only shows its files.
const restMemory = 256 << 20

// FilesHost is what the machine of FilesArgs gets from the host.
type FilesHost struct {
	Accelerator    string // kvm or tcg
	Initramfs      string // path
	Settings       string // content of boot.json
	Agent, Console int    // descriptors in QEMU's process, connected sockets
}

// FilesArgs gives QEMU's arguments for a machine that has the root disk of m and
// brig-guest in its initramfs, and nothing else of m: no network, no volumes and no
// monitor. It ends when the guest powers off, panics or restarts, and tells the guest
// of errors of the disk instead of waiting for their end.
func FilesArgs(m *instance.Machine, h FilesHost) ([]string, error) {
	a := &args{}
	a.add("-name", "guest="+escape(m.Name))
	a.add("-no-user-config", "-nodefaults")
	a.add("-display", "none")
	a.add("-msg", "timestamp=on")
	a.add("-no-reboot")
	a.add("-sandbox", sandbox)
	a.add("-machine", "q35,usb=off,vmport=off,dump-guest-core=off")
	if err := a.accelerator(h.Accelerator); err != nil {
		return nil, err
	}
	a.add("-m", fmt.Sprintf("size=%dM", restMemory>>20))
	a.add("-kernel", m.Kernel.Image, "-initrd", h.Initramfs)
	a.add("-append", KernelArgs)
	a.add("-fw_cfg", "name="+BootConfig+",string="+escape(h.Settings))
	a.add("-chardev", fmt.Sprintf("socket,id=console,fd=%d", h.Console), "-serial", "chardev:console")
	a.add("-device", "virtio-serial-pci,id=ports")
	a.add("-chardev", fmt.Sprintf("socket,id=%s,fd=%d", AgentDevice, h.Agent))
	a.add("-device", "virtserialport,id="+AgentDevice+",bus=ports.0,chardev=agent,name="+AgentPort)
	return a.list, a.disk(m.Root.Disk, ",werror=report,rerror=report")
}
