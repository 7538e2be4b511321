package lvm

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Plan tells what Create makes where source says: a pool in a thin pool
// (VG/THINPOOL), in a volume group (VG), on a device or in a file.
func (d Driver) Plan(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config == nil {
		config = map[string]string{}
	}
	for key := range config {
		if key != keySource && key != keySize && key != keyVG && key != keyForce {
			return nil, fault.New(fault.Invalid, "there is no key %q for an lvm pool; the keys are %s, %s, %s and %s", key, keySource, keySize, keyVG, keyForce)
		}
	}
	if err := supported(); err != nil {
		return nil, err
	}
	p, err := d.find(ctx, r.Name, config)
	if err != nil {
		return nil, err
	}
	p.id = "brig" + pooldir.NewID()[:8]
	switch {
	case p.vg == "":
		p.vg = p.id
	case p.made == madeVG || p.made == madeFile:
		switch there, err := hasVG(ctx, p.vg); {
		case err != nil:
			return nil, err
		case there:
			return nil, fault.New(fault.AlreadyExists, "there is a volume group %q already: give another name with %s, or source=%s to use it", p.vg, keyVG, p.vg)
		}
	}
	if p.made != madeNothing {
		p.thin = p.id + "-thin"
	}
	p.note(config)
	return config, nil
}

func hasVG(ctx context.Context, vg string) (bool, error) {
	_, err := lvm(ctx, "vgs", "--noheadings", "-o", "vg_name", "--", vg)
	return err == nil, pooldir.IgnoreMissing(err)
}

// Create makes what was planned.
func (d Driver) Create(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config[keyID] == "" {
		var err error
		if config, err = d.Plan(ctx, r); err != nil {
			return nil, err
		}
	}
	p := placeOf(config)
	if err := d.make(ctx, r.Name, config, &p); err != nil {
		return nil, err
	}
	delete(config, keyForce)
	return config, nil
}

// Abandon removes what was made of a plan. All of it has the id of the plan in its
// name, or is in a volume group or file that was not there before.
func (d Driver) Abandon(ctx context.Context, r storage.Record) error {
	p := placeOf(r.Config)
	if p.made == madeVG {
		if there, err := hasVG(ctx, p.vg); !there || err != nil {
			return err
		}
	}
	if p.made == madeFile {
		if st, err := os.Lstat(p.file); errors.Is(err, fs.ErrNotExist) || err == nil && st.Size() == 0 {
			// A file without a size cannot be made a device.
			return pooldir.IgnoreMissing(os.Remove(p.file))
		}
	}
	return d.Destroy(ctx, r)
}
