package manager

import (
	"testing"

	"brig/instance"
	"brig/instance/guest/identity"
)

func TestWhoAnInstanceIsSurvivesARestore(t *testing.T) {
	for _, c := range []struct {
		name     string
		spec, is instance.Spec
		want     instance.Spec
	}{
		{"one that keeps what its files say", instance.Spec{}, instance.Spec{}, instance.Spec{}},
		{"a snapshot of its own", instance.Spec{MachineID: "a"}, instance.Spec{MachineID: "a"}, instance.Spec{MachineID: "a"}},
		{"a snapshot from before its first start", instance.Spec{MachineID: "a", Renew: true}, instance.Spec{MachineID: "a"}, instance.Spec{MachineID: "a", Renew: true}},
		{"a snapshot of what it is a copy of", instance.Spec{}, instance.Spec{MachineID: "a"}, instance.Spec{MachineID: "a", Renew: true}},
		{"a snapshot of a copy that it is a copy of", instance.Spec{MachineID: "b"}, instance.Spec{MachineID: "a"}, instance.Spec{MachineID: "a", Renew: true}},
	} {
		keepIdentity(&c.spec, &c.is)
		if c.spec.MachineID != c.want.MachineID || c.spec.Renew != c.want.Renew {
			t.Errorf("%s: %q, %v, want %q, %v", c.name, c.spec.MachineID, c.spec.Renew, c.want.MachineID, c.want.Renew)
		}
	}
}

func TestRenewChoosesAMachineID(t *testing.T) {
	said := 0
	m := New(Config{Notice: func(string) { said++ }})
	var a, b, disk instance.Spec
	disk.Image.Firmware = "uefi"
	m.renew(&a)
	m.renew(&b)
	m.renew(&disk)
	if !identity.Valid(a.MachineID) || !a.Renew || a.MachineID == b.MachineID {
		t.Errorf("renewed: %+v and %+v", a, b)
	}
	if disk.Renew || said != 1 {
		t.Errorf("a disk that boots by itself: %v, %d notices, want to be told that nothing is done", disk.Renew, said)
	}
}
