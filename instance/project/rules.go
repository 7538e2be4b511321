package project

import (
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"brig/instance/fault"
	"brig/instance/limits"
)

// Instance is what a project judges of an instance: what counts for it, of its
// profiles and of what it says itself.
type Instance struct {
	Name    string // full
	VM      bool
	Config  map[string]string
	Devices map[string]map[string]string
}

// Allows refuses an instance that a restricted project may not have. The error is
// forbidden.
func (p Project) Allows(i Instance) error {
	if !p.Restricted() {
		return nil
	}
	no := func(what, key string) error {
		return fault.New(fault.Forbidden, "the project %q is restricted: %s is not allowed there, see brig project get %s %s", p.Name, what, p.Name, key)
	}
	for _, name := range slices.Sorted(maps.Keys(i.Config)) {
		if key := p.forbids(i.VM, name, i.Config[name]); key != "" {
			return no(name+"="+i.Config[name], key)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(i.Devices)) {
		if key := p.forbidsDevice(name, i.Devices[name]); key != "" {
			return no("the device "+strconv.Quote(name), key)
		}
	}
	return nil
}

// Permits refuses what a restricted project may not do by one of its restrictions. The
// error is forbidden.
func (p Project) Permits(key string) error {
	if p.Restricted() && p.value(key) != allow {
		return fault.New(fault.Forbidden, "the project %q is restricted: %s is %s there", p.Name, key, p.value(key))
	}
	return nil
}

// forbids gives the restriction that a key of an instance goes against.
func (p Project) forbids(vm bool, name, value string) string {
	low := "restricted.containers.lowlevel"
	if vm {
		low = "restricted.virtual-machines.lowlevel"
	}
	against := func(key string) string {
		if p.value(key) == allow {
			return ""
		}
		return key
	}
	switch {
	case name == "security.privileged" && value == "true":
		return against("restricted.containers.privilege")
	case name == "security.nesting" && value == "true":
		return against("restricted.containers.nesting")
	case name == "snapshots.schedule" && value != "":
		return against("restricted.snapshots")
	case lowLevel(name):
		return against(low)
	}
	return ""
}

// lowLevel tells whether a key reaches deeper into the host than others do. What only
// takes rights away from a guest is among them, as in Incus.
func lowLevel(name string) bool {
	for _, prefix := range []string{"raw.", "linux.", "security.syscalls.", "security.idmap.", "security.capabilities"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

func (p Project) forbidsDevice(name string, keys map[string]string) string {
	kind := keys["type"]
	switch {
	case kind == "none" || name == "root" || name == "eth0":
		return ""
	case kind == "disk":
		return p.forbidsDisk(keys["source"])
	}
	key := "restricted.devices." + kind
	switch p.value(key) {
	case allow:
		return ""
	case managed:
		if keys["network"] != "" && keys["parent"] == "" {
			return ""
		}
	}
	return key
}

func (p Project) forbidsDisk(source string) string {
	const key = "restricted.devices.disk"
	onHost := path.IsAbs(source)
	switch p.value(key) {
	case managed:
		if !onHost {
			return ""
		}
	case allow:
		within := p.value(key + ".paths")
		if !onHost || within == "" || slices.ContainsFunc(strings.Split(within, ","), func(dir string) bool { return inside(source, dir) }) {
			return ""
		}
		return key + ".paths"
	}
	return key
}

// inside tells whether a path is a directory or in it. Where links lead is for who
// opens it to see.
func inside(p, dir string) bool {
	p = path.Clean(p)
	return p == dir || strings.HasPrefix(p, strings.TrimSuffix(dir, "/")+"/")
}

// Holds refuses instances that are together more than the project may have. The error
// is forbidden.
func (p Project) Holds(all []Instance) error {
	counts := map[string]int64{"limits.instances": int64(len(all))}
	for _, i := range all {
		if i.VM {
			counts["limits.virtual-machines"]++
		} else {
			counts["limits.containers"]++
		}
	}
	for _, key := range []string{"limits.instances", "limits.containers", "limits.virtual-machines"} {
		if most, ok := p.Config[key]; ok && counts[key] > number(most) {
			return fault.New(fault.Forbidden, "the project %q may have %s of %s, and that would be %d; see brig project set %s %s", p.Name, most, strings.TrimPrefix(key, "limits."), counts[key], p.Name, key)
		}
	}
	for _, s := range sums {
		if err := p.holdsSum(s, all); err != nil {
			return err
		}
	}
	return nil
}

// sum is a limit of the sum of what all instances may use.
type sum struct {
	key        string
	parse      func(string) (int64, error)
	containers bool // only they have it
}

var sums = []sum{
	{"limits.cpu", func(v string) (int64, error) {
		c, err := limits.ParseCPU(v)
		return int64(max(c.Count, len(c.Set))), err
	}, false},
	{"limits.memory", func(v string) (int64, error) {
		if strings.HasSuffix(v, "%") {
			return 0, fault.New(fault.Invalid, "a percentage cannot be added up")
		}
		return limits.ParseMemory(v, 0)
	}, false},
	{"limits.processes", func(v string) (int64, error) {
		n, err := limits.ParseProcesses(v)
		return int64(n), err
	}, true},
}

func (p Project) holdsSum(s sum, all []Instance) error {
	given, ok := p.Config[s.key]
	if !ok {
		return nil
	}
	most, err := limits.ParseMemory(given, 0)
	if s.key != "limits.memory" {
		most, err = number(given), nil
	}
	if err != nil {
		return fault.New(fault.Invalid, "the project %q has a %s of %q: %w", p.Name, s.key, given, err)
	}
	total := int64(0)
	for _, i := range all {
		if s.containers && i.VM {
			continue
		}
		value := i.Config[s.key]
		n, err := s.parse(value)
		if value == "" || err != nil {
			return fault.New(fault.Forbidden, "the project %q has a %s, so each instance in it needs one that can be added up, and %q has %q; give it one, or its profile", p.Name, s.key, Short(i.Name), value)
		}
		total += n
	}
	if total > most {
		return fault.New(fault.Forbidden, "the project %q may have %s=%s, and its instances would have %d together; see brig project set %s %s", p.Name, s.key, given, total, p.Name, s.key)
	}
	return nil
}

// number reads a count that was checked.
func number(v string) int64 {
	n, _ := strconv.ParseInt(v, 10, 64)
	return n
}
