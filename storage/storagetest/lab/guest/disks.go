package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"brig/storage/storagetest/lab/plan"
)

// mountDisk mounts the ext4 of the disk with a name.
func mountDisk(name, target string, flags uintptr) error {
	device, err := disk(name)
	if err != nil {
		return err
	}
	return mount(device, target, "ext4", flags, "")
}

// disk finds the disk with a name, which the kernel may be finding still.
func disk(name string) (string, error) {
	order, err := diskOrder()
	if err != nil {
		return "", err
	}
	if i := slices.Index(order, name); i >= 0 {
		return "/dev/" + numbered(i), nil
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); <-tick.C {
		serials, _ := filepath.Glob("/sys/block/vd*/serial")
		for _, file := range serials {
			if got, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(got)) == name {
				return "/dev/" + filepath.Base(filepath.Dir(file)), nil
			}
		}
	}
	return "", fmt.Errorf("there is no disk with the name %q", name)
}

// numbered is the kernel's name of a disk without a name of its own.
func numbered(i int) string { return "ubd" + string(rune('a'+i)) }

// diskOrder gives the names of disks that have none themselves. It is empty on a
// machine whose disks have.
func diskOrder() ([]string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return nil, err
	}
	for parameter := range strings.FieldsSeq(string(line)) {
		if list, ok := strings.CutPrefix(parameter, plan.DiskOrder+"="); ok {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}

// idle are rules of udev that run for every device that is made or changes, and give
// nothing that is looked at here: units of systemd, and names by what a disk holds.
var idle = []string{
	"60-cdrom_id", "60-persistent-storage", "60-persistent-storage-dm", "60-zvol", "64-btrfs", "64-btrfs-dm", "69-vdev",
	"70-power-switch", "70-uaccess", "71-seat", "73-seat-late", "80-debian-compat", "80-drivers", "90-zfs", "96-e2scrub", "99-systemd",
}

// nameDisks has udev name disks without names of their own as it names those that have,
// with their partitions, and do no more than the device mapper needs: starting programs
// is what takes longest on such a machine.
func nameDisks() error {
	order, err := diskOrder()
	if err != nil || order == nil {
		return err
	}
	const rulesDir = root + "/etc/udev/rules.d/"
	for _, name := range idle {
		if err := os.Symlink("/dev/null", rulesDir+name+".rules"); err != nil {
			return err
		}
	}
	var rules strings.Builder
	for i, name := range order {
		link := "disk/by-id/virtio-" + name
		fmt.Fprintf(&rules, "KERNEL==%q, SYMLINK+=%q\n", numbered(i), link)
		fmt.Fprintf(&rules, "KERNEL==\"%s[0-9]*\", SYMLINK+=\"%s-part%%n\"\n", numbered(i), link)
	}
	return os.WriteFile(rulesDir+"99-lab.rules", []byte(rules.String()), 0o644)
}
