package project

import (
	"strings"
	"testing"

	"brig/instance/fault"
)

func TestFullNames(t *testing.T) {
	for _, c := range []struct{ in, name, full string }{
		{Default, "web", "web"},
		{"", "web", "web"},
		{"p", "web", "p_web"},
		{"p", "q_web", "q_web"},
		{"p", "default_web", "web"},
		{Default, "default_web", "web"},
	} {
		if got := Full(c.in, c.name); got != c.full {
			t.Errorf("Full(%q, %q) = %q, want %q", c.in, c.name, got, c.full)
		}
	}
	for full, want := range map[string][2]string{"web": {Default, "web"}, "p_web": {"p", "web"}} {
		if in, name := Split(full); in != want[0] || name != want[1] {
			t.Errorf("Split(%q) = %q, %q", full, in, name)
		}
	}
}

func TestNamesOfProjects(t *testing.T) {
	for _, name := range []string{"a", "customer-1", Default, strings.Repeat("a", 32)} {
		if err := CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
	for _, name := range []string{"", "part", "1a", "-a", "a-", "a_b", "a/b", "..", "a.b", "a b", "a\n", "ä", strings.Repeat("a", 33)} {
		if err := CheckName(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckName(%q) = %v, want invalid", name, err)
		}
	}
}

func TestKeysOfProjects(t *testing.T) {
	for _, k := range Keys() {
		if k.Default != "" {
			if err := (Project{Name: "p", Config: map[string]string{k.Name: k.Default}}).Check(); err != nil {
				t.Errorf("the default of %s: %v", k.Name, err)
			}
		}
		if _, also := unsupported[k.Name]; also {
			t.Errorf("%s is there, and is refused", k.Name)
		}
	}
	for _, c := range []struct {
		key, value string
		class      fault.Class
		says       string
	}{
		{"limits.instance", "1", fault.Invalid, `did you mean "limits.instances"`},
		{"limits.disk", "1GiB", fault.Unsupported, "root disks"},
		{"features.images", "true", fault.Unsupported, "all projects"},
		{"features.storage.volumes", "true", fault.Unsupported, "all projects"},
		{"features.profiles", "yes", fault.Invalid, "true or false"},
		{"limits.instances", "-1", fault.Invalid, "whole number"},
		{"limits.instances", "+1", fault.Invalid, "whole number"},
		{"limits.instances", "99999999999999999999", fault.Invalid, "whole number"},
		{"limits.memory", "50%", fault.Invalid, "size"},
		{"limits.memory", "1 KiB\n", fault.Invalid, "control"},
		{"restricted", "maybe", fault.Invalid, "true or false"},
		{"restricted.containers.privilege", "isolated", fault.Invalid, "unprivileged or allow"},
		{"restricted.devices.disk.paths", "/srv,relative", fault.Invalid, "relative"},
		{"restricted.devices.disk.paths", "/srv/../etc", fault.Invalid, "clean"},
		{"nothing.like.it", "1", fault.Invalid, "brig project --help"},
	} {
		err := (Project{Name: "p", Config: map[string]string{c.key: c.value}}).Check()
		if !fault.Is(err, c.class) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s=%s: %v, want %s, %q", c.key, c.value, err, c.class, c.says)
		}
	}
	if err := (Project{Name: Default, Config: map[string]string{"features.profiles": "false"}}).Check(); !fault.Is(err, fault.Invalid) {
		t.Errorf("features of the default project: %v", err)
	}
}

func TestRestrictions(t *testing.T) {
	config := func(pairs ...string) Instance {
		i := Instance{Name: "p_web", Config: map[string]string{}}
		for n := 0; n < len(pairs); n += 2 {
			i.Config[pairs[n]] = pairs[n+1]
		}
		return i
	}
	device := func(pairs ...string) Instance {
		keys := config(pairs...).Config
		return Instance{Name: "p_web", Devices: map[string]map[string]string{"x": keys}}
	}
	vm := func(i Instance) Instance { i.VM = true; return i }
	for _, c := range []struct {
		i       Instance
		key     string // that would allow it
		value   string
		allowed bool // without
	}{
		{config("security.privileged", "true"), "restricted.containers.privilege", "allow", false},
		{config("security.privileged", "false"), "", "", true},
		{config("security.nesting", "true"), "restricted.containers.nesting", "allow", false},
		{config("raw.lxc", "x"), "restricted.containers.lowlevel", "allow", false},
		{vm(config("raw.qemu", "x")), "restricted.virtual-machines.lowlevel", "allow", false},
		{config("security.syscalls.deny", "x"), "restricted.containers.lowlevel", "allow", false},
		{config("snapshots.schedule", "@daily"), "restricted.snapshots", "allow", false},
		{config("limits.memory", "1GiB", "user.x", "y"), "", "", true},
		{device("type", "disk", "source", "/srv", "path", "/srv"), "restricted.devices.disk", "allow", false},
		{device("type", "disk", "source", "data", "pool", "default"), "", "", true},
		{device("type", "disk", "source", "tmpfs:", "path", "/x"), "", "", true},
		{device("type", "usb"), "restricted.devices.usb", "allow", false},
		{device("type", "unix-char", "source", "/dev/x"), "restricted.devices.unix-char", "allow", false},
		{device("type", "nic", "nictype", "macvlan", "parent", "eth0"), "restricted.devices.nic", "allow", false},
		{device("type", "nic", "network", "brig0"), "", "", true},
		{device("type", "whatever-is-new"), "", "", false},
		{device("type", "none"), "", "", true},
	} {
		p := Project{Name: "p", Config: map[string]string{"restricted": "true"}}
		if err := p.Allows(c.i); (err == nil) != c.allowed || err != nil && !fault.Is(err, fault.Forbidden) {
			t.Errorf("%v: %v, want allowed: %v", c.i, err, c.allowed)
		}
		if c.key != "" {
			p.Config[c.key] = c.value
			if err := p.Allows(c.i); err != nil {
				t.Errorf("%v with %s: %v", c.i, c.key, err)
			}
		}
		if err := (Project{Name: "p"}).Allows(c.i); err != nil {
			t.Errorf("%v without restrictions: %v", c.i, err)
		}
	}
	p := Project{Name: "p", Config: map[string]string{"restricted": "true", "restricted.devices.disk": "allow", "restricted.devices.disk.paths": "/srv/p,/data"}}
	for source, allowed := range map[string]bool{"/srv/p": true, "/srv/p/x": true, "/data": true, "/srv": false, "/srv/pq": false, "/": false} {
		if err := p.Allows(device("type", "disk", "source", source)); (err == nil) != allowed {
			t.Errorf("the directory %s: %v, want allowed: %v", source, err, allowed)
		}
	}
	p.Config["restricted.devices.disk"] = "block"
	if err := p.Allows(device("type", "disk", "source", "data", "pool", "default")); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a volume where disks are blocked: %v", err)
	}
	if err := p.Permits("restricted.backups"); !fault.Is(err, fault.Forbidden) {
		t.Errorf("Permits: %v", err)
	}
}

func TestLimits(t *testing.T) {
	one := func(vm bool, pairs ...string) Instance {
		i := Instance{Name: "p_web", VM: vm, Config: map[string]string{}}
		for n := 0; n < len(pairs); n += 2 {
			i.Config[pairs[n]] = pairs[n+1]
		}
		return i
	}
	small := one(false, "limits.memory", "512MiB", "limits.cpu", "1", "limits.processes", "100")
	machine := one(true, "limits.memory", "1GiB", "limits.cpu", "0-1")
	for _, c := range []struct {
		key, value string
		all        []Instance
		fits       bool
	}{
		{"limits.instances", "2", []Instance{small, machine}, true},
		{"limits.instances", "1", []Instance{small, machine}, false},
		{"limits.instances", "0", nil, true},
		{"limits.containers", "1", []Instance{small, machine}, true},
		{"limits.containers", "0", []Instance{small}, false},
		{"limits.virtual-machines", "0", []Instance{small}, true},
		{"limits.virtual-machines", "0", []Instance{machine}, false},
		{"limits.memory", "1536MiB", []Instance{small, machine}, true},
		{"limits.memory", "1535MiB", []Instance{small, machine}, false},
		{"limits.memory", "8GiB", []Instance{small, one(false)}, false},
		{"limits.memory", "8GiB", []Instance{one(false, "limits.memory", "10%")}, false},
		{"limits.cpu", "3", []Instance{small, machine}, true},
		{"limits.cpu", "2", []Instance{small, machine}, false},
		{"limits.processes", "100", []Instance{small, machine}, true},
		{"limits.processes", "199", []Instance{small, small}, false},
	} {
		p := Project{Name: "p", Config: map[string]string{c.key: c.value}}
		if err := p.Check(); err != nil {
			t.Error(err)
		}
		if err := p.Holds(c.all); (err == nil) != c.fits || err != nil && !fault.Is(err, fault.Forbidden) {
			t.Errorf("%s=%s with %d: %v, want it to fit: %v", c.key, c.value, len(c.all), err, c.fits)
		}
	}
}
