package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
)

// running is how many of the instances that are listed run.
const running = 20

// list measures list with many stopped and some running instances.
func (b *bench) list(ctx context.Context) (rows []row, err error) {
	var listed []string
	defer func() {
		ctx := context.WithoutCancel(ctx)
		if len(listed) > 0 {
			err = errors.Join(err, b.do(ctx, append([]string{"delete", "-f"}, listed...)...), b.do(ctx, "sweep"))
		}
	}()
	for i := range running {
		name := fmt.Sprintf("running%02d", i)
		listed = append(listed, name)
		if err := b.do(ctx, "launch", idleImage, name); err != nil {
			return nil, err
		}
	}
	for i := range b.many {
		listed = append(listed, fmt.Sprintf("stopped%04d", i))
	}
	if err := b.create(ctx, listed[running:]); err != nil {
		return nil, err
	}
	m, err := b.byTurns(ctx, 5, b.rounds,
		func(ctx context.Context) (float64, error) { return b.timeBrig(ctx, "list") },
		func(ctx context.Context) (float64, error) { return b.timeBrig(ctx, "list", "-f", "csv", "-c", "n") },
	)
	if err != nil {
		return nil, err
	}
	what := fmt.Sprintf("list with %d stopped and %d running instances", b.many, running)
	return []row{{what, "ms", m[0], m[1], "names only", limit{most, 60}}}, nil
}

// create creates stopped instances.
func (b *bench) create(ctx context.Context, names []string) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	work := make(chan string)
	var workers sync.WaitGroup
	for range runtime.NumCPU() {
		workers.Go(func() {
			for name := range work {
				cmd := b.command(ctx, "create", debianImage, name)
				if out, err := cmd.CombinedOutput(); err != nil {
					cancel(fmt.Errorf("cannot create %q: %w: %s", name, err, out))
				}
			}
		})
	}
	for _, name := range names {
		if ctx.Err() != nil {
			break
		}
		work <- name
	}
	close(work)
	workers.Wait()
	return context.Cause(ctx)
}
