package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"

	"brig/cmd/brig-guest/internal/card"
	"brig/instance/guest"
)

// writeSystemd tells systemd, where the image has it, what it could not find
// out by itself. All of it goes to /run, which is in memory.
func writeSystemd(s *guest.Settings) error {
	return errors.Join(card.Announce(s.NICs, s.DNS), writeGetty())
}

// writeGetty gives an image without udev a login on its console another way:
// systemd would wait for udev to announce the serial port, for 90 seconds, and
// then give up.
func writeGetty() error {
	for _, udev := range []string{"/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd", "/sbin/udevd"} {
		if _, err := os.Stat(udev); err == nil {
			return nil
		}
	}
	unit := ""
	for _, dir := range []string{"/usr/lib/systemd/system", "/lib/systemd/system"} {
		if _, err := os.Stat(dir + "/console-getty.service"); err == nil {
			unit = dir + "/console-getty.service"
		}
	}
	if unit == "" {
		return nil
	}
	const dir = "/run/systemd/system"
	if err := os.MkdirAll(dir+"/getty.target.wants", 0o755); err != nil {
		return err
	}
	errs := []error{os.Symlink(unit, dir+"/getty.target.wants/console-getty.service")}
	if tty := consoleDevice(); tty != "" {
		errs = append(errs, os.Symlink(os.DevNull, dir+"/serial-getty@"+tty+".service"))
	}
	return errors.Join(errs...)
}

// consoleDevice names the device behind /dev/console.
func consoleDevice() string {
	b, err := os.ReadFile("/sys/class/tty/console/active")
	names := strings.Fields(string(b))
	if err != nil || len(names) == 0 {
		return ""
	}
	return filepath.Base(names[len(names)-1])
}
