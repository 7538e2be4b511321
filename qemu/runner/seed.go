package runner

import (
	"fmt"
	"os"

	"brig/instance"
	"brig/instance/guest"
	"brig/qemu/cidata"
	"brig/qemu/rundir"
)

// hasSeed tells whether a machine gets a disk for cloud-init: one that boots by itself,
// where nothing of brig's can leave files.
func hasSeed(m *instance.Machine) bool { return m.Kernel == nil && m.Boot.Seed != nil }

func writeSeed(m *instance.Machine) error {
	if !hasSeed(m) {
		return nil
	}
	image, err := cidata.Image(guest.SeedFiles(m.Boot.Seed, m.Boot.Hostname))
	if err == nil {
		err = os.WriteFile(m.Path(rundir.Seed), image, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cannot make the disk for cloud-init: %w", err)
	}
	return nil
}

func seedPath(m *instance.Machine) string {
	if !hasSeed(m) {
		return ""
	}
	return m.Path(rundir.Seed)
}
