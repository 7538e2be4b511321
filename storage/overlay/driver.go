package overlay

import (
	"context"
	"errors"
	"maps"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// Driver makes and opens pools in folders.
type Driver struct{}

// Create makes a pool in the folder that the key source names: one that is
// empty or missing.
func (Driver) Create(_ context.Context, r storage.Record) (map[string]string, error) {
	config, err := settings(r)
	if err != nil {
		return nil, err
	}
	source := config["source"]
	if entries, err := os.ReadDir(source); err == nil && len(entries) > 0 {
		if _, err := os.Lstat(filepath.Join(source, poolFile)); err == nil {
			return nil, fault.New(fault.AlreadyExists, "there is a pool in the folder %q already; adopt it with --adopt, or give another folder", source)
		}
		return nil, fault.New(fault.WrongState, "the folder %q is not empty", source)
	}
	p, err := Open(source, Options{Name: r.Name})
	if err != nil {
		return nil, err
	}
	return config, p.root.Close()
}

// Adopt gives the configuration of the pool that is in the folder source.
func (Driver) Adopt(_ context.Context, r storage.Record) (map[string]string, error) {
	return settings(r)
}

// settings checks and completes the configuration of a pool.
func settings(r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	source := config["source"]
	if source == "" {
		return nil, fault.New(fault.Invalid, "an overlay pool needs a folder: give source=/path")
	}
	for key := range config {
		if key != "source" {
			return nil, fault.New(fault.Invalid, "there is no key %q for an overlay pool; the key is source", key)
		}
	}
	source, err := filepath.Abs(source)
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot use the folder %q: %w", source, err)
	}
	config["source"] = source
	return config, nil
}

// Open opens a pool.
func (Driver) Open(_ context.Context, r storage.Record) (storage.Pool, error) {
	p, err := Open(r.Config["source"], Options{Name: r.Name, Existing: !r.New})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Destroy removes the folder of a pool with all that is in it.
func (Driver) Destroy(ctx context.Context, r storage.Record) error {
	// A sweep that is under way makes and removes folders meanwhile.
	for {
		err := os.RemoveAll(r.Config["source"])
		if err == nil || !errors.Is(err, unix.ENOTEMPTY) || ctx.Err() != nil {
			return err
		}
	}
}
