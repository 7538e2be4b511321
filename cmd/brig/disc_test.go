package main

import (
	"encoding/binary"
	"os"
	"strings"
	"syscall"
	"testing"

	"brig/instance/instancetest"
)

// bootDisc is a disc from which the BIOS runs what bootDisk has in its first sector, by
// El Torito without emulation: the descriptors, a catalog of one entry, the code.
func bootDisc() []byte {
	const sector = 2048
	disc := make([]byte, 64*sector)
	at := func(n int) []byte { return disc[n*sector:] }
	primary := at(16)
	copy(primary, "\x01CD001\x01\x00")
	copy(primary[40:], "A DISC                          ")
	binary.LittleEndian.PutUint32(primary[80:], 64)
	binary.BigEndian.PutUint32(primary[84:], 64)
	binary.LittleEndian.PutUint16(primary[128:], sector)
	binary.BigEndian.PutUint16(primary[130:], sector)
	primary[156], primary[156+25] = 34, 2
	copy(at(17), "\x00CD001\x01EL TORITO SPECIFICATION\x00")
	binary.LittleEndian.PutUint32(at(17)[0x47:], 19)
	copy(at(18), "\xffCD001\x01")
	catalog := at(19)
	catalog[0], catalog[30], catalog[31] = 1, 0x55, 0xaa
	binary.LittleEndian.PutUint16(catalog[28:], -(0xaa55+1)&0xffff) // its words add up to nothing
	catalog[32] = 0x88                                              // bootable
	binary.LittleEndian.PutUint16(catalog[38:], 4)
	binary.LittleEndian.PutUint32(catalog[40:], 20)
	copy(at(20), bootDisk()[:512])
	return disc
}

// TestMachineIsInstalledFromADisc has an empty machine start from its disc.
func TestMachineIsInstalledFromADisc(t *testing.T) {
	r := instancetest.New(t, bin)
	file := save(t, "a-disc.iso", bootDisc())
	r.Fails(t, 2, []string{"no ISO image"}, "storage", "volume", "import", "default", save(t, "no.iso", make([]byte, 1<<20)))
	r.Must(t, "storage", "volume", "import", "default", file)
	if list := r.Must(t, "storage", "volume", "list", "default", "-f", "csv"); !strings.Contains(list, "a-disc") || !strings.Contains(list, "iso") {
		t.Errorf("storage volume list = %s", list)
	}
	r.Must(t, "create", "--empty", "--vm", "vm", "--no-network", "-d", "root,size=20MiB")
	r.Fails(t, 6, []string{"--vm"}, "create", "--empty", "web")
	r.Must(t, "storage", "volume", "attach", "default", "a-disc", "vm")
	if device := r.Must(t, "config", "device", "show", "vm"); !strings.Contains(strings.ReplaceAll(device, " ", ""), "|readonly|true|") {
		t.Errorf("the device of the disc is %s", device)
	}
	r.Must(t, "start", "vm")
	r.Must(t, "snapshot", "create", "vm", "running")
	if list := r.Must(t, "storage", "volume", "snapshot", "list", "default", "a-disc", "-f", "csv"); list != "" {
		t.Errorf("a snapshot of the machine took one of the disc: %s", list)
	}
	instancetest.Await(t, "the machine starts from its disc", func() bool {
		return strings.Contains(r.Run(t, "console", "vm", "--show-log").Stdout, "this disk boots by itself")
	})
	r.Must(t, "delete", "--force", "--now", "vm")
	r.Must(t, "storage", "volume", "delete", "default", "a-disc", "--now")
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// TestKilledWhileADiscIsImported kills what makes volumes of discs and empty machines
// at the steps that they share with other volumes and machines.
func TestKilledWhileADiscIsImported(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Must(t, "storage", "volume", "create", "default", "first") // makes what stays
	r.Must(t, "storage", "volume", "delete", "--now", "default", "first")
	r.Must(t, "sweep")
	before := look(t, r)
	disc := save(t, "disc.iso", bootDisc())
	for point, args := range map[string][]string{
		"volume-create.volume": {"storage", "volume", "import", "default", disc, "data"},
		"create.volume":        {"create", "--empty", "--vm", "web", "--no-network"},
	} {
		for _, at := range []string{".before", ".after"} {
			res := r.With("BRIG_FAILPOINTS="+point+at+"=kill").Run(t, args...)
			if res.Code != -int(syscall.SIGKILL) {
				t.Fatalf("brig %q = %d: %s, want it to be killed at %s", args, res.Code, res.Stderr, point+at)
			}
			r.Must(t, args...)
			if point == "create.volume" {
				r.Must(t, "delete", "--now", "web")
			} else {
				r.Must(t, "storage", "volume", "delete", "--now", "default", "data")
			}
			r.Must(t, "sweep")
			before.unchanged(t, r)
		}
	}
}
