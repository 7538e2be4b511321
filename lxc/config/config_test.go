package config

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

var update = flag.Bool("update", false, "write the golden files")

func machine() *instance.Machine {
	return &instance.Machine{
		ID:      "0123456789abcdef",
		Name:    "web",
		Type:    instance.Container,
		RunDir:  "/run/brig/instances/0123456789abcdef",
		LogDir:  "/var/log/brig/instances/0123456789abcdef",
		Boot:    instance.Boot{Hostname: "web"},
		IDMap:   instance.IDMap{Base: 1000000, Count: 65536},
		Helpers: instance.Helpers{Keeper: "/usr/libexec/brig/brig-keeper", Guest: "/usr/libexec/brig/brig-guest"},
		NICs: []instance.NIC{{
			Name: "eth0", HostName: "brv01234567", MAC: "00:16:3e:01:02:03", Bridge: "brig0", MTU: 1500,
			Addresses: []netip.Prefix{netip.MustParsePrefix("10.10.0.5/24"), netip.MustParsePrefix("fd00::5/64")},
			Gateway:   netip.MustParseAddr("10.10.0.1"),
		}},
	}
}

func TestText(t *testing.T) {
	const policy = "/usr/share/lxc/config/common.seccomp"
	for _, tt := range []struct {
		name string
		edit func(m *instance.Machine)
		host Host
	}{
		{"system-v1", func(*instance.Machine) {}, Host{Devices: true, Seccomp: policy}},
		{"system-v2", func(*instance.Machine) {}, Host{
			Unified: true, Devices: true, Seccomp: policy, AppArmor: "generated",
			LXCFS: "/var/lib/lxcfs", LXCFSProc: []string{"meminfo", "uptime"},
		}},
		{"privileged", func(m *instance.Machine) { m.IDMap, m.NICs = instance.IDMap{}, nil }, Host{Unified: true, Devices: true, Seccomp: policy}},
		{"nesting", func(m *instance.Machine) {
			m.NICs = nil
			m.Config = map[string]string{"security.nesting": "true"}
		}, Host{Seccomp: policy}},
		{"own", func(m *instance.Machine) {
			m.NICs = nil
			m.Config = map[string]string{
				"security.syscalls.deny": "mount", "linux.sysctl.kernel.shmmni": "7", "linux.sysctl.net.ipv4.ip_forward": "1",
				"raw.lxc": "# more\nlxc.cgroup2.devices.allow = c 1:1 rwm\nlxc.prlimit.nofile=7",
			}
			m.Volumes = []instance.Attached{
				{Device: "disk", Source: "/dev/sda", Path: "/dev/disks/a b", Node: &instance.Node{Block: true, Major: 8}},
				{Device: "zero", Source: "/dev/zero", Path: "/dev/zero", Node: &instance.Node{Major: 1, Minor: 5}},
			}
		}, Host{Unified: true, Devices: true, Seccomp: policy}},
		{"app", func(m *instance.Machine) {
			m.Boot.Process = &instance.Process{Args: []string{"/app"}}
			m.RunDir, m.NICs = "/srv/it's a \"brig\"\\/run", nil
		}, Host{Unified: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := machine()
			tt.edit(m)
			got, err := Text(m, tt.host)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", tt.name+".conf")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != string(want) {
				t.Errorf("%s differs; run go test with -update and look at the change:\n%s", golden, got)
			}
		})
	}
}

func TestTextRefusesWhatSaysMore(t *testing.T) {
	for name, edit := range map[string]func(m *instance.Machine){
		"hostname with a line break": func(m *instance.Machine) { m.Boot.Hostname = "web\nlxc.hook.start = /bin/sh" },
		"hostname with a carriage":   func(m *instance.Machine) { m.Boot.Hostname = "web\rx" },
		"no hostname":                func(m *instance.Machine) { m.Boot.Hostname = "" },
		"hostname in quotes":         func(m *instance.Machine) { m.Boot.Hostname = `"web"` },
		"interface with a blank":     func(m *instance.Machine) { m.NICs[0].HostName = " x" },
		"bridge with a line break":   func(m *instance.Machine) { m.NICs[0].Bridge = "b\nlxc.net.1.type = phys" },
		"address with a zone":        func(m *instance.Machine) { m.NICs[0].Gateway = netip.MustParseAddr("fe80::1%a\n") },
		"id map behind the end":      func(m *instance.Machine) { m.IDMap.Base = 1<<32 - 1 },
		"run directory":              func(m *instance.Machine) { m.RunDir = "/run/a\nb" },
		"keeper":                     func(m *instance.Machine) { m.Helpers.Keeper = "/k\n" },
	} {
		m := machine()
		edit(m)
		if text, err := Text(m, Host{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Text = %v, want invalid; it gave\n%s", name, err, text)
		}
	}
}

func TestCgroupsDifferByRunDirectory(t *testing.T) {
	a, b := machine(), machine()
	b.RunDir = "/srv/run/instances/0123456789abcdef"
	if CgroupsOf(a).Payload == CgroupsOf(b).Payload {
		t.Error("two brigs with a machine of the same id share a cgroup")
	}
	if CgroupsOf(a) != CgroupsOf(machine()) {
		t.Error("the cgroups of a machine change")
	}
}

func TestInit(t *testing.T) {
	m := machine()
	if got := Init(m); len(got) != 1 || got[0] != "/sbin/init" {
		t.Errorf("Init of a system = %q", got)
	}
	m.Boot.Init = []string{"/init", "a b"}
	if got := Init(m); len(got) != 2 || got[1] != "a b" {
		t.Errorf("Init with arguments = %q", got)
	}
	m.Boot.Process = &instance.Process{}
	if got := Init(m); len(got) != 2 || got[0] != "/dev/.brig/guest" || got[1] != "run" {
		t.Errorf("Init of an app = %q", got)
	}
}

func TestStageHidesNothingThatTheMachineNeeds(t *testing.T) {
	m := &instance.Machine{RunDir: "/run/brig/instances/1", LogDir: "/var/log/brig"}
	if got := Stage(m); got != "/mnt" {
		t.Errorf("Stage = %q, want /mnt", got)
	}
	m.Root.Tree.Lower = []string{"/mnt/big/pool/layers/1"}
	m.Helpers.Guest = "/media/x/brig-guest"
	if got := Stage(m); got != "/opt" {
		t.Errorf("Stage with a pool below /mnt and a program below /media = %q, want /opt", got)
	}
}

// TestNodesAreThoseOfThisContainer reads back which devices a configuration allows that
// not every container may use, and that nobody asked for in another way.
func TestNodesAreThoseOfThisContainer(t *testing.T) {
	text, err := os.ReadFile("testdata/own.conf")
	if err != nil {
		t.Fatal(err)
	}
	m := machine()
	m.Config = map[string]string{"raw.lxc": "lxc.cgroup2.devices.allow = c 1:1 rwm"}
	if got := Nodes(string(text), m); len(got) != 1 || got[0] != "b 8:0 rwm" {
		t.Errorf("Nodes = %q, want the disk", got)
	}
	a := instance.Attached{Device: "disk", Path: "/dev/disks/a b", Node: &instance.Node{}}
	if got, want := NodeLine(m, a), "/mnt/nodes/disk dev/disks/a\\040b none bind,create=file 0 0\n"; got != want {
		t.Errorf("NodeLine = %q, want %q", got, want)
	}
}
