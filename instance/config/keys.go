package config

import (
	"slices"
	"sync"

	"brig/instance"
	"brig/instance/limits"
	"brig/instance/schedule"
	"brig/instance/security"
	"brig/instance/store"
)

// Keys are all keys, sorted by name.
func Keys() []Key { return slices.Clone(table()) }

// Why some keys are for containers alone.
const (
	ownKernel = "a virtual machine has a kernel of its own, where its guest decides this"
	ownIDs    = "a virtual machine has ids of its own, none of which is one of the host"
)

// table is made once: a thousand instances look into it for each list.
var table = sync.OnceValue(keys)

func keys() []Key {
	return []Key{
		{Name: "boot.autorestart", Type: "boolean", Default: "false", Live: true, check: boolean,
			Help: "Whether it is started again when it fails: when its main process ends with another code than 0, or is killed. Never after a stop or a shutdown from inside. Ten times, each after a longer pause, unless it ran for a minute."},
		{Name: "boot.autostart", Type: "boolean", Live: true, check: boolean,
			Help: "Whether brig boot starts it, which the host does when it boots. Where it is not set, it is started if it ran last."},
		{Name: "boot.autostart.delay", Type: "seconds", Default: "0", Live: true, check: whole(0, maxDelay),
			Help: "How long after its start those that come later wait."},
		{Name: "boot.autostart.priority", Type: "whole number", Default: "0", Live: true, check: whole(-maxPriority, maxPriority),
			Help: "Those with a larger number are started earlier, those with the same side by side."},
		{Name: "boot.depends", Type: "names of instances, with commas", Live: true, check: parses(Names),
			Help: "What brig boot starts before it, and brig shutdown stops after it."},
		{Name: "boot.host_shutdown_action", Type: "stop or force-stop", Default: "stop", Live: true, check: oneOf("stop", "force-stop"),
			Help: "How brig shutdown stops it, which the host does when it shuts down."},
		{Name: "boot.host_shutdown_timeout", Type: "seconds", Default: "30", Live: true, check: whole(0, maxDelay),
			Help: "How long brig shutdown waits for it before it is ended by force."},
		{Name: "boot.stop.priority", Type: "whole number", Default: "0", Live: true, check: whole(-maxPriority, maxPriority),
			Help: "Those with a larger number are stopped earlier, those with the same side by side."},
		{Name: "cloud-init.network-config", Type: "YAML", check: seedText,
			Help: "Cloud-init's network configuration; without it cloud-init leaves the network as brig made it."},
		{Name: "cloud-init.ssh-keys.*", Type: "USER:KEY", check: parses(ParseSSHKey),
			Help: "A public key that a user of it can log in with."},
		{Name: "cloud-init.user-data", Type: "#cloud-config, or a script", check: seedText,
			Help: "What cloud-init does at the first boot; without cloud-init, a script that is run once."},
		{Name: "cloud-init.vendor-data", Type: "#cloud-config, or a script", check: seedText,
			Help: "What cloud-init does at the first boot, unless user-data says otherwise."},
		{Name: "environment.*", Type: "text", check: anyText,
			Help: "A variable of the environment of the main process and of commands."},
		{Name: "limits.cpu", Type: "count, or set such as 0-3,5", Live: true, check: parses(limits.ParseCPU),
			Help: "How many processors it may use, or which ones of the host. A virtual machine has one where nothing is said, and as many as are named; another number counts after its next start, others of the host at once."},
		{Name: "limits.cpu.allowance", Type: "share such as 50%, or time such as 25ms/100ms", Live: true, check: parses(limits.ParseAllowance),
			Help: "How much of processor time it gets: a share when others want some, too, or a part of each period and never more. For a virtual machine that is what QEMU gets."},
		{Name: "limits.cpu.priority", Type: "whole number from 0 to 10", Default: "10", Live: true, check: parses(limits.ParsePriority),
			Help: "How it comes off against others with the same share, 10 being the best."},
		{Name: "limits.kernel.*", Type: "number, unlimited, or SOFT:HARD", Form: instance.Container, check: kernelLimit, named: oneNamed(rlimits),
			Help: "A limit of its processes, as setrlimit(2) knows it: limits.kernel.nofile."},
		{Name: "limits.memory", Type: "size, or percentage of the host's", Live: true, check: memory,
			Help: "How much memory it may use. A virtual machine has 1GiB where nothing is said; up to what it was started with, a change counts at once if its guest knows virtio-balloon, else after its next start."},
		{Name: "limits.memory.enforce", Type: "hard or soft", Default: "hard", Form: instance.Container, Live: true, check: oneOf("hard", "soft"),
			Why:  "the guest of a virtual machine never has more memory than it was given",
			Help: "Whether it can never use more memory than its limit, or only not while the host is short of memory."},
		{Name: "limits.memory.swap", Type: "boolean, or size", Default: "true", Live: true, check: parses(limits.ParseSwap),
			Help: "Whether the host may swap its memory out, and how much of it. For a virtual machine that needs a host with cgroup v2."},
		{Name: "limits.processes", Type: "count", Form: instance.Container, Live: true, check: parses(limits.ParseProcesses),
			Why:  "what runs in a virtual machine is counted by the kernel of its guest; limit it there",
			Help: "How many processes and threads it may have."},
		{Name: security.KeyModules, Type: "names of modules, with commas", Form: instance.Container, check: parses(security.ParseModules),
			Why:  ownKernel,
			Help: "Modules that the host's kernel has when it runs: those that it lacks are loaded at its start."},
		{Name: security.Sysctl + "*", Type: "text", Form: instance.Container, check: oneLine, named: security.IsSysctl,
			Why:  ownKernel,
			Help: "A setting of the kernel that it has for itself, as sysctl(8) names it: linux.sysctl.net.ipv4.ip_forward."},
		{Name: "raw.lxc", Type: "lines of lxc.container.conf(5)", Form: instance.Container, check: parses(security.ParseLXC),
			Why:  "QEMU runs a virtual machine, and has raw.qemu",
			Help: "More settings for liblxc. Those that brig has to make itself are refused. None comes from an imported file."},
		{Name: "raw.qemu", Type: "arguments of qemu(1)", Form: instance.VirtualMachine, check: parses(security.ParseQEMU),
			Why:  "liblxc runs a container, and has raw.lxc",
			Help: "More arguments for QEMU, with quotes where a blank is meant. Those that brig has to give itself are refused. None comes from an imported file."},
		{Name: security.KeyIDBase, Type: "number", Form: instance.Container, check: parses(security.ParseIDBase),
			Why:  ownIDs,
			Help: "The id of the host that its root has. Its start is refused while another container, or a user of the host, has ids of its range. Where it is not set, brig chooses a free range at each start."},
		{Name: security.KeyIDIsolated, Type: "boolean", Default: "true", Form: instance.Container, check: boolean,
			Why:  ownIDs,
			Help: "Whether no other container has ids of its range: so it is for every container, whatever is set here."},
		{Name: security.KeyIDSize, Type: "number", Default: "65536", Form: instance.Container, check: parses(security.ParseIDSize),
			Why:  ownIDs,
			Help: "How many user and group ids it has."},
		{Name: "security.nesting", Type: "boolean", Default: "false", Form: instance.Container, check: boolean,
			Help: "Whether containers can run inside, with Podman or Docker. In a pool of the driver overlay /var/lib/containers, /var/lib/containerd and /var/lib/docker, where these were empty, are then directories beside the root: they go with it when it is renamed or deleted, and are in no snapshot, copy or export."},
		{Name: "security.privileged", Type: "boolean", Default: "false", Form: instance.Container, check: boolean,
			Help: "Whether its root is the host's root, without an id range of its own."},
		{Name: security.KeyAllow, Type: "names of system calls, one a line", Form: instance.Container, check: parses(security.ParseAllow),
			Why:  ownKernel,
			Help: "System calls that its processes may make. Who makes another is killed. Not beside those that deny."},
		{Name: security.KeyDeny, Type: "names of system calls, one a line", Form: instance.Container, check: parses(security.ParseDeny),
			Why:  ownKernel,
			Help: "System calls that fail with EPERM; with another error, as in mount errno 38; or that kill, as in ptrace kill."},
		{Name: security.KeyDenyCompat, Type: "false", Default: "false", Form: instance.Container, check: security.CheckCompat,
			Why:  ownKernel,
			Help: "Whether system calls of 32-bit programs fail: liblxc cannot tell them from others, so true is refused."},
		{Name: security.KeyDenyDefault, Type: "boolean", Default: "true", Form: instance.Container, check: boolean,
			Why:  ownKernel,
			Help: "Whether system calls that are for the host's kernel alone fail, too: those that load modules and kernels, and open_by_handle_at."},
		{Name: "snapshots.expiry", Type: "span such as 3d or 2w", Live: true, check: parses(schedule.ParseSpan),
			Help: "After how long a snapshot that the schedule took is dropped."},
		{Name: "snapshots.keep", Type: "tiers such as hourly=24,daily=7", Live: true, check: parses(schedule.ParseKeep),
			Help: "How many of the snapshots that the schedule took are kept for each span of time."},
		{Name: "snapshots.pattern", Type: "name with verbs", Live: true, check: parses(snapshotPattern),
			Help: "What snapshots that the schedule takes are called."},
		{Name: "snapshots.schedule", Type: "cron expression, or @hourly and its like", Live: true, check: parses(schedule.Parse),
			Help: "When snapshots are taken."},
		{Name: "snapshots.schedule.stopped", Type: "boolean", Default: "false", Live: true, check: boolean,
			Help: "Whether the schedule also takes snapshots of it while it is stopped."},
		{Name: "user.*", Type: "text", Live: true, check: anyText,
			Help: "Anything; brig keeps it and makes nothing of it, except that user.user-data and its like count as cloud-init.user-data does."},
		{Name: "vm.accel", Type: "auto, kvm or tcg", Default: "auto", Form: instance.VirtualMachine, check: oneOf("auto", "kvm", "tcg"),
			Help: "How its processors are run: by the hardware, or emulated."},
	}
}

func snapshotPattern(v string) (schedule.Pattern, error) {
	return schedule.ParsePattern(v, store.CheckSnapshotName)
}
