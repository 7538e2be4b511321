package manager

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/instance/fault"
	"brig/storage"
)

// RecoverPool adopts a pool of another brig, of a lost host, or one that this brig has
// lost its own note of, and tells its record. Without a driver it is found out which
// one can use what is at the source; without a source it is the one on record, or what
// there is of this name in brig's own folder.
func (m *Manager) RecoverPool(ctx context.Context, r storage.Record) (storage.Record, error) {
	if err := checkPoolName(r.Name); err != nil {
		return r, err
	}
	known, err := m.cfg.Pools.Record(r.Name)
	if err == nil && r.Config["source"] == "" {
		r.Driver = known.Driver
		return known, m.AdoptPool(ctx, r)
	}
	if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
		return r, err
	}
	if r.Config["source"] == "" {
		source, err := m.ownSource(r.Name)
		if err != nil {
			return r, err
		}
		r.Config = map[string]string{"source": source}
	}
	drivers := []string{r.Driver}
	if r.Driver == "" {
		drivers = m.cfg.Pools.Drivers()
	}
	var refused []string
	for _, driver := range drivers {
		r.Driver = driver
		err := m.AdoptPool(ctx, r)
		if err == nil {
			return m.cfg.Pools.Record(r.Name)
		}
		if ctx.Err() != nil || len(drivers) == 1 || fault.Is(err, fault.AlreadyExists) {
			return r, err
		}
		refused = append(refused, fmt.Sprintf("as %s: %v", driver, err))
	}
	return r, fault.New(fault.NotFound, "cannot recover pool %q: no driver finds a pool of its own at %q (%s)", r.Name, r.Config["source"], strings.Join(refused, "; "))
}

// ownSource finds what there is of a pool in the folder of those that brig has made.
func (m *Manager) ownSource(name string) (string, error) {
	dir := filepath.Join(m.cfg.Dirs.State, "pools")
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("cannot recover pool %q: %w", name, err)
	}
	for _, e := range entries {
		if strings.TrimSuffix(e.Name(), filepath.Ext(e.Name())) == name || e.Name() == name {
			return filepath.Join(dir, e.Name()), nil
		}
	}
	return "", fault.New(fault.NotFound, "cannot recover pool %q: nothing of that name is in %q; say where it is, with --source", name, dir)
}
