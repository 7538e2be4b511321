package project

import (
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"

	"brig/instance/fault"
	"brig/instance/limits"
)

// Key is one configuration key of a project.
type Key struct {
	Name    string
	Type    string // what its values are, for people
	Default string // what counts where it is not set; empty: nothing
	Help    string // one sentence

	check func(string) error
}

const (
	block   = "block"
	allow   = "allow"
	managed = "managed"
)

// Keys are all keys, sorted by name, which nobody changes. A restriction counts only
// while restricted is true.
var Keys = sync.OnceValue(func() []Key {
	keys := []Key{
		{"features.images", "false", "false", "Whether it has images of its own: those of all projects are the same.", shared("images")},
		{"features.profiles", "boolean", "true", "Whether it has profiles of its own; else those of the project default.", oneOf("true", "false")},
		{"features.storage.volumes", "false", "false", "Whether it has custom volumes of its own: those of all projects are the same.", shared("custom volumes")},
		{"limits.containers", "count", "", "How many containers it may have.", count},
		{"limits.cpu", "count", "", "What the limits.cpu of its instances may be together; each has to have one.", count},
		{"limits.instances", "count", "", "How many instances it may have.", count},
		{"limits.memory", "size", "", "What the limits.memory of its instances may be together; each has to have one.", bytes},
		{"limits.processes", "count", "", "What the limits.processes of its containers may be together; each has to have one.", count},
		{"limits.virtual-machines", "count", "", "How many virtual machines it may have.", count},
		{"restricted", "boolean", "false", "Whether the keys that begin with restricted. count.", oneOf("true", "false")},
		{"restricted.backups", "block or allow", block, "Whether its instances can be exported.", oneOf(block, allow)},
		{"restricted.containers.lowlevel", "block or allow", block, "Whether containers may have keys such as raw.* and security.syscalls.*.", oneOf(block, allow)},
		{"restricted.containers.nesting", "block or allow", block, "Whether containers may have security.nesting.", oneOf(block, allow)},
		{"restricted.containers.privilege", "unprivileged or allow", "unprivileged", "Whether containers may have security.privileged.", oneOf("unprivileged", allow)},
		{"restricted.devices.disk", "block, managed or allow", managed, "Which disks instances may have: none, custom volumes and memory, or directories of the host, too.", oneOf(block, managed, allow)},
		{"restricted.devices.disk.paths", "absolute paths, with commas", "", "If restricted.devices.disk is allow: what directories of the host have to be in; empty: anywhere.", paths},
		{"restricted.devices.nic", "block, managed or allow", managed, "Which network cards instances may have besides their eth0: none, those of brig's networks, or any.", oneOf(block, managed, allow)},
		{"restricted.snapshots", "block or allow", block, "Whether snapshots can be taken of its instances.", oneOf(block, allow)},
		{"restricted.virtual-machines.lowlevel", "block or allow", block, "Whether virtual machines may have keys such as raw.*.", oneOf(block, allow)},
		{"user.*", "text", "", "Anything; brig keeps it and makes nothing of it.", func(string) error { return nil }},
	}
	for _, kind := range hostDevices {
		keys = append(keys, Key{"restricted.devices." + kind, "block or allow", block, "Whether instances may have devices of the type " + kind + ".", oneOf(block, allow)})
	}
	slices.SortFunc(keys, func(a, b Key) int { return strings.Compare(a.Name, b.Name) })
	return keys
})

// hostDevices are the types of devices that are the host's.
var hostDevices = []string{"gpu", "infiniband", "pci", "proxy", "tpm", "unix-block", "unix-char", "unix-hotplug", "usb"}

// unsupported are Incus's other keys, with why brig has none like it.
var unsupported = map[string]string{
	"backups.compression_algorithm":      "give brig export what to compress with",
	"features.networks":                  "there is one network, in which all instances are",
	"features.networks.zones":            "there are no network zones",
	"features.storage.buckets":           "there are no buckets",
	"images.auto_update_cached":          "brig image refresh keeps images up to date for all projects",
	"images.compression_algorithm":       "give brig publish what to compress with",
	"images.default_architecture":        "images are those of all projects",
	"images.remote_cache_expiry":         "images are those of all projects",
	"limits.disk":                        "the root disks of instances have no limit of their own that could be added up",
	"limits.networks":                    "there is one network, in which all instances are",
	"restricted.cluster.groups":          "there are no clusters",
	"restricted.cluster.target":          "there are no clusters",
	"restricted.containers.interception": "no system calls are intercepted; the nearest is restricted.containers.lowlevel",
	"restricted.idmap.gid":               "no ids of the host are mapped; the nearest is restricted.containers.lowlevel",
	"restricted.idmap.uid":               "no ids of the host are mapped; the nearest is restricted.containers.lowlevel",
	"restricted.images.servers":          "images are those of all projects",
	"restricted.networks.access":         "there is one network; the nearest is restricted.devices.nic",
	"restricted.networks.subnets":        "there is one network; the nearest is restricted.devices.nic",
	"restricted.networks.uplinks":        "there is one network; the nearest is restricted.devices.nic",
	"restricted.networks.zones":          "there are no network zones",
	"restricted.networks.integrations":   "there is one network; the nearest is restricted.devices.nic",
	"restricted.storage-pools.access":    "the pools are those of all projects",
}

func shared(what string) func(string) error {
	return func(v string) error {
		if v == "true" {
			return fault.New(fault.Unsupported, "the %s are those of all projects", what)
		}
		return oneOf("false")(v)
	}
}

func oneOf(values ...string) func(string) error {
	return func(v string) error {
		if !slices.Contains(values, v) {
			return fault.New(fault.Invalid, "want %s", strings.Join(values, " or "))
		}
		return nil
	}
}

func count(v string) error {
	if n, err := strconv.ParseUint(v, 10, 31); err != nil || strconv.FormatUint(n, 10) != v {
		return fault.New(fault.Invalid, "want a whole number")
	}
	return nil
}

func bytes(v string) error {
	if strings.HasSuffix(v, "%") {
		return fault.New(fault.Invalid, "want a size such as 4GiB")
	}
	_, err := limits.ParseMemory(v, 0)
	return err
}

func paths(v string) error {
	for p := range strings.SplitSeq(v, ",") {
		if v != "" && (!path.IsAbs(p) || path.Clean(p) != p) {
			return fault.New(fault.Invalid, "%q is no clean absolute path", p)
		}
	}
	return nil
}
