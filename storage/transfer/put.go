package transfer

import (
	"context"

	"brig/storage"
)

// Put makes what a volume holds the same as what another holds, which nobody uses
// either, and proves it. What is the same already is not written. Snapshots and
// metadata files stay. Dir is as in Request.
func Put(ctx context.Context, from, to storage.Volume, dir string) (err error) {
	defer func() { err = classified(err) }()
	a, err := root(ctx, from, "")
	if err != nil {
		return err
	}
	b, err := root(ctx, to, "")
	if err != nil {
		return err
	}
	if err := fit(ctx, to, a); err != nil {
		return err
	}
	c := contents(from, dir, true)
	if err := c.apply(ctx, nil, a, b); err != nil {
		return err
	}
	return c.prove(ctx, a, b)
}
