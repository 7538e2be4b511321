package main

import (
	"context"
	"errors"
	"fmt"
)

// Files of the instance that is copied from pool to pool: 2 GB, of which a
// hundredth is changed.
const (
	transferFiles   = 2000
	transferChanged = transferFiles / 100
)

// transfers measures how long it takes to bring a copy in another pool up to date,
// beside making it.
func (b *bench) transfers(ctx context.Context) (rows []row, err error) {
	var made []string
	defer func() {
		for _, pool := range made {
			err = errors.Join(err, b.do(context.WithoutCancel(ctx), "storage", "delete", pool))
		}
	}()
	for _, pool := range [][]string{{"near", "btrfs", "size=8GiB"}, {"away", "btrfs", "size=8GiB"}, {"beside", "overlay", "source=" + b.path("beside")}} {
		if err := b.do(ctx, append([]string{"storage", "create"}, pool...)...); err != nil {
			return nil, err
		}
		made = append(made, pool[0])
	}
	for _, c := range []struct{ what, from, to string }{{"btrfs", "near", "away"}, {"overlay", "default", "beside"}} {
		m, err := b.transfer(ctx, c.from, c.to)
		if err != nil {
			return rows, err
		}
		rows = append(rows, row{
			fmt.Sprintf("copy --refresh to another pool (%s) of 2 GB with 1 %% changed", c.what),
			"ms", m[1], m[0], "`brig copy`", limit{times, 0.1},
		})
	}
	return rows, nil
}

func (b *bench) transfer(ctx context.Context, from, to string) ([]float64, error) {
	if err := b.do(ctx, "create", debianImage, "source", "-s", from); err != nil {
		return nil, err
	}
	if err := b.writeFiles(ctx, transferFiles); err != nil {
		return nil, err
	}
	if err := b.do(ctx, "copy", "source", "backup", "-s", to, "--refresh"); err != nil {
		return nil, err
	}
	m, err := b.byTurns(ctx, 1, b.slow(),
		func(ctx context.Context) (float64, error) {
			if err := b.calm(ctx); err != nil {
				return 0, err
			}
			took, err := b.timeBrig(ctx, "copy", "source", "whole", "-s", to)
			return took, errors.Join(err, b.do(ctx, "delete", "--now", "whole"))
		},
		func(ctx context.Context) (float64, error) {
			if err := errors.Join(b.writeFiles(ctx, transferChanged), b.calm(ctx)); err != nil {
				return 0, err
			}
			return b.timeBrig(ctx, "copy", "source", "backup", "--refresh")
		},
	)
	return m, errors.Join(err, b.do(ctx, "delete", "-f", "--now", "source", "backup"))
}

// writeFiles writes the first files of the source anew.
func (b *bench) writeFiles(ctx context.Context, count int) error {
	script := fmt.Sprintf("mkdir -p /srv/data; i=0; while [ $i -lt %d ]; do head -c 1000000 /dev/urandom >/srv/data/$i; i=$((i+1)); done; sync", count)
	for _, step := range [][]string{{"start", "source"}, {"exec", "source", "--", "sh", "-c", script}, {"stop", "-f", "source"}} {
		if err := b.do(ctx, step...); err != nil {
			return err
		}
	}
	return nil
}
