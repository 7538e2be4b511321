package manager

import (
	"maps"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/fault"
)

func TestDeviceFilesOfTheHost(t *testing.T) {
	good := map[string]string{"type": unixChar, "source": "/dev/null"}
	for _, c := range []struct {
		key, value string
		class      fault.Class // empty: it is fine
	}{
		{"mode", "0644", ""},
		{"path", "/dev/a/b", ""},
		{"uid", "4294967294", ""},
		{"source", "/dev/zero", ""},
		{"source", "null", fault.Invalid},
		{"source", "/dev/../etc/x", fault.Invalid},
		{"source", "/dev/null\n", fault.Invalid},
		{"path", "/etc/null", fault.Invalid},
		{"path", "/dev", fault.Invalid},
		{"path", "/dev/" + strings.Repeat("x", maxMountPath), fault.Invalid},
		{"mode", "4755", fault.Invalid},
		{"mode", "rw", fault.Invalid},
		{"uid", "-1", fault.Invalid},
		{"gid", "4294967295", fault.Invalid},
		{"major", "1", fault.Invalid},
		{"required", "maybe", fault.Invalid},
		{"shift", "true", fault.Unsupported},
	} {
		keys := maps.Clone(good)
		keys[c.key] = c.value
		d, err := parseDevice("d", keys)
		if c.class == "" && err != nil || c.class != "" && !fault.Is(err, c.class) {
			t.Errorf("%s=%q: %v, want class %q", c.key, c.value, err, c.class)
		}
		if err := checkProfileDevice("d", keys); c.class == fault.Invalid && !fault.Is(err, fault.Invalid) {
			t.Errorf("a profile with %s=%q: %v, want it to be invalid", c.key, c.value, err)
		}
		if c.class == "" {
			if a, err := d.attachedNode(instance.Container); err != nil || !d.is(a) || a.Node.Block {
				t.Errorf("%s=%q is %+v, %v", c.key, c.value, a, err)
			}
		}
	}
	d, err := parseDevice("d", map[string]string{"type": unixBlock, "path": "/dev/x", "major": "7", "minor": "9"})
	if err != nil {
		t.Fatal(err)
	}
	if a, err := d.attachedNode(instance.Container); err != nil || a.Node.Rule() != "b 7:9 rwm" {
		t.Errorf("a device by its numbers is %+v, %v", a.Node, err)
	}
	d.node.numbered, d.source = false, "/dev/null"
	if a, err := d.attachedNode(instance.Container); !fault.Is(err, fault.Invalid) {
		t.Errorf("a character device as a block device is %+v, %v, want invalid", a.Node, err)
	}
}

// FuzzDevice checks that what a device may say leads to nothing outside of where it may
// be, whoever wrote it.
func FuzzDevice(f *testing.F) {
	f.Add("d", unixChar, "source", "/dev/null", "path", "/dev/x")
	f.Add("d", unixBlock, "major", "1", "minor", "2")
	f.Add("eth0", "nic", "hwaddr", "02:00:00:00:00:01", "ipv4.address", "10.0.0.1")
	f.Add("eth1", "nic", "name", "../lan0", "network", "brig0")
	f.Fuzz(func(t *testing.T, name, kind, key, value, another, text string) {
		d, err := parseDevice(name, map[string]string{"type": kind, key: value, another: text})
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("%v has no class", err)
			}
			return
		}
		if strings.ContainsFunc(d.path+d.source, isControl) || strings.Contains(d.path+"/", "/../") {
			t.Errorf("it is at %q, of %q", d.path, d.source)
		}
		if d.node.kind != "" && (!strings.HasPrefix(d.path, "/dev/") || d.node.mode > 0o777) {
			t.Errorf("a device file is at %q, with the mode %o", d.path, d.node.mode)
		}
	})
}
