package manager

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"brig/instance"
	"brig/instance/store"
)

// The addresses of instances are claimed by files named after them, so that a
// free one is found without reading every instance. The file holds the id of
// the instance.

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
	if err := os.MkdirAll(m.addressDir(), 0o700); err != nil {
		return fmt.Errorf("cannot claim an address: %w", err)
	}
	root, err := os.OpenRoot(m.addressDir())
	if err != nil {
		return fmt.Errorf("cannot claim an address: %w", err)
	}
	defer root.Close()
	return store.WriteFile(root, spec.Address.Addr().String(), []byte(spec.ID))
}

// claims tells whether an instance has claimed the address that it has.
func (m *Manager) claims(spec *instance.Spec) bool {
	owner, err := os.ReadFile(filepath.Join(m.addressDir(), spec.Address.Addr().String()))
	return err == nil && string(owner) == spec.ID
}

// releaseAddress gives the address of an instance back, if it is still the
// instance's own.
func (m *Manager) releaseAddress(spec *instance.Spec) error {
	if !spec.Address.IsValid() {
		return nil
	}
	path := filepath.Join(m.addressDir(), spec.Address.Addr().String())
	owner, err := os.ReadFile(path)
	if err == nil && string(owner) == spec.ID {
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot give an address back: %w", err)
	}
	return nil
}
