package lxc

import (
	"os"
	"os/exec"
	"strings"

	"brig/lxc/config"
)

// seccompPolicy is liblxc's own policy for full systems.
const seccompPolicy = "/usr/share/lxc/config/common.seccomp"

// lxcfs is where the host's lxcfs is mounted.
const lxcfs = "/var/lib/lxcfs"

// hostFacts looks at what configurations depend on.
func hostFacts(h hierarchies) config.Host {
	f := config.Host{Unified: h.unified, Devices: h.devices, AppArmor: appArmorProfile()}
	if _, err := os.Stat(seccompPolicy); err == nil {
		f.Seccomp = seccompPolicy
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(mounts), " "+lxcfs+" ") {
		f.LXCFS = lxcfs
		for _, name := range []string{"cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"} {
			if _, err := os.Stat(lxcfs + "/proc/" + name); err == nil {
				f.LXCFSProc = append(f.LXCFSProc, name)
			}
		}
	}
	return f
}

// appArmorProfile is the profile that containers run under. liblxc generates a
// better one than it ships where it can load it.
func appArmorProfile() string {
	if on, err := os.ReadFile("/sys/module/apparmor/parameters/enabled"); err != nil || !strings.HasPrefix(string(on), "Y") {
		return ""
	}
	if _, err := exec.LookPath("apparmor_parser"); err == nil {
		return "generated"
	}
	loaded, _ := os.ReadFile("/sys/kernel/security/apparmor/profiles")
	if strings.Contains(string(loaded), "lxc-container-default-cgns ") {
		return "lxc-container-default-cgns"
	}
	return ""
}
