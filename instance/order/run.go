package order

import (
	"context"
	"sync"

	"brig/instance/fault"
)

// Runner carries out a plan.
type Runner struct {
	Limit int // how many at a time

	// Do does one.
	Do func(ctx context.Context, name string) error

	// Settle returns when what comes after one that was done may begin. Any number
	// of them wait at a time. It may be nil.
	Settle func(ctx context.Context, name string) error

	// Done hears of each how it went, one call at a time. The refused are among them.
	Done func(name string, err error)

	// Regardless does what depends on one that failed nevertheless.
	Regardless bool
}

// Run does all of p: wave by wave, and in each wave side by side but for what waits
// for another. One that fails stops only those that depend on it. It returns when
// all are done, or, once ctx has ended, when those under way are.
func (r Runner) Run(ctx context.Context, p Plan) {
	var mu sync.Mutex // guards failed and calls of Done
	failed := map[string]bool{}
	told := func(name string, err error) {
		mu.Lock()
		defer mu.Unlock()
		failed[name] = err != nil
		r.Done(name, err)
	}
	for name, why := range p.Refused {
		told(name, why)
	}
	finished := map[string]chan struct{}{}
	for _, wave := range p.Waves {
		for _, name := range wave {
			finished[name] = make(chan struct{})
		}
	}
	slots := make(chan struct{}, max(r.Limit, 1))
	do := func(name string) error {
		slots <- struct{}{}
		defer func() { <-slots }()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.Do(ctx, name)
	}
	one := func(name string) error {
		for _, before := range p.After[name] {
			<-finished[before]
			mu.Lock()
			bad := failed[before]
			mu.Unlock()
			if bad && !r.Regardless {
				return fault.New(fault.WrongState, "cannot start %q: it depends on %q, which did not start", name, before)
			}
		}
		err := do(name)
		if err == nil && r.Settle != nil {
			err = r.Settle(ctx, name)
		}
		return err
	}
	for _, wave := range p.Waves {
		var wg sync.WaitGroup
		for _, name := range wave {
			wg.Go(func() {
				defer close(finished[name])
				told(name, one(name))
			})
		}
		wg.Wait()
	}
}
