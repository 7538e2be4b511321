package qemu

import (
	"testing"

	"brig/instance/fault"
)

func TestLimitsOfVirtualMachines(t *testing.T) {
	d := &Driver{}
	for _, c := range []struct {
		key, value string
		class      fault.Class
	}{
		{"limits.memory", "256MiB", ""},
		{"limits.memory", "64MiB", fault.Invalid}, // no kernel comes up with that
		{"limits.cpu", "2", ""},
		{"limits.cpu", "0-1", ""},
		{"limits.cpu", "many", fault.Invalid},
	} {
		if err := d.CheckLimits("", map[string]string{c.key: c.value}); fault.Of(err) != c.class {
			t.Errorf("CheckLimits(%s=%s) = %v, want class %q", c.key, c.value, err, c.class)
		}
	}
}
