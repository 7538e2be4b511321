package boot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/instance"
	"brig/instance/guest"
)

// writeSystemd tells systemd, where the image has it, what it could not find
// out by itself. All of it goes to /run, which is in memory.
func writeSystemd(s *guest.Settings) error {
	return errors.Join(writeNetworkd(s), writeGetty())
}

// writeNetworkd tells systemd's network manager and udev what is configured
// already, so that neither asks for an address nor gives another name.
func writeNetworkd(s *guest.Settings) error {
	if len(s.NICs) == 0 {
		return nil
	}
	const dir = "/run/systemd/network"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, nic := range s.NICs {
		match := fmt.Sprintf("[Match]\nMACAddress=%s\n\n", nic.MAC)
		base := filepath.Join(dir, "00-brig-"+nic.Name)
		errs = append(errs,
			os.WriteFile(base+".link", []byte(match+"[Link]\nNamePolicy=\nName="+nic.Name+"\n"), 0o644),
			os.WriteFile(base+".network", []byte(match+network(nic, s)), 0o644))
	}
	return errors.Join(errs...)
}

// network is a .network file's part after [Match].
func network(nic instance.NIC, s *guest.Settings) string {
	var b strings.Builder
	b.WriteString("[Network]\nDHCP=no\nKeepConfiguration=static\n")
	for _, a := range nic.Addresses {
		fmt.Fprintf(&b, "Address=%v\n", a)
	}
	for _, a := range s.DNS {
		fmt.Fprintf(&b, "DNS=%v\n", a)
	}
	if nic.Gateway.IsValid() {
		fmt.Fprintf(&b, "\n[Route]\nGateway=%v\nGatewayOnLink=yes\n", nic.Gateway)
	}
	return b.String()
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
