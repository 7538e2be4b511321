package config

import (
	"brig/instance"
	"brig/instance/schedule"
	"brig/instance/store"
)

// Keys are all keys, sorted by name.
func Keys() []Key {
	return []Key{
		{Name: "environment.*", Type: "text", check: anyText,
			Help: "A variable of the environment of the main process and of commands."},
		{Name: "limits.cpu", Type: "count", Default: "1", Form: instance.VirtualMachine, check: cpuCount,
			Help: "How many processors it has."},
		{Name: "limits.memory", Type: "size, or percentage of the host's", Default: "1GiB", Form: instance.VirtualMachine, check: memory,
			Help: "How much memory it has."},
		{Name: "security.nesting", Type: "boolean", Default: "false", Form: instance.Container, check: boolean,
			Help: "Whether containers can run inside."},
		{Name: "security.privileged", Type: "boolean", Default: "false", Form: instance.Container, check: boolean,
			Help: "Whether its root is the host's root, without an id range of its own."},
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
			Help: "Anything; brig keeps it and makes nothing of it."},
		{Name: "vm.accel", Type: "auto, kvm or tcg", Default: "auto", Form: instance.VirtualMachine, check: oneOf("auto", "kvm", "tcg"),
			Help: "How its processors are run: by the hardware, or emulated."},
	}
}

func snapshotPattern(v string) (schedule.Pattern, error) {
	return schedule.ParsePattern(v, store.CheckSnapshotName)
}
