package config_test

import (
	"os"
	"slices"
	"strings"
	"testing"

	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
)

func TestKeysAreSortedAndTold(t *testing.T) {
	keys := config.Keys()
	if !slices.IsSortedFunc(keys, func(a, b config.Key) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the keys are not sorted")
	}
	for _, k := range keys {
		if k.Type == "" || !strings.HasSuffix(k.Help, ".") || strings.ContainsAny(k.Help+k.Type, "|\n") {
			t.Errorf("%q is told as %q, %q", k.Name, k.Type, k.Help)
		}
		if k.Default != "" && k.Check(k.Default) != nil {
			t.Errorf("the default %q of %q is no value of it: %v", k.Default, k.Name, k.Check(k.Default))
		}
		if !strings.Contains(config.Reference(), "`"+k.Name+"`") {
			t.Errorf("the reference does not have %q", k.Name)
		}
	}
}

func TestFind(t *testing.T) {
	for _, name := range []string{"limits.memory", "environment.PATH", "user.any.thing", "snapshots.schedule"} {
		if _, err := config.Find(name); err != nil {
			t.Errorf("Find(%q) = %v", name, err)
		}
	}
	for name, meant := range map[string]string{
		"limits.mem":         "limits.memory",
		"limit.cpu":          "limits.cpu",
		"snapshot.schedule":  "snapshots.schedule",
		"security.priviledg": "security.privileged",
	} {
		if _, err := config.Find(name); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), `"`+meant+`"`) {
			t.Errorf("Find(%q) = %v, want it to name %q", name, err, meant)
		}
	}
	for _, name := range []string{"", "zzzzzzzz", "environment.", "environment.A=B", "user.a b", "user.a\nb"} {
		if k, err := config.Find(name); !fault.Is(err, fault.Invalid) {
			t.Errorf("Find(%q) = %v, %v, want an invalid error", name, k.Name, err)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		form       instance.Type
		key, value string
		ok         bool
	}{
		{instance.VirtualMachine, "limits.memory", "2GiB", true},
		{instance.VirtualMachine, "limits.memory", "much", false},
		{instance.VirtualMachine, "limits.memory", "0", false},
		{instance.VirtualMachine, "limits.cpu", "4", true},
		{instance.VirtualMachine, "limits.cpu", "0", false},
		{instance.VirtualMachine, "limits.cpu", "-1", false},
		{instance.VirtualMachine, "vm.accel", "hvf", false},
		{instance.Container, "vm.accel", "tcg", false},
		{"", "vm.accel", "tcg", true},
		{instance.Container, "security.privileged", "yes", false},
		{instance.Container, "environment.A", "two\nlines", true},
		{instance.Container, "environment.A", "bell\a", false},
		{instance.Container, "user.x", "", true},
		{instance.Container, "cloud-init.user-data", "#cloud-config\na: b\n", true},
		{instance.VirtualMachine, "cloud-init.user-data", strings.Repeat("x", 300<<10), false},
		{instance.VirtualMachine, "cloud-init.ssh-keys.mine", "root:ssh-ed25519 AAAA me", true},
		{instance.Container, "cloud-init.ssh-keys.mine", "ssh-ed25519 AAAA me", false},
		{instance.Container, "cloud-init.ssh-keys.mine", "root:AAAA", false},
		{instance.Container, "cloud-init.ssh-keys.mine", "root:ssh-rsa A\nssh-rsa B", false},
		{instance.Container, "snapshots.schedule", "@hourly", true},
		{instance.Container, "snapshots.schedule", "61 * * * *", false},
	} {
		err := config.Check(c.form, map[string]string{c.key: c.value})
		if c.ok && err != nil || !c.ok && !fault.Is(err, fault.Invalid) {
			t.Errorf("Check(%q, %s=%q) = %v, want ok %t", c.form, c.key, c.value, err, c.ok)
		}
	}
}

// TestThePageIsTrue compares the page in the tree with the keys there are. To write it
// anew: brig config keys -f md > instance/config/KEYS.md
func TestThePageIsTrue(t *testing.T) {
	page, err := os.ReadFile("KEYS.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(page) != config.Reference() {
		t.Error("KEYS.md is not what brig config keys -f md prints; write it anew")
	}
}
