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
	if entries, err := os.ReadDir(source); err == nil && len(entries) > 0 {
		return nil, fault.New(fault.WrongState, "the folder %q is not empty", source)
	}
	p, err := Open(source, Options{Name: r.Name})
	if err != nil {
		return nil, err
	}
	config["source"] = source
	return config, p.root.Close()
}

// Open opens a pool.
func (Driver) Open(_ context.Context, r storage.Record) (storage.Pool, error) {
	return Open(r.Config["source"], Options{Name: r.Name})
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
