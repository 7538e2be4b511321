package btrfs

import (
	"cmp"
	"context"

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
