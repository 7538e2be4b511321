package lxc

import (
	"context"
	"os"
	"strings"

	"brig/instance"
	"brig/lxc/config"
)

// seccompPolicy is liblxc's own policy for full systems.
const seccompPolicy = "/usr/share/lxc/config/common.seccomp"

// lxcfs is where the host's lxcfs is mounted.
const lxcfs = "/var/lib/lxcfs"

// hostFacts looks at what the configuration of m depends on.
func hostFacts(ctx context.Context, h hierarchies, m *instance.Machine) config.Host {
	f := config.Host{Unified: h.Unified, Devices: h.Devices, AppArmor: appArmorProfile(ctx, m)}
	if _, err := os.Stat(seccompPolicy); err == nil {
		f.Seccomp = seccompPolicy
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil && strings.Contains(string(mounts), " "+lxcfs+" ") {
		f.LXCFS = lxcfs
		_, err := os.Stat(lxcfs + "/sys/devices/system/cpu")
		f.LXCFSCPU = err == nil
		for _, name := range []string{"cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime"} {
			if _, err := os.Stat(lxcfs + "/proc/" + name); err == nil {
				f.LXCFSProc = append(f.LXCFSProc, name)
			}
		}
	}
	return f
}
