package overlay

import (
	"context"
	"maps"
	"path/filepath"
	"strconv"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Driver makes and opens pools in folders.
type Driver struct{}

// keyMissing tells in a plan that the folder was not there before.
const keyMissing = "volatile.missing"

// Plan tells what Create makes: a pool in the folder that the key source names,
// which is empty or missing.
func (Driver) Plan(_ context.Context, r storage.Record) (map[string]string, error) {
	config, err := settings(r)
	if err != nil {
		return nil, err
	}
	source, missing, err := pooldir.CheckFolder(config["source"], poolFile)
	if err != nil {
		return nil, err
	}
	config["source"], config[keyMissing] = source, strconv.FormatBool(missing)
	return config, nil
}

// Create makes what was planned.
func (d Driver) Create(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config[keyMissing] == "" {
		var err error
		if config, err = d.Plan(ctx, r); err != nil {
			return nil, err
		}
	}
	p, err := Open(config["source"], Options{Name: r.Name})
	if err != nil {
		return nil, err
	}
	delete(config, keyMissing)
	return config, p.root.Close()
}

// Abandon removes what was made of a plan.
func (Driver) Abandon(_ context.Context, r storage.Record) error {
	return pooldir.AbandonFolder(r.Config["source"], r.Config[keyMissing] == "true", parts(), isPoolFile)
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
	return pooldir.RemoveFolder(ctx, r.Config["source"], poolFile)
}
