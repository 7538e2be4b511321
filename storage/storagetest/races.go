package storagetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"

	"brig/instance/fault"
	"brig/storage"
)

// racers is how many goroutines run against each other, and fewRacers with
// -test.short.
const racers, fewRacers = 16, 4

// race calls f at once from many goroutines, each with a pool of its own as other
// programs would have, and gives their errors.
func race(t *testing.T, p *pool, f func(p *pool, i int) error) []error {
	t.Helper()
	racers := racers
	if p.driver.shortened(t) {
		racers = fewRacers
	}
	pools := make([]*pool, racers)
	for i := range pools {
		pools[i] = p.again(t)
	}
	errs := make([]error, racers)
	start := make(chan struct{})
	var wg sync.WaitGroup
	for i := range racers {
		wg.Go(func() {
			<-start
			errs[i] = f(pools[i], i)
		})
	}
	close(start)
	wg.Wait()
	return errs
}

// testRaces lets every operation run beside every other and beside Sweep.
func testRaces(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	base := p.create(t, image("base"), map[string]string{"a": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.write(t, web, map[string]string{"a": "web"})
	errs := race(t, p, func(p *pool, i int) error {
		name := fmt.Sprintf("c%d", i)
		// All clone one source with changes, which has to be frozen once.
		source := web.Key()
		if i%2 == 0 {
			source = base.Key()
		}
		v, err := p.Clone(ctx, storage.Source{Key: source}, instance(name), storage.CloneOptions{})
		if err != nil {
			return err
		}
		err = errors.Join(
			v.Snapshot(ctx, "one", storage.SnapshotOptions{}),
			v.Snapshot(ctx, "two", storage.SnapshotOptions{}),
			v.Restore(ctx, "one"),
			p.Sweep(ctx),
			v.DeleteSnapshot(ctx, "two"),
			p.Rename(ctx, instance(name), name+"-renamed"),
		)
		if i%4 == 0 {
			err = errors.Join(err, p.Delete(ctx, instance(name+"-renamed")))
		}
		_, lookErr := p.List(ctx, storage.Instances)
		return errors.Join(err, lookErr)
	})
	if err := errors.Join(errs...); err != nil {
		t.Errorf("operations side by side = %v", err)
	}
	p.holds(t, web, map[string]string{"a": "web"})
	for i := range errs {
		key := instance(fmt.Sprintf("c%d-renamed", i))
		if i%4 == 0 {
			_, err := p.Open(ctx, key)
			wants(t, "Open of a deleted volume", err, fault.NotFound)
			continue
		}
		want := "web"
		if i%2 == 0 {
			want = "base"
		}
		v := p.open(t, key)
		p.holds(t, v, map[string]string{"a": want})
		if got := names(t, v); !slices.Equal(got, []string{"one"}) {
			t.Errorf("Snapshots of %q = %q, want one", key, got)
		}
	}
	p.clear(t)
}

// testRacesForName lets many make, and many delete, the same volume.
func testRacesForName(t *testing.T, d Driver) {
	p := newPool(t, d)
	ctx := t.Context()
	exactlyOne := func(what string, errs []error, class fault.Class) {
		t.Helper()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else if !fault.Is(err, class) {
				t.Errorf("%s = %v, want %s", what, err, class)
			}
		}
		if won != 1 {
			t.Errorf("%s: %d succeeded, want 1", what, won)
		}
	}
	exactlyOne("Create", race(t, p, func(p *pool, i int) error {
		_, err := p.Create(ctx, image("base"), d.Content, func(dir *os.Root) error {
			return p.data.fill(dir, map[string]string{"a": "base"})
		})
		return err
	}), fault.AlreadyExists)
	p.holds(t, p.open(t, image("base")), map[string]string{"a": "base"})
	exactlyOne("Clone", race(t, p, func(p *pool, i int) error {
		_, err := p.Clone(ctx, storage.Source{Key: image("base")}, instance("web"), storage.CloneOptions{})
		return err
	}), fault.AlreadyExists)
	exactlyOne("Delete", race(t, p, func(p *pool, i int) error {
		return p.Delete(ctx, instance("web"))
	}), fault.NotFound)
	p.clear(t)
}

// testCancellation cancels before and in the middle of operations.
func testCancellation(t *testing.T, d Driver) {
	p := newPool(t, d)
	base := p.create(t, image("base"), map[string]string{"a": "base"})
	web := p.clone(t, storage.Source{Key: base.Key()}, instance("web"))
	p.write(t, web, map[string]string{"a": "web"})
	snapshot(t, web, "s")
	p.sweep(t)
	before := p.files(t)

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	nothing := func(*os.Root) error { return nil }
	for what, do := range map[string]func(ctx context.Context) error{
		"Info":      func(ctx context.Context) error { _, err := p.Info(ctx); return err },
		"List":      func(ctx context.Context) error { _, err := p.List(ctx, storage.Images); return err },
		"Open":      func(ctx context.Context) error { _, err := p.Open(ctx, base.Key()); return err },
		"Create":    func(ctx context.Context) error { _, err := p.Create(ctx, image("x"), d.Content, nothing); return err },
		"Snapshot":  func(ctx context.Context) error { return web.Snapshot(ctx, "x", storage.SnapshotOptions{}) },
		"Restore":   func(ctx context.Context) error { return web.Restore(ctx, "s") },
		"Rename":    func(ctx context.Context) error { return p.Rename(ctx, web.Key(), "x") },
		"Delete":    func(ctx context.Context) error { return p.Delete(ctx, web.Key()) },
		"Snapshots": func(ctx context.Context) error { _, err := web.Snapshots(ctx); return err },
		"Usage":     func(ctx context.Context) error { _, err := web.Usage(ctx); return err },
		"Clone": func(ctx context.Context) error {
			_, err := p.Clone(ctx, storage.Source{Key: web.Key()}, instance("x"), storage.CloneOptions{})
			return err
		},
	} {
		wants(t, what+" cancelled", do(cancelled), fault.Cancelled)
	}
	during, cancel := context.WithCancel(t.Context())
	_, err := p.Create(during, image("x"), d.Content, func(dir *os.Root) error {
		cancel()
		return p.data.fill(dir, map[string]string{"a": "x"})
	})
	wants(t, "Create cancelled while it is filled", err, fault.Cancelled)
	during, cancel = context.WithCancel(t.Context())
	_, err = p.Clone(during, storage.Source{Key: base.Key()}, instance("x"), storage.CloneOptions{Edit: func(*os.Root) error {
		cancel()
		return nil
	}})
	wants(t, "Clone cancelled while it is edited", err, fault.Cancelled)
	p.sweep(t)
	if diff := p.changed(t, before); diff != "" {
		t.Errorf("cancelled operations left %s", diff)
	}
	p.holds(t, web, map[string]string{"a": "web"})
	p.clear(t)
}
