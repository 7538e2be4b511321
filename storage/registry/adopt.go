package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"brig/instance/fault"
	"brig/storage"
)

// defaultRecord tells about the default pool. Once it was opened, there is a file
// about it as about the others, and it has to be there.
func (r *Registry) defaultRecord() storage.Record {
	record := r.options.Default
	data, err := os.ReadFile(r.path(record.Name))
	var noted storage.Record
	if err != nil || json.Unmarshal(data, &noted) != nil {
		record.New = errors.Is(err, os.ErrNotExist)
		return record
	}
	record.Description, record.CreatedAt = noted.Description, noted.CreatedAt
	return record
}

// check refuses a pool that another brig uses. One that is nobody's is ours from
// now on.
func (r *Registry) check(ctx context.Context, record storage.Record, pool storage.Pool) error {
	owned, ok := pool.(storage.Owned)
	if !ok || r.options.Owner == nil {
		return nil
	}
	is, err := owned.Owner(ctx)
	if err != nil {
		return err
	}
	we, err := r.options.Owner()
	if fault.Is(err, fault.Exhausted) || fault.Is(err, fault.Unavailable) {
		return nil // it has no name yet, and nowhere to write one
	}
	if err != nil {
		return err
	}
	we.Pool = record.Name
	switch {
	case is.ID == "":
		err := owned.SetOwner(ctx, we)
		if fault.Is(err, fault.Exhausted) || fault.Is(err, fault.Unavailable) {
			return nil // another time: it is full, or cannot be written
		}
		return err
	case is.ID != we.ID:
		return fault.New(fault.WrongState, "it is the pool %q of the brig in %q on host %q; when that does not use it any more, adopt it with brig storage create %s %s --adopt", is.Pool, is.Dir, is.Host, record.Name, record.Driver)
	case is.Pool != record.Name:
		return fault.New(fault.WrongState, "what is there is the pool %q: is another disk mounted in its place?", is.Pool)
	}
	return nil
}

// Adopt makes the pool at a source ours, whoever used it before. Fits is asked first
// whether what is in it can be used; nil: anything can. It can be repeated.
func (r *Registry) Adopt(ctx context.Context, record storage.Record, fits func(storage.Pool) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot adopt pool %q: %w", record.Name, err)
		}
	}()
	driver, err := r.driver(record)
	if err != nil {
		return err
	}
	adopter, ok := driver.(Adopter)
	if !ok {
		return fault.New(fault.Unsupported, "the driver %s adopts no pools", record.Driver)
	}
	if record.Config, err = adopter.Adopt(ctx, record); err != nil {
		return err
	}
	if err := r.take(ctx, driver, record, fits); err != nil {
		if known, e := r.Record(record.Name); e == nil && !known.New {
			return err
		}
		return errors.Join(err, release(context.WithoutCancel(ctx), driver, record))
	}
	return r.write(record)
}

// take notes in a pool that it is ours.
func (r *Registry) take(ctx context.Context, driver Driver, record storage.Record, fits func(storage.Pool) error) error {
	record.New = false
	pool, err := driver.Open(ctx, record)
	if err != nil {
		return err
	}
	defer shut(pool)
	if fits != nil {
		if err := fits(pool); err != nil {
			return err
		}
	}
	owned, ok := pool.(storage.Owned)
	if !ok || r.options.Owner == nil {
		return nil
	}
	we, err := r.options.Owner()
	if err != nil {
		return err
	}
	we.Pool = record.Name
	return owned.SetOwner(ctx, we)
}

// Forget lets go of a pool and leaves all that is in it, so that it can be adopted.
// It can be repeated after an error.
func (r *Registry) Forget(ctx context.Context, name string) error {
	record, err := r.Record(name)
	if err != nil {
		return err
	}
	err = r.close(name)
	if driver, ok := r.options.Drivers[record.Driver]; ok && err == nil {
		err = release(ctx, driver, record)
	}
	if err == nil {
		err = r.remove(name)
	}
	if err != nil {
		return fmt.Errorf("cannot forget pool %q: %w", name, err)
	}
	return nil
}

func release(ctx context.Context, driver Driver, record storage.Record) error {
	if d, ok := driver.(Releaser); ok {
		return d.Release(ctx, record)
	}
	return nil
}
