package profiles_test

import (
	"reflect"
	"strings"
	"testing"

	"brig/instance/fault"
	"brig/profiles"
)

func TestMerge(t *testing.T) {
	first := profiles.Profile{Name: "first",
		Config:  map[string]string{"limits.memory": "1GiB", "user.a": "first"},
		Devices: map[string]map[string]string{"data": {"type": "disk", "path": "/data", "readonly": "true"}, "gone": {"type": "disk", "path": "/gone"}},
	}
	second := profiles.Profile{Name: "second",
		Config:  map[string]string{"limits.memory": "2GiB"},
		Devices: map[string]map[string]string{"data": {"type": "disk", "path": "/other"}},
	}
	m := profiles.Merge([]profiles.Profile{first, second}, map[string]string{"user.b": "mine"}, map[string]map[string]string{"gone": {"type": "none"}})
	want := profiles.Merged{
		Config: map[string]profiles.Value{
			"limits.memory": {Value: "2GiB", Origin: "second"},
			"user.a":        {Value: "first", Origin: "first"},
			"user.b":        {Value: "mine", Origin: profiles.Own},
		},
		Devices: map[string]profiles.Device{"data": {Options: map[string]string{"type": "disk", "path": "/other"}, Origin: "second"}},
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("Merge = %+v, want %+v", m, want)
	}
	if got := profiles.Merge([]profiles.Profile{second, first}, nil, nil).Config["limits.memory"]; got.Value != "1GiB" || got.Origin != "first" {
		t.Errorf("in the other order limits.memory is %+v, want 1GiB of the profile first", got)
	}
	m.Devices["data"].Options["path"] = "/changed"
	if second.Devices["data"]["path"] != "/other" {
		t.Error("changing what Merge gave changes a profile")
	}
}

func TestChanged(t *testing.T) {
	got := profiles.Changed(map[string]string{"a": "1", "b": "2", "d": ""}, map[string]string{"a": "1", "b": "3", "c": ""})
	if want := []string{"b", "c", "d"}; !reflect.DeepEqual(got, want) {
		t.Errorf("Changed = %q, want %q", got, want)
	}
}

// incus is a profile as `incus profile show` prints it.
const incus = `config:
  limits.cpu: "2"
  limits.memory: 512MiB
  security.nesting: true
  boot.autostart.priority: 010
  user.note: |
    two
    lines
description: Default Incus profile
devices:
  eth0:
    name: eth0
    network: incusbr0
    type: nic
  root:
    path: /
    pool: default
    type: disk
name: default
used_by:
- /1.0/instances/web
project: default
`

func TestParse(t *testing.T) {
	p, err := profiles.Parse([]byte(incus))
	if err != nil {
		t.Fatal(err)
	}
	want := profiles.Profile{Name: "default", Description: "Default Incus profile",
		Config: map[string]string{"limits.cpu": "2", "limits.memory": "512MiB", "security.nesting": "true", "boot.autostart.priority": "010", "user.note": "two\nlines\n"},
		Devices: map[string]map[string]string{
			"eth0": {"name": "eth0", "network": "incusbr0", "type": "nic"},
			"root": {"path": "/", "pool": "default", "type": "disk"},
		},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("Parse = %+v, want %+v", p, want)
	}
	text, err := profiles.Text(p)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := profiles.Parse(text); err != nil || !reflect.DeepEqual(again, p) {
		t.Errorf("Parse(Text) = %+v, %v, want the same profile", again, err)
	}
	if empty, err := profiles.Parse(nil); err != nil || len(empty.Config) != 0 {
		t.Errorf("Parse of nothing = %+v, %v, want an empty profile", empty, err)
	}
}

func TestParseRefuses(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
	for i := range 12 {
		bomb += string(rune('b'+i)) + ": &" + string(rune('b'+i)) + " [" + strings.TrimSuffix(strings.Repeat("*"+string(rune('a'+i))+",", 10), ",") + "]\n"
	}
	for name, text := range map[string]string{
		"an unknown field":   "confg: {}",
		"a list":             "- a",
		"a nested value":     "config: {a: {b: c}}",
		"two documents":      "config: {}\n---\nconfig: {}",
		"no YAML":            "config: [",
		"a key twice":        "config: {a: 1, a: 2}",
		"a bomb":             bomb,
		"a bomb in a device": "devices:\n  x: &x {type: disk}\n  y: [*x, *x]\n",
		"too much":           "description: " + strings.Repeat("x", profiles.MaxYAML),
	} {
		if p, err := profiles.Parse([]byte(text)); !fault.Is(err, fault.Invalid) {
			t.Errorf("Parse of %s = %+v, %v, want an invalid error", name, p, err)
		}
	}
}

func TestCheckName(t *testing.T) {
	for _, name := range []string{"default", "a", "web-2.x_y", strings.Repeat("x", 63)} {
		if err := profiles.CheckName(name); err != nil {
			t.Errorf("CheckName(%q) = %v", name, err)
		}
	}
	for _, name := range []string{"", "-x", ".", "..", "a/b", "a b", "ä", "a\x00", strings.Repeat("x", 64)} {
		if err := profiles.CheckName(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckName(%q) = %v, want an invalid error", name, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(incus))
	f.Add([]byte("config: {a: &x 1, b: *x}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		p, err := profiles.Parse(text)
		if err != nil {
			return
		}
		again, err := profiles.Text(p)
		if err != nil {
			t.Fatal(err)
		}
		if q, err := profiles.Parse(again); err != nil || !reflect.DeepEqual(p, q) {
			t.Errorf("Parse(Text(%+v)) = %+v, %v", p, q, err)
		}
	})
}

func TestParseInstance(t *testing.T) {
	text := `architecture: x86_64
config:
  limits.cpu: "2"
  security.nesting: true
devices:
  data: {type: disk, source: data, pool: default, path: /data}
ephemeral: false
profiles:
- default
- 010
stateful: false
description: "mine"
`
	in, err := profiles.ParseInstance([]byte(text))
	want := profiles.Instance{Description: "mine", Config: map[string]string{"limits.cpu": "2", "security.nesting": "true"},
		Devices: map[string]map[string]string{"data": {"type": "disk", "source": "data", "pool": "default", "path": "/data"}}, Profiles: []string{"default", "010"}}
	if err != nil || !reflect.DeepEqual(in, want) {
		t.Errorf("ParseInstance = %+v, %v, want %+v", in, err, want)
	}
	again, err := profiles.InstanceText(in)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := profiles.ParseInstance(again); err != nil || !reflect.DeepEqual(back, in) {
		t.Errorf("ParseInstance(InstanceText) = %+v, %v", back, err)
	}
	for _, bad := range []string{"confg: {}", "profiles: {a: b}", "config: {}\n---\nconfig: {}", "config: ["} {
		if in, err := profiles.ParseInstance([]byte(bad)); !fault.Is(err, fault.Invalid) {
			t.Errorf("ParseInstance(%q) = %+v, %v, want an invalid error", bad, in, err)
		}
	}
}
