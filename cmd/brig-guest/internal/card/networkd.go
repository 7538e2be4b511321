package card

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"brig/instance"
)

// Announce tells systemd's network manager and udev what is configured already, in /run,
// which is in memory, so that neither asks for an address nor gives another name.
func Announce(nics []instance.NIC, dns []netip.Addr) error {
	if len(nics) == 0 {
		return nil
	}
	const dir = "/run/systemd/network"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, nic := range nics {
		match := fmt.Sprintf("[Match]\nMACAddress=%s\n\n", nic.MAC)
		base := filepath.Join(dir, "00-brig-"+nic.Name)
		errs = append(errs,
			os.WriteFile(base+".link", []byte(match+"[Link]\nNamePolicy=\nName="+nic.Name+"\n"), 0o644),
			os.WriteFile(base+".network", []byte(match+network(nic, dns)), 0o644))
	}
	return errors.Join(errs...)
}

// network is a .network file's part after [Match].
func network(nic instance.NIC, dns []netip.Addr) string {
	var b strings.Builder
	b.WriteString("[Network]\nDHCP=no\nKeepConfiguration=static\n")
	for _, a := range nic.Addresses {
		fmt.Fprintf(&b, "Address=%v\n", a)
	}
	for _, a := range dns {
		fmt.Fprintf(&b, "DNS=%v\n", a)
	}
	if nic.Gateway.IsValid() {
		fmt.Fprintf(&b, "\n[Route]\nGateway=%v\nGatewayOnLink=yes\n", nic.Gateway)
	}
	return b.String()
}
