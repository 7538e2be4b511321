// Package registry knows which pools a brig has: one small file for each, beside
// the default pool, which is there without one. It opens pools through the
// drivers it is given and names none of them.
package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/storage"
)

// Driver makes and opens the pools of one kind.
type Driver interface {
	// Plan gives a configuration for Create that tells all that it makes, so that
	// Abandon finds it. It refuses what cannot become a pool, and changes nothing.
	Plan(ctx context.Context, r storage.Record) (map[string]string, error)

	// Create makes the pool that was planned and gives its configuration as it
	// has to be kept. After an error nothing was changed.
	Create(ctx context.Context, plan storage.Record) (map[string]string, error)

	// Abandon removes what a Create of this plan has made, wherever it stopped, also
	// if it never began. What was there before stays, and so does what is another's.
	Abandon(ctx context.Context, plan storage.Record) error

	// Open opens a pool that Create made, in this boot or an earlier one.
	Open(ctx context.Context, r storage.Record) (storage.Pool, error)

	// Destroy removes what Create made. What was there before stays. It can be
	// repeated wherever it stopped.
	Destroy(ctx context.Context, r storage.Record) error
}

// Adopter is a Driver that can use a pool that another brig made, or this one
// before it forgot it.
type Adopter interface {
	// Adopt gives the configuration of the pool that is at r's source, as Create
	// does. It changes nothing in it.
	Adopt(ctx context.Context, r storage.Record) (map[string]string, error)
}

// Releaser is a Driver that has to let go of a pool which stays as it is.
type Releaser interface {
	Release(ctx context.Context, r storage.Record) error
}

// Options are what a Registry works with.
type Options struct {
	Dir     string // of the files
	Default storage.Record
	Drivers map[string]Driver

	// Owner tells who we are, for the notes in pools of whose they are. Nil: no
	// notes are read or made.
	Owner func() (storage.Owner, error)
}

// Registry is the set of pools. It is safe for concurrent use, and remembers the
// pools it has opened.
type Registry struct {
	options Options

	mu   sync.Mutex
	open map[string]storage.Pool // guarded by mu
}

// New makes the registry of the pools in a folder, which need not exist.
func New(o Options) *Registry {
	return &Registry{options: o, open: map[string]storage.Pool{}}
}

// Names lists the pools, the default one first.
func (r *Registry) Names() ([]string, error) {
	names := []string{r.options.Default.Name}
	entries, err := os.ReadDir(r.options.Dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot list the pools: %w", err)
	}
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".json"); ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names, nil
}

// Drivers lists the drivers, sorted.
func (r *Registry) Drivers() []string { return slices.Sorted(maps.Keys(r.options.Drivers)) }

// Record tells how a pool was made.
func (r *Registry) Record(name string) (storage.Record, error) {
	if name == r.options.Default.Name {
		return r.defaultRecord(), nil
	}
	missing := fault.New(fault.NotFound, "cannot find a pool named %q: see brig storage list", name)
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return storage.Record{}, missing
	}
	data, err := os.ReadFile(r.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return storage.Record{}, missing
	}
	if err != nil {
		return storage.Record{}, fmt.Errorf("cannot read about pool %q: %w", name, err)
	}
	var record storage.Record
	if err := json.Unmarshal(data, &record); err != nil {
		return storage.Record{}, fault.New(fault.Unavailable, "cannot read about pool %q: %s is damaged: %v", name, r.path(name), err)
	}
	record.Name = name
	return record, nil
}

// Open gives a pool.
func (r *Registry) Open(ctx context.Context, name string) (storage.Pool, error) {
	r.mu.Lock()
	pool := r.open[name]
	r.mu.Unlock()
	if pool != nil {
		return pool, nil
	}
	record, err := r.Record(name)
	if err != nil {
		return nil, err
	}
	driver, err := r.driver(record)
	if err != nil {
		return nil, err
	}
	if pool, err = driver.Open(ctx, record); err != nil {
		return nil, fmt.Errorf("cannot use pool %q: %w", name, err)
	}
	if err := r.check(ctx, record, pool); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot use pool %q: %w", name, err), shut(pool))
	}
	if record.New {
		// From now on it has to be there. Where this cannot be written, it is written
		// another time.
		if err := r.write(record); err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EROFS) {
			return nil, errors.Join(fmt.Errorf("cannot use pool %q: %w", name, err), shut(pool))
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if first := r.open[name]; first != nil {
		return first, nil
	}
	r.open[name] = pool
	return pool, nil
}

// Plan gives the record of a pool with all that Create and Abandon need to know.
func (r *Registry) Plan(ctx context.Context, record storage.Record) (storage.Record, error) {
	driver, err := r.driver(record)
	if err == nil {
		record.Config, err = driver.Plan(ctx, record)
	}
	if err != nil {
		return storage.Record{}, fmt.Errorf("cannot create pool %q: %w", record.Name, err)
	}
	return record, nil
}

// Abandon removes what is there of a pool that was planned. It can be repeated.
func (r *Registry) Abandon(ctx context.Context, plan storage.Record) error {
	driver, err := r.driver(plan)
	if err != nil {
		return err
	}
	switch known, err := r.Record(plan.Name); {
	case err == nil && known.CreatedAt.Equal(plan.CreatedAt):
		return r.Delete(ctx, plan.Name) // it was complete
	case !fault.Is(err, fault.NotFound):
		return err // it is another
	}
	if err := driver.Abandon(ctx, plan); err != nil {
		return fmt.Errorf("cannot take back what was made of pool %q: %w", plan.Name, err)
	}
	return nil
}

// Create makes a pool that was planned. The caller sees to it that nobody makes the
// same one now, and that there is none of its name.
func (r *Registry) Create(ctx context.Context, record storage.Record) error {
	driver, err := r.driver(record)
	if err != nil {
		return err
	}
	config, err := driver.Create(ctx, record)
	if err != nil {
		return fmt.Errorf("cannot create pool %q: %w", record.Name, err)
	}
	record.Config = config
	pool, err := driver.Open(ctx, record)
	if err != nil {
		return errors.Join(fmt.Errorf("cannot create pool %q: %w", record.Name, err), driver.Destroy(context.WithoutCancel(ctx), record))
	}
	if err := errors.Join(r.check(ctx, record, pool), shut(pool)); err != nil {
		// It was there, and is another's: nothing of it is to be destroyed.
		return fmt.Errorf("cannot create pool %q: %w", record.Name, err)
	}
	if err := r.write(record); err != nil {
		return errors.Join(fmt.Errorf("cannot create pool %q: %w", record.Name, err), driver.Destroy(context.WithoutCancel(ctx), record))
	}
	return nil
}

// Update replaces what is noted about a pool.
func (r *Registry) Update(record storage.Record) error {
	if err := r.write(record); err != nil {
		return fmt.Errorf("cannot note the configuration of pool %q: %w", record.Name, err)
	}
	return nil
}

// Delete destroys what Create made and forgets the pool. It can be repeated
// after an error.
func (r *Registry) Delete(ctx context.Context, name string) error {
	record, err := r.Record(name)
	if err != nil {
		return err
	}
	driver, err := r.driver(record)
	if err != nil {
		return err
	}
	if err := r.close(name); err != nil {
		return fmt.Errorf("cannot delete pool %q: %w", name, err)
	}
	if err := driver.Destroy(ctx, record); err != nil {
		return fmt.Errorf("cannot delete pool %q: %w", name, err)
	}
	if err := r.remove(name); err != nil {
		return fmt.Errorf("cannot delete pool %q: %w", name, err)
	}
	return nil
}

// remove removes the file of a pool, durably.
func (r *Registry) remove(name string) error {
	if err := os.Remove(r.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.sync()
}

// close lets go of a pool: what it holds open keeps its file system in use.
func (r *Registry) close(name string) error {
	r.mu.Lock()
	pool := r.open[name]
	delete(r.open, name)
	r.mu.Unlock()
	return shut(pool)
}

func shut(pool storage.Pool) error {
	if c, ok := pool.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (r *Registry) driver(record storage.Record) (Driver, error) {
	driver, ok := r.options.Drivers[record.Driver]
	if !ok {
		return nil, fault.New(fault.Unsupported, "cannot use pool %q: there is no driver %q; the drivers are %s", record.Name, record.Driver, strings.Join(r.Drivers(), ", "))
	}
	return driver, nil
}

func (r *Registry) path(name string) string { return filepath.Join(r.options.Dir, name+".json") }

// write keeps a record, durably.
func (r *Registry) write(record storage.Record) error {
	data, err := json.MarshalIndent(record, "", "  ")
	if err != nil {
		return err
	}
	if err := durable.MkdirAll(r.options.Dir, 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(r.options.Dir, ".new-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(append(data, '\n'))
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), r.path(record.Name)); err != nil {
		return err
	}
	return r.sync()
}

// sync makes the names of the files durable.
func (r *Registry) sync() error {
	dir, err := os.Open(r.options.Dir)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
