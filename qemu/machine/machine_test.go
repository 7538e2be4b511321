package machine_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
	"brig/qemu/machine"
)

var update = flag.Bool("update", false, "write the golden files")

func example() *instance.Machine {
	return &instance.Machine{
		ID: "0123456789abcdef", Name: "web", Type: instance.VirtualMachine,
		RunDir: "/run/brig/instances/0123456789abcdef", LogDir: "/var/log/brig/instances/0123456789abcdef",
		Root:   instance.Root{Disk: instance.Disk{Path: "/var/lib/brig/pools/default/web/disk.qcow2", Format: "qcow2"}},
		Kernel: &instance.Kernel{Name: "cloud", Image: "/var/lib/brig/kernels/cloud/vmlinuz", Version: "6.1.0"},
		NICs:   []instance.NIC{{Name: "eth0", HostName: "bt01234567", MAC: "00:16:3e:01:02:03", Bridge: "brig0"}},
	}
}

func host() machine.Host {
	return machine.Host{
		Accelerator: "tcg", Memory: 8 << 30, Initramfs: "/var/lib/brig/kernels/cloud/initramfs-1",
		BootFile:   "/run/brig/instances/0123456789abcdef/boot.json",
		ConsoleLog: "/var/log/brig/instances/0123456789abcdef/console.log",
		FDs:        machine.FDs{Events: 4, QMP: 5, Agent: 6, Console: 7, Taps: []int{8}},
	}
}

func TestArgs(t *testing.T) {
	tests := map[string]func(*instance.Machine, *machine.Host){
		"tcg": func(*instance.Machine, *machine.Host) {},
		"kvm": func(m *instance.Machine, h *machine.Host) {
			h.Accelerator = "kvm"
			h.FDs.Vsock, h.FDs.VsockCID = 9, 4711
			m.Config = map[string]string{"limits.cpu": "4", "limits.memory": "25%"}
			m.Root.Disk = instance.Disk{Path: "/pool/web/disk.raw", Format: "raw"}
			m.NICs[0].MTU = 1450
		},
		"bios": func(m *instance.Machine, h *machine.Host) {
			m.Kernel, m.Firmware = nil, "bios"
			h.Seed = "/run/a,b/seed.img"
		},
		"uefi": func(m *instance.Machine, h *machine.Host) {
			m.Kernel, m.Firmware = nil, "uefi"
			h.Firmware, h.FirmwareVars = "/run/a,b/firmware", "/run/a,b/firmware-vars"
		},
		"volumes": func(m *instance.Machine, h *machine.Host) {
			m.Volumes = []instance.Attached{
				{Device: "disk", Disk: instance.Disk{Path: "/pool/db/disk.qcow2", Format: "qcow2"}},
				{Device: "photos", Dir: "/pool/photos,x/rootfs", Path: "/srv"},
				{Device: "a-name-that-is-far-too-long", Disk: instance.Disk{Path: "/pool/both.raw", Format: "raw"}, Shared: true, ReadOnly: true},
				{Device: "books", Dir: "/pool/books/rootfs", Path: "/books", ReadOnly: true},
			}
			h.FDs.Shares = []int{9, 10}
		},
		"discs": func(m *instance.Machine, h *machine.Host) {
			m.Kernel, m.Firmware = nil, "bios"
			raw := func(path string) instance.Disk { return instance.Disk{Path: path, Format: "raw"} }
			m.Volumes = []instance.Attached{
				{Device: "data", Disk: raw("/pool/data.raw")},
				{Device: "installer", Disk: raw("/pool/installer,x.raw"), CDROM: true, ReadOnly: true},
				{Device: "rescue", Disk: raw("/pool/rescue.raw"), CDROM: true, ReadOnly: true, Priority: 5},
			}
		},
		"hostile": func(m *instance.Machine, h *machine.Host) {
			m.Name = "-web,process=x"
			m.NICs, h.FDs.Taps = nil, nil
			m.Root.Disk.Path = `/a,driver=nbd,"b\` + "\n/disk"
			h.BootFile, h.ConsoleLog = "/a,b/boot.json", "/a,b/console.log"
		},
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			m, h := example(), host()
			change(m, &h)
			got, err := machine.Args(m, h)
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name+".golden"), lines(got))
		})
	}
}

func TestFilesArgs(t *testing.T) {
	m := example()
	m.Name, m.Root.Disk.Path = "web,process=x", "/pool/a,b/disk.qcow2"
	m.Config = map[string]string{"limits.memory": "8GiB", "raw.qemu": "-device usb"}
	m.Volumes = []instance.Attached{{Device: "disk", Disk: instance.Disk{Path: "/pool/db/disk.qcow2", Format: "qcow2"}}}
	got, err := machine.FilesArgs(m, machine.FilesHost{
		Accelerator: "tcg", Initramfs: "/var/lib/brig/kernels/cloud/initramfs-1", Settings: `{"a":1,"files":true}`, Agent: 3, Console: 4,
	})
	if err != nil {
		t.Fatal(err)
	}
	compare(t, filepath.Join("testdata", "files.golden"), lines(got))
}

// lines puts each option with its value on a line of its own.
func lines(args []string) string {
	var b strings.Builder
	for i, a := range args {
		switch {
		case i == 0:
		case strings.HasPrefix(a, "-") && a != "-web":
			b.WriteByte('\n')
		default:
			b.WriteByte(' ')
		}
		b.WriteString(a)
	}
	return b.String() + "\n"
}

func compare(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("arguments differ from %s (run with -update to accept):\n%s", path, got)
	}
}

func TestBadMachinesAreRefused(t *testing.T) {
	tests := map[string]struct {
		change func(*instance.Machine, *machine.Host)
		want   fault.Class
	}{
		"no processor":     {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.cpu": "0"} }, fault.Invalid},
		"half a processor": {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.cpu": "0.5"} }, fault.Invalid},
		"too many":         {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.cpu": "256"} }, fault.Invalid},
		"option in number": {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.cpu": "1,maxcpus=9"} }, fault.Invalid},
		"little memory":    {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.memory": "64MiB"} }, fault.Invalid},
		"bad memory":       {func(m *instance.Machine, _ *machine.Host) { m.Config = map[string]string{"limits.memory": "lots"} }, fault.Invalid},
		"no kernel":        {func(m *instance.Machine, _ *machine.Host) { m.Kernel = nil }, fault.Invalid},
		"no disk":          {func(m *instance.Machine, _ *machine.Host) { m.Root.Disk = instance.Disk{} }, fault.Invalid},
		"unknown format":   {func(m *instance.Machine, _ *machine.Host) { m.Root.Disk.Format = "vmdk" }, fault.Invalid},
		"no share":         {func(m *instance.Machine, _ *machine.Host) { m.Volumes = []instance.Attached{{Device: "d", Dir: "/d"}} }, fault.Internal},
		"shared qcow2": {func(m *instance.Machine, _ *machine.Host) {
			m.Volumes = []instance.Attached{{Device: "d", Shared: true, Disk: instance.Disk{Path: "/d", Format: "qcow2"}}}
		}, fault.Unsupported},
		"volume of unknown format": {func(m *instance.Machine, _ *machine.Host) {
			m.Volumes = []instance.Attached{{Device: "d", Disk: instance.Disk{Path: "/d"}}}
		}, fault.Invalid},
		"bad mac":     {func(m *instance.Machine, _ *machine.Host) { m.NICs[0].MAC = "00:11:22,romfile=x" }, fault.Invalid},
		"accelerator": {func(_ *instance.Machine, h *machine.Host) { h.Accelerator = "xen" }, fault.Invalid},
	}
	for name, tt := range tests {
		m, h := example(), host()
		tt.change(m, &h)
		if _, err := machine.Args(m, h); !fault.Is(err, tt.want) {
			t.Errorf("%s: Args = %v, want class %s", name, err, tt.want)
		}
	}
}

func TestMemory(t *testing.T) {
	for in, want := range map[string]int64{"": 1 << 30, "2GiB": 2 << 30, "10%": 819 << 20, "1000MB": 953 << 20} {
		got, err := machine.Memory(map[string]string{"limits.memory": in}, 8<<30)
		if err != nil || got != want {
			t.Errorf("Memory(%q) = %d MiB, %v, want %d MiB", in, got>>20, err, want>>20)
		}
	}
}

func TestUUIDIsStableAndWellFormed(t *testing.T) {
	a, b := machine.UUID("0123456789abcdef"), machine.UUID("0123456789abcdee")
	if a == b || a != machine.UUID("0123456789abcdef") || len(a) != 36 || a[14] != '8' {
		t.Errorf("UUID gives %s and %s", a, b)
	}
}

func TestBlockDevicesAreNoFiles(t *testing.T) {
	for path, want := range map[string]string{"/dev/vg/disk": "host_device", "/var/lib/brig/disk.raw": "file", "/devices/disk.raw": "file"} {
		if got := machine.FileNode(instance.Disk{Path: path, Format: "raw"}, "root")["driver"]; got != want {
			t.Errorf("the driver for %q = %q, want %q", path, got, want)
		}
	}
}
