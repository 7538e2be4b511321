package zfs

import (
	"cmp"
	"context"
	"strings"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/owner"
)

var _ storage.Owned = (*Pool)(nil)

// Owner tells whose pool it is.
func (p *Pool) Owner(ctx context.Context) (_ storage.Owner, err error) {
	defer storage.Fail(&err, "cannot use pool %q", p.name)
	if err := ctx.Err(); err != nil {
		return storage.Owner{}, err
	}
	return owner.Read(p.root.Root)
}

// SetOwner notes whose pool it is.
func (p *Pool) SetOwner(ctx context.Context, o storage.Owner) (err error) {
	defer storage.Fail(&err, "cannot take over pool %q", p.name)
	return cmp.Or(ctx.Err(), owner.Write(p.root.Root, o))
}

// Adopt gives the configuration of the pool that is in the dataset source, or in the
// dataset for it of the zpool source, which this host has imported.
func (d Driver) Adopt(ctx context.Context, r storage.Record) (_ map[string]string, err error) {
	source := r.Config[keySource]
	if source == "" || strings.HasPrefix(source, "/") {
		return nil, fault.New(fault.Invalid, "to adopt a zfs pool takes its dataset: import its zpool, and give source=ZPOOL/DATASET")
	}
	dataset := source
	if !strings.Contains(dataset, "/") {
		dataset += "/" + childOfZpool
	}
	defer storage.Fail(&err, "cannot adopt the pool in dataset %q", dataset)
	isPool, err := look(ctx, dataset)
	if err != nil {
		return nil, err
	}
	if !isPool {
		return nil, fault.New(fault.WrongState, "there is no pool in it")
	}
	return d.Create(ctx, storage.Record{Name: r.Name, Driver: r.Driver, Config: map[string]string{keySource: source}})
}
