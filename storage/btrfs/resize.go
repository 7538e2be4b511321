package btrfs

import (
	"context"

	"brig/instance/fault"
	"brig/storage"
)

var _ storage.Resizer = (*Pool)(nil)

// Resize gives the pool's file, and the file system in it, another size; of a pool
// on a device, the file system alone. What is in the way of a smaller one is moved.
func (p *Pool) Resize(ctx context.Context, max int64) (err error) {
	defer storage.Fail(&err, "cannot resize pool %q", p.name)
	if p.medium == "" {
		return fault.New(fault.Unsupported, "it is in the folder %q of a file system that is not its own", p.dir)
	}
	return Medium{Source: p.medium, At: p.at}.Resize(ctx, max)
}
