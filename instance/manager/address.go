package manager

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"brig/instance"
	"brig/instance/durable"
	"brig/instance/store"
)

// The addresses of instances are claimed by files named after them, so that a
// free one is found without reading every instance. The file holds the id of
// the instance, and with a slash before it the device that has the address, if
// that is another than the first network card.

func (m *Manager) addressDir() string { return filepath.Join(m.cfg.Dirs.State, "addresses") }

// withAddress gives spec an address that is free and calls do, which claims it.
// Nobody else is given it until do has returned.
func (m *Manager) withAddress(ctx context.Context, spec *instance.Spec, none bool, do func() error) error {
	if none {
		spec.MAC, spec.Address = "", netip.Prefix{}
		return do()
	}
	lease, err := m.cfg.Network.Allocate(ctx, spec.ID, m.claimed)
	if err != nil {
		return err
	}
	defer lease.Close()
	spec.MAC, spec.Address = lease.MAC, lease.Address
	return do()
}

// withOldAddress gives spec the address that it has, if that is still free, or
// another, and calls do as withAddress does.
func (m *Manager) withOldAddress(ctx context.Context, spec *instance.Spec, do func() error) error {
	if !spec.Address.IsValid() {
		return do()
	}
	lease, err := m.cfg.Network.Reallocate(ctx, spec.ID, spec.Address, m.claimed)
	if err != nil {
		return err
	}
	defer lease.Close()
	spec.MAC, spec.Address = lease.MAC, lease.Address
	return do()
}

// claimed lists the addresses of all instances.
func (m *Manager) claimed() ([]netip.Addr, error) {
	dir, err := os.Open(m.addressDir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the addresses of instances: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("cannot read the addresses of instances: %w", err)
	}
	list := make([]netip.Addr, 0, len(names))
	for _, name := range names {
		if addr, err := netip.ParseAddr(name); err == nil {
			list = append(list, addr)
		}
	}
	return list, nil
}

func (m *Manager) claimAddress(spec *instance.Spec) error {
	if !spec.Address.IsValid() {
		return nil
	}
	return m.claim(spec.Address.Addr(), spec.ID)
}

// claim writes down whose an address is.
func (m *Manager) claim(address netip.Addr, whose string) error {
	if err := durable.MkdirAll(m.addressDir(), 0o700); err != nil {
		return fmt.Errorf("cannot claim an address: %w", err)
	}
	root, err := os.OpenRoot(m.addressDir())
	if err != nil {
		return fmt.Errorf("cannot claim an address: %w", err)
	}
	defer root.Close()
	return store.WriteFile(root, address.String(), []byte(whose))
}

// claims tells whether an instance has claimed the address that it has.
func (m *Manager) claims(spec *instance.Spec) bool {
	owner, err := os.ReadFile(filepath.Join(m.addressDir(), spec.Address.Addr().String()))
	return err == nil && string(owner) == spec.ID
}

// releaseAddress gives the addresses of an instance back, those that are still the
// instance's own.
func (m *Manager) releaseAddress(spec *instance.Spec) error {
	var err error
	if spec.Address.IsValid() {
		err = m.giveBack(spec.Address.Addr(), spec.ID)
	}
	if len(moreNICs(spec)) > 0 {
		more, e := m.claimedFor(spec.ID)
		err = errors.Join(err, e)
		for _, a := range more {
			err = errors.Join(err, m.giveBack(a, spec.ID))
		}
	}
	return err
}

// giveBack gives an address back if it is that of an instance.
func (m *Manager) giveBack(address netip.Addr, id string) error {
	if owner, _ := m.claimantOf(address); owner != id {
		return nil
	}
	err := os.Remove(filepath.Join(m.addressDir(), address.String()))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot give an address back: %w", err)
	}
	return nil
}

// claimant takes apart what the file of a claim says.
func claimant(text string) (id, device string) {
	id, device, _ = strings.Cut(text, "/")
	return id, device
}

// claimantOf gives the instance and the device that an address is claimed for, if it is.
func (m *Manager) claimantOf(address netip.Addr) (id, device string) {
	text, err := os.ReadFile(filepath.Join(m.addressDir(), address.String()))
	if err != nil {
		return "", ""
	}
	return claimant(string(text))
}

// claimedFor gives the addresses that the devices of an instance have claimed besides
// its first card.
func (m *Manager) claimedFor(id string) (map[string]netip.Addr, error) {
	all, err := m.claimed()
	of := map[string]netip.Addr{}
	for _, a := range all {
		if owner, device := m.claimantOf(a); owner == id && device != "" {
			of[device] = a
		}
	}
	return of, err
}
