package machine

import (
	"brig/instance/limits"
)

// OfCgroup gives those of the limits that the cgroup of QEMU makes true: how much of
// the host's processors, and which of them, it may use, and whether the guest's memory
// may be swapped out. How many processors and how much memory there are is what the
// guest sees; QEMU needs some threads and some memory of its own beside them.
func OfCgroup(config map[string]string) map[string]string {
	of := map[string]string{}
	for _, key := range []string{limits.KeyCPUAllowance, limits.KeyCPUPriority, limits.KeyMemorySwap} {
		if v, ok := config[key]; ok {
			of[key] = v
		}
	}
	if c, err := limits.ParseCPU(config[KeyCPU]); err == nil && c.Set != nil {
		of[KeyCPU] = config[KeyCPU]
	}
	return of
}
