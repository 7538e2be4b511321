package manager

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/instance"
	"brig/storage"
)

// sweepOrphans drops what is kept on this host for instances that are not there any
// more: addresses, logs and what their schedules remember. That is left when an
// instance was deleted that could not be read, or its pool was forgotten. Unless every
// instance can be asked who it is, and no operation is under way, nothing is dropped.
func (m *Manager) sweepOrphans(ctx context.Context) error {
	// First what there is, and then whose it can be: who comes meanwhile is not in it.
	kept := m.keptFor()
	if len(kept) == 0 {
		return nil
	}
	if under, err := m.intents.List(); err != nil || len(under) > 0 {
		return nil
	}
	known, ok := m.everyID(ctx)
	if !ok {
		return nil
	}
	var errs []error
	for path, id := range kept {
		if !known[id] {
			errs = append(errs, os.RemoveAll(path))
		}
	}
	return errors.Join(errs...)
}

// keptFor gives what is kept for instances, with their ids. What belongs to a machine
// that was started stays until that is cleaned up.
func (m *Manager) keptFor() map[string]string {
	kept := map[string]string{}
	addresses, _ := os.ReadDir(m.addressDir())
	for _, e := range addresses {
		path := filepath.Join(m.addressDir(), e.Name())
		if text, err := os.ReadFile(path); err == nil {
			if id, _ := claimant(string(text)); len(id) == 16 {
				kept[path] = id
			}
		}
	}
	for _, dir := range []string{filepath.Dir(m.cfg.Dirs.RunOf("x")), filepath.Dir(m.cfg.Dirs.LogOf("x")), filepath.Dir(m.memoryPath("x"))} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			if id, _, _ := strings.Cut(e.Name(), "."); len(id) == 16 {
				kept[filepath.Join(dir, e.Name())] = id
			}
		}
	}
	for path, id := range kept {
		if _, err := os.Lstat(filepath.Join(m.cfg.Dirs.RunOf(id), instance.MachineFile)); err == nil {
			delete(kept, path)
		}
	}
	return kept
}

// addVolumeIDs adds the ids of the custom volumes in a pool.
func (m *Manager) addVolumeIDs(ctx context.Context, in string, pool storage.Pool, ids map[string]bool) bool {
	there, trash, err := namesIn(ctx, pool, storage.Custom)
	if err != nil {
		return false
	}
	for _, name := range trash {
		_, id, _ := strings.Cut(name, trashMark)
		ids[id] = true
	}
	for _, name := range slices.DeleteFunc(there, halfDone) {
		c, err := m.openVolume(ctx, volumeRef{in, name})
		if err != nil {
			return false
		}
		ids[c.info.ID] = true
	}
	return true
}

// everyID gives the ids of all instances and custom volumes, those in the trash and
// those that are being made included. It is not ok if there is one that cannot be read, unless that is in
// the trash, where it has its id in its name.
func (m *Manager) everyID(ctx context.Context) (ids map[string]bool, ok bool) {
	pools, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, false
	}
	ids = map[string]bool{}
	for _, in := range pools {
		pool, err := m.pool(ctx, in)
		if err != nil {
			return nil, false
		}
		if !m.addVolumeIDs(ctx, in, pool, ids) {
			return nil, false
		}
		names, err := pool.List(ctx, storage.Instances)
		if err != nil {
			return nil, false
		}
		for _, name := range names {
			if _, id, trashed := strings.Cut(name, trashMark); trashed {
				ids[id] = true
				continue
			}
			volume, err := pool.Open(ctx, instanceKey(name))
			if err != nil {
				return nil, false
			}
			spec, err := readSpec(volume, name)
			if err != nil {
				return nil, false
			}
			ids[spec.ID] = true
		}
	}
	return ids, true
}
