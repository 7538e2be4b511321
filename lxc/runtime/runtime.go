// Package runtime is brig's use of liblxc: it starts a container, runs a
// command in one, and opens its console. It is the only package with C in it.
// Starting goes through go-lxc; commands and consoles call liblxc directly,
// because go-lxc drops every other attach flag (cgroup, capabilities, LSM) as
// soon as a command has supplementary groups, hides the exit code 255, and never
// closes the socket that keeps a console taken.
package runtime

import (
	"path/filepath"

	"brig/instance/fault"

	golxc "github.com/lxc/go-lxc"
)

// name is the name of every container to liblxc, whose path tells them apart.
const name = "lxc"

// Container names one container to liblxc.
type Container struct{ path string }

// Open gives the container that liblxc knows by a folder; nothing is checked.
//
// liblxc keeps a lock file for each container below /run/lxc/lock, in a folder
// named after the container's path, and never removes either. This path leads
// back out of there, so that the lock is .lxc in the folder and goes with it.
func Open(folder string) Container {
	return Container{path: "/../../.." + filepath.Clean(folder)}
}

// Version is liblxc's.
func Version() string { return golxc.Version() }

// Start runs the container of a configuration file with init as its first
// process, and returns when liblxc says that it runs. What stays is a process
// forked from this one, its monitor, with the calling thread's mount namespace.
func (c Container) Start(configFile string, init []string) error {
	lxc, err := golxc.NewContainer(name, c.path)
	if err != nil {
		return fault.New(fault.Internal, "liblxc has no container: %w", err)
	}
	defer lxc.Release()
	if err := lxc.LoadConfigFile(configFile); err != nil {
		return fault.New(fault.Internal, "liblxc does not take its configuration: %w", err)
	}
	if err := lxc.WantDaemonize(true); err != nil {
		return fault.New(fault.Internal, "liblxc cannot run it in the background: %w", err)
	}
	// The monitor is a fork without exec and would keep them all.
	if err := lxc.WantCloseAllFds(true); err != nil {
		return fault.New(fault.Internal, "liblxc cannot close the keeper's files: %w", err)
	}
	if err := lxc.StartWithArgs(init); err != nil {
		return fault.New(fault.Internal, "liblxc cannot start it: %w", err)
	}
	return nil
}

// Allow lets the running container of a host with cgroup v2 alone use a device, or with
// deny not any more: its monitor has the program that decides.
func (c Container) Allow(rule string, deny bool) error {
	lxc, err := golxc.NewContainer(name, c.path)
	if err != nil {
		return fault.New(fault.Internal, "liblxc has no container: %w", err)
	}
	defer lxc.Release()
	key := "devices.allow"
	if deny {
		key = "devices.deny"
	}
	if err := lxc.SetCgroupItem(key, rule); err != nil {
		return fault.New(fault.Internal, "liblxc cannot set %s to %q: %w", key, rule, err)
	}
	return nil
}
