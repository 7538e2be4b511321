package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"brig/instance/durable"
	"brig/instance/fault"
)

// smallestBits and largestBits bound the subnets that network.json may name.
const (
	smallestBits = 29
	largestBits  = 8
)

// settings is the content of network.json.
type settings struct {
	Version int          `json:"version"`
	Subnet  netip.Prefix `json:"subnet"`
}

// settingsVersion is the format of network.json that this brig writes.
const settingsVersion = 1

// maxSettings bounds what is read of network.json.
const maxSettings = 64 << 10

// Subnet is the subnet of this brig; not valid as long as none was chosen.
func (n *Network) Subnet() (netip.Prefix, error) {
	f, err := os.Open(n.config)
	if errors.Is(err, fs.ErrNotExist) {
		return netip.Prefix{}, nil
	}
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot read the network's settings: %w", classify(err))
	}
	defer f.Close()
	return readSettings(f, n.config)
}

// Holds tells whether address is one that an instance of this brig may have. A
// false answer for an address that Allocate gave says that the subnet has been
// changed since.
func (n *Network) Holds(address netip.Prefix) (bool, error) {
	subnet, err := n.Subnet()
	return err == nil && subnet.IsValid() && address.Masked() == subnet && address.Addr() != gateway(subnet), err
}

func readSettings(r io.Reader, path string) (netip.Prefix, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxSettings))
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("cannot read the network's settings: %w", err)
	}
	var s settings
	if err := json.Unmarshal(text, &s); err != nil {
		return netip.Prefix{}, fault.New(fault.Invalid,
			"cannot read the network's settings in %s: %v; mend the file or remove it", path, err)
	}
	if s.Version > settingsVersion {
		return netip.Prefix{}, fault.New(fault.Unsupported,
			"cannot read the network's settings in %s: a newer brig wrote them (version %d)", path, s.Version)
	}
	if bits := s.Subnet.Bits(); !s.Subnet.Addr().Is4() || s.Subnet != s.Subnet.Masked() || bits < largestBits || bits > smallestBits {
		return netip.Prefix{}, fault.New(fault.Invalid,
			"cannot use the subnet %q in %s: want an IPv4 network such as 10.20.0.0/20, from /%d to /%d",
			s.Subnet, path, largestBits, smallestBits)
	}
	return s.Subnet, nil
}

// save records the subnet, durably and as a whole.
func (n *Network) save(subnet netip.Prefix) error {
	text, err := json.MarshalIndent(settings{Version: settingsVersion, Subnet: subnet}, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(filepath.Dir(n.config), 0o700); err != nil {
		return err
	}
	staged := n.config + ".new"
	f, err := os.OpenFile(staged, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		os.Remove(staged)
		return err
	}
	if err := os.Rename(staged, n.config); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(n.config))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
