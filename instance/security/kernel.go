package security

import (
	"slices"
	"strings"

	"brig/instance/fault"
)

// Sysctl begins the keys of settings of the kernel (sysctl(8)).
const Sysctl = "linux.sysctl."

// KeyModules is the key with modules of the kernel.
const KeyModules = "linux.kernel_modules"

// namespaced are settings that each container has for itself, or their beginnings:
// those of its network, System V's IPC, POSIX message queues, and its limits on
// namespaces. All others are the host's.
var namespaced = []string{"net.", "fs.mqueue.", "kernel.shm", "kernel.msg", "kernel.sem", "user.max_"}

// IsSysctl tells whether name can be a setting of the kernel.
func IsSysctl(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool { return notInKey(r) && r != '/' && r != ':' }) &&
		!strings.Contains(name, "..") && name[0] != '.' && name[0] != '/'
}

// OfNetwork tells whether a setting is one of the network.
func OfNetwork(name string) bool { return strings.HasPrefix(name, "net.") }

// CheckSysctl refuses a setting that a container has no own of. A privileged one sees
// what is below /proc/sys without being able to change it, except for its network.
func CheckSysctl(name string, privileged bool) error {
	if privileged && !OfNetwork(name) {
		return fault.New(fault.Unsupported, "a privileged container has its own settings only of the network, and %s is another", name)
	}
	if !slices.ContainsFunc(namespaced, func(p string) bool { return strings.HasPrefix(name, p) }) {
		return fault.New(fault.Unsupported, "%s is one for the whole host, and no container has its own; set it there, with sysctl", name)
	}
	return nil
}

// ParseModules reads names of modules, with commas.
func ParseModules(v string) ([]string, error) {
	var list []string
	for name := range strings.SplitSeq(v, ",") {
		name = strings.TrimSpace(name)
		if name == "" || len(name) > 55 || name[0] == '-' || strings.ContainsFunc(name, func(r rune) bool { return notInKey(r) || r == '.' }) {
			return nil, fault.New(fault.Invalid, "%.80q is no name of a module", name)
		}
		list = append(list, name)
	}
	return list, nil
}
