package network

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// maxResolv bounds what is read of a resolv.conf.
const maxResolv = 1 << 20

// maxServers is how many name servers a C library asks.
const maxServers = 3

// resolvFiles are where the host's name servers are written down: first for its
// own programs, then, because those may be sent to a resolver that listens on
// loopback alone, where such resolvers write which servers they ask.
func resolvFiles() []string {
	return []string{
		"/etc/resolv.conf",
		"/run/systemd/resolve/resolv.conf",
		"/run/NetworkManager/no-stub-resolv.conf",
	}
}

// DNS gives the name servers for instances: those of the host that can be
// reached from its IPv4 bridge. It may be empty.
func (n *Network) DNS() []netip.Addr {
	servers := slices.DeleteFunc(n.nameServers(), func(a netip.Addr) bool { return !a.Is4() })
	return servers[:min(len(servers), maxServers)]
}

// nameServers gives the name servers of the first file that names one outside
// of the host.
func (n *Network) nameServers() []netip.Addr {
	for _, path := range n.resolv {
		f, err := os.Open(path)
		if err != nil {
			continue
		}
		servers := parseResolv(io.LimitReader(f, maxResolv))
		f.Close()
		if len(servers) > 0 {
			return servers
		}
	}
	return nil
}

// parseResolv reads the name servers that others than the host can ask, in
// order and once each.
func parseResolv(r io.Reader) []netip.Addr {
	var servers []netip.Addr
	for lines := bufio.NewScanner(r); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 || fields[0] != "nameserver" {
			continue
		}
		addr, err := netip.ParseAddr(fields[1])
		addr = addr.Unmap()
		if err != nil || addr.IsLoopback() || addr.IsUnspecified() || addr.IsMulticast() || addr.IsLinkLocalUnicast() {
			continue
		}
		if !slices.Contains(servers, addr) {
			servers = append(servers, addr)
		}
	}
	return servers
}
