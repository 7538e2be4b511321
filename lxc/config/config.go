// Package config writes the configuration that liblxc runs a container with.
// It is a pure function of the machine and of a few facts about the host, so
// that golden files can hold it. It takes nothing from the host's
// /usr/share/lxc/config but the path of the seccomp policy: what other packages
// drop in there (lxcfs's hook that sleeps half a second) is not for brig.
package config

import (
	"path/filepath"
	"slices"
	"strings"

	"brig/instance"
	"brig/instance/cgroup"
	"brig/instance/fault"
	"brig/instance/guest"
	"brig/instance/limits"
)

// Host is what the configuration has to know about this host.
type Host struct {
	Unified   bool     // cgroup v2 alone
	Devices   bool     // devices can be allowed and denied
	AppArmor  string   // profile to run under; empty: the host has no AppArmor
	Seccomp   string   // path of liblxc's common policy; empty: there is none
	LXCFS     string   // where lxcfs is mounted; empty: nowhere
	LXCFSProc []string // names of lxcfs's files below proc
	LXCFSCPU  bool     // lxcfs tells which processors there are
	Limits    []limits.Setting
}

// File is the name of the configuration in the run directory.
const File = "lxc.conf"

// Seccomp is the name of the file in the run directory with what the configuration
// says of system calls, if it says anything.
const Seccomp = "seccomp"

// Stage is the folder of the host on which the keeper mounts, in its own mount
// namespace, all that liblxc gives to a container. The container's root has to
// be able to walk there, which it cannot to a run directory: liblxc mounts for
// it with its rights. Nothing that m needs of the host may be below.
func Stage(m *instance.Machine) string {
	needs := append([]string{m.RunDir, m.LogDir, m.Helpers.Guest, m.Helpers.Keeper, m.Root.Tree.Upper, m.Root.Tree.Work}, m.Root.Tree.Lower...)
	stages := []string{"/mnt", "/media", "/opt", "/srv"}
	for _, stage := range stages {
		if !slices.ContainsFunc(needs, func(path string) bool { return strings.HasPrefix(path+"/", stage+"/") }) {
			return stage
		}
	}
	return stages[0]
}

// RootDir is where the keeper mounts the root file system.
func RootDir(m *instance.Machine) string { return filepath.Join(Stage(m), "rootfs") }

// GuestDir is where the keeper and brig-guest exchange files.
func GuestDir(m *instance.Machine) string { return filepath.Join(Stage(m), "guest") }

// GuestProgram is where the keeper mounts the program brig-guest.
func GuestProgram(m *instance.Machine) string { return filepath.Join(Stage(m), "brig-guest") }

// VolumeDir is where the keeper mounts a custom volume, from where liblxc binds it
// into the container.
func VolumeDir(m *instance.Machine, device string) string {
	return filepath.Join(Stage(m), "volume-"+device)
}

// NodeDir is where the keeper mounts a file system for device files, from where liblxc
// binds them into the container.
func NodeDir(m *instance.Machine) string { return filepath.Join(Stage(m), "nodes") }

// NodeLine is a line of Volumes for a device file.
func NodeLine(m *instance.Machine, a instance.Attached) string {
	return fstab(filepath.Join(NodeDir(m), a.Device), strings.TrimPrefix(a.Path, "/"), "none", "bind,create=file") + "\n"
}

// Volumes is the file that tells liblxc which of them to bind where, each time the
// container boots.
func Volumes(m *instance.Machine) string { return filepath.Join(Stage(m), "volumes") }

// VolumeLine is a line of it. Path has no links in it.
func VolumeLine(m *instance.Machine, device, path string) string {
	return fstab(VolumeDir(m, device), strings.TrimPrefix(path, "/"), "none", "bind,create=dir") + "\n"
}

// ConsoleLog and Log are the names of files in the log directory.
const (
	ConsoleLog = "console.log"
	Log        = "lxc.log"
)

// Cgroups are the names of a machine's cgroups, below the host's root cgroup in
// every hierarchy. They are in no common folder, since a folder that the last
// machine removes is one that the next cannot rely on.
type Cgroups struct {
	Payload string // of the container; limits and the freezer are here
	Inner   string // folder in Payload that is the container's root cgroup; may be empty
	Monitor string // of liblxc's monitor while the container runs
	Pivot   string // of liblxc's monitor while it ends
}

// CgroupsOf names the cgroups of m.
func CgroupsOf(m *instance.Machine) Cgroups {
	name := cgroup.Name(m)
	c := Cgroups{Payload: name, Monitor: name + ".monitor", Pivot: name + ".end"}
	if m.Privileged() {
		// Its root may write what its root cgroup has: keep the limits above it.
		c.Inner = "ns"
	}
	return c
}

// publicDirs is where liblxc has a folder for each container that runs, shared
// by all brigs of a host.
const publicDirs = "/run/brig-host/lxc"

// PublicDir is the folder that liblxc knows m by, for its lock, its sockets'
// names and its AppArmor profile. A run directory cannot be it: the container's
// root has to be able to walk there, and the way may be private.
func PublicDir(m *instance.Machine) string {
	return filepath.Join(publicDirs, CgroupsOf(m).Payload)
}

// Text is the configuration of m. A value that could say more than it should
// (one with a line break, for instance) gives an Invalid error.
func Text(m *instance.Machine, h Host) ([]byte, error) {
	w := &writer{}
	w.set("lxc.log.file", filepath.Join(m.LogDir, Log))
	w.set("lxc.log.level", "INFO") // which tells how init ended
	w.rootfs(m)
	w.system(m, h)
	w.limits(m, h)
	w.mounts(m, h)
	w.console(m)
	for i, nic := range m.NICs {
		w.nic(i, nic)
	}
	if len(m.NICs) == 0 {
		w.set("lxc.net.0.type", "empty")
	}
	w.hook(m)
	w.own(m)
	if w.err != nil {
		return nil, fault.New(fault.Invalid, "cannot configure container %q: %w", m.Name, w.err)
	}
	return []byte(w.text.String()), nil
}

// IsApp tells whether brig-guest runs m's process, not an init of the image.
func IsApp(m *instance.Machine) bool { return m.Boot.Process != nil }

// Init is the command line of m's first process.
func Init(m *instance.Machine) []string {
	switch {
	case IsApp(m):
		return []string{guest.ContainerGuest, "run"}
	case len(m.Boot.Init) > 0:
		return m.Boot.Init
	}
	return []string{"/sbin/init"}
}

// writer collects lines and the first error.
type writer struct {
	text strings.Builder
	err  error
}

// set writes one line. liblxc reads a value up to the end of the line, without
// the blanks around it and without quotes that enclose all of it.
func (w *writer) set(key, value string) {
	if err := plain(value); err != nil && w.err == nil {
		w.err = fault.New(fault.Invalid, "%s cannot be %q: %w", key, value, err)
	}
	w.text.WriteString(key + " = " + value + "\n")
}

func plain(value string) error {
	for _, r := range value {
		if r < ' ' || r == 0x7f {
			return fault.New(fault.Invalid, "it has a control character")
		}
	}
	switch {
	case value == "":
		return fault.New(fault.Invalid, "it is empty")
	case strings.TrimSpace(value) != value:
		return fault.New(fault.Invalid, "it begins or ends with a blank")
	case strings.HasPrefix(value, `"`) || strings.HasPrefix(value, "'"):
		return fault.New(fault.Invalid, "it begins with a quote")
	}
	return nil
}
