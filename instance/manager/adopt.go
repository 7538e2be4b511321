package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"brig/images"
	"brig/instance/fault"
	amount "brig/instance/size"
	"brig/instance/store"
	"brig/storage"
)

// adoptArgs are all that is needed to adopt a pool, or to let go of it again.
type adoptArgs struct {
	Record storage.Record
	Known  bool // it was ours before, and stays on record
}

// AdoptPool makes a pool that another brig made, or this one before it forgot it,
// one of this brig, with the instances and images in it. That a pool is taken over
// from a brig that still runs nobody can tell but who says so.
func (m *Manager) AdoptPool(ctx context.Context, r storage.Record) error {
	if err := checkPoolName(r.Name); err != nil {
		return err
	}
	held, err := m.lock(ctx, "adopt", "pool:"+r.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	a := adoptArgs{Record: r}
	known, err := m.cfg.Pools.Record(r.Name)
	switch {
	case fault.Is(err, fault.NotFound):
		a.Record.CreatedAt = now()
	case err != nil:
		return err
	case known.Driver != r.Driver || r.Config["source"] != "" && r.Config["source"] != known.Config["source"]:
		return fault.New(fault.AlreadyExists, "cannot adopt pool %q: there is another pool of this name; give it another name", r.Name)
	default:
		a.Known, a.Record = true, known
		a.Record.Config = map[string]string{"source": known.Config["source"]}
	}
	return m.perform(ctx, "adopt", []string{"pool:" + r.Name}, a)
}

func (m *Manager) adoptOperation(a adoptArgs) *operation {
	return &operation{steps: []step{
		{
			name: "pool",
			do: func(ctx context.Context) error {
				return m.cfg.Pools.Adopt(ctx, a.Record, func(pool storage.Pool) error { return m.noNamesakes(ctx, a.Record.Name, pool) })
			},
			undo: func(ctx context.Context) error {
				if _, err := m.cfg.Pools.Record(a.Record.Name); a.Known || fault.Is(err, fault.NotFound) {
					return nil
				}
				return m.cfg.Pools.Forget(ctx, a.Record.Name)
			},
		},
		{name: "images", do: func(ctx context.Context) error { return m.adoptImages(ctx, a.Record.Name) }},
		{name: "addresses", do: func(ctx context.Context) error { return m.adoptAddresses(ctx, a.Record.Name) }},
	}}
}

// noNamesakes refuses a pool with instances that others are called like, or are
// the same as: one cannot be in two pools.
func (m *Manager) noNamesakes(ctx context.Context, name string, pool storage.Pool) error {
	theirs, _, err := volumesIn(ctx, pool)
	if err != nil {
		return err
	}
	views, err := m.List(ctx)
	if err != nil {
		return err
	}
	views = slices.DeleteFunc(views, func(v View) bool { return v.Pool == name })
	for _, their := range theirs {
		var id string
		if volume, err := pool.Open(ctx, instanceKey(their)); err == nil {
			if spec, err := readSpec(volume, their); err == nil {
				id = spec.ID
			}
		}
		for _, v := range views {
			switch {
			case v.Spec.Name == their:
				return fault.New(fault.AlreadyExists, "there is an instance named %q in it and another in pool %q; rename that one first, with brig rename %s NEWNAME", their, v.Pool, their)
			case id != "" && v.Spec.ID == id:
				return fault.New(fault.AlreadyExists, "its instance %q is the same as %q in pool %q: it is a copy of that pool", their, v.Spec.Name, v.Pool)
			}
		}
	}
	return nil
}

// adoptImages notes the images of a pool, each of which has its record in it.
func (m *Manager) adoptImages(ctx context.Context, in string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	names, err := pool.List(ctx, storage.Images)
	if err != nil {
		return err
	}
	for _, name := range names {
		image, err := recordIn(ctx, pool, storage.Key{Class: storage.Images, Name: name})
		if err != nil || image.Fingerprint != name {
			continue // a disk that was made from one, or what a killed pull left
		}
		switch _, err := m.cfg.Images.Get(name); {
		case fault.Is(err, fault.NotFound):
			image.Aliases = nil
			if err := m.cfg.Images.Put(*image); err != nil {
				return err
			}
		case err != nil:
			return err
		}
	}
	return nil
}

// adoptAddresses claims the addresses that the instances of a pool have, or gives
// them others. One that cannot be read is left as it is.
func (m *Manager) adoptAddresses(ctx context.Context, in string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	names, _, err := volumesIn(ctx, pool)
	if err != nil {
		return err
	}
	for _, name := range names {
		volume, err := pool.Open(ctx, instanceKey(name))
		if err != nil {
			continue
		}
		spec, err := readSpec(volume, name)
		if err != nil || !spec.Address.IsValid() || m.claims(spec) {
			continue
		}
		old := spec.Address
		err = m.withOldAddress(ctx, spec, func() error {
			if spec.Address != old {
				if err := saveSpec(volume, spec); err != nil {
					return err
				}
			}
			return m.claimAddress(spec)
		})
		if err != nil {
			return fmt.Errorf("cannot give %q an address: %w", name, err)
		}
	}
	return nil
}

// recordIn reads the record in an image's volume.
func recordIn(ctx context.Context, pool storage.Pool, key storage.Key) (*images.Image, error) {
	volume, err := pool.Open(ctx, key)
	if err != nil {
		return nil, err
	}
	dir, err := volume.Dir()
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	data, err := store.ReadFile(dir, imageFile)
	if err != nil {
		return nil, err
	}
	image := new(images.Image)
	return image, json.Unmarshal(data, image)
}

// ForgetPool takes a pool off the list and leaves what is in it, for one that is
// gone or belongs to another. It can be adopted again. What is left of one whose
// deletion cannot be finished is forgotten, too.
func (m *Manager) ForgetPool(ctx context.Context, name string) error {
	if name == DefaultPool {
		return fault.New(fault.Forbidden, "cannot forget pool %q: it is the one that is always there", name)
	}
	lock := "pool:" + name
	held, err := m.lock(ctx, "forget", lock)
	if err != nil {
		begun, _, listErr := m.concerning([]string{lock})
		if listErr != nil || len(begun) == 0 || slices.ContainsFunc(begun, func(i store.Intent) bool { return i.Kind != "pool-delete" }) {
			return err
		}
		// Whoever carries on with that finds nothing more to do.
		if held, err = m.locks.Lock(ctx, "forget", lock); err != nil {
			return err
		}
	}
	defer held.Release()
	for _, v := range m.lost(name) {
		return fault.New(fault.WrongState, "cannot forget pool %q: %q of it is running; stop it first", name, v.Spec.Name)
	}
	return m.cfg.Pools.Forget(ctx, name)
}

// setPoolArgs are all that is needed to change a pool, or to change it back.
type setPoolArgs struct{ From, To storage.Record }

// SetPool changes what can be changed of a pool: its description, and the size of
// one that brig keeps in a file.
func (m *Manager) SetPool(ctx context.Context, name string, set map[string]string) error {
	held, err := m.lock(ctx, "change", "pool:"+name)
	if err != nil {
		return err
	}
	defer held.Release()
	from, err := m.cfg.Pools.Record(name)
	if err != nil {
		return err
	}
	to := from
	to.Config = maps.Clone(from.Config)
	for key, value := range set {
		switch key {
		case "description":
			to.Description = value
		case "size":
			n, err := amount.Parse(value)
			if err != nil {
				return fmt.Errorf("cannot change pool %q: %w", name, err)
			}
			to.Config[key] = strconv.FormatInt(n, 10)
		default:
			return fault.New(fault.Invalid, "cannot change %q of pool %q: only description and size can be changed", key, name)
		}
	}
	if set["size"] != "" {
		// What is there now counts, whatever was noted.
		info, err := m.poolInfo(ctx, name)
		if err != nil {
			return fmt.Errorf("cannot resize pool %q: %w", name, err)
		}
		from.Config = maps.Clone(from.Config)
		from.Config["size"] = strconv.FormatInt(info.Total, 10)
	}
	if err := m.perform(ctx, "set-pool", []string{"pool:" + name}, setPoolArgs{from, to}); err != nil {
		return fmt.Errorf("cannot change pool %q: %w", name, err)
	}
	return nil
}

func (m *Manager) poolInfo(ctx context.Context, name string) (storage.Info, error) {
	pool, err := m.pool(ctx, name)
	if err != nil {
		return storage.Info{}, err
	}
	return pool.Info(ctx)
}

func (m *Manager) setPoolOperation(a setPoolArgs) *operation {
	resize := func(ctx context.Context, to storage.Record) error {
		if a.From.Config["size"] == a.To.Config["size"] {
			return nil
		}
		pool, err := m.pool(ctx, to.Name)
		if err != nil {
			return err
		}
		r, ok := pool.(storage.Resizer)
		if !ok {
			return fault.New(fault.Unsupported, "a pool of the driver %s has no size of its own", to.Driver)
		}
		bytes, err := amount.Parse(to.Config["size"])
		if err != nil {
			return err
		}
		return r.Resize(ctx, bytes)
	}
	return &operation{steps: []step{
		{
			name: "size",
			do:   func(ctx context.Context) error { return resize(ctx, a.To) },
			undo: func(ctx context.Context) error {
				err := resize(ctx, a.From)
				if fault.Is(err, fault.Exhausted) || fault.Is(err, fault.Unsupported) {
					return nil // what was written meanwhile needs the larger size
				}
				return err
			},
		},
		{
			name: "record",
			do:   func(context.Context) error { return m.cfg.Pools.Update(a.To) },
			undo: func(context.Context) error { return m.cfg.Pools.Update(a.From) },
		},
	}}
}

func checkPoolName(name string) error {
	if err := store.CheckSnapshotName(name); err != nil || strings.HasPrefix(name, ".") {
		return fault.New(fault.Invalid, "cannot use %q as the name of a pool: use letters, digits, dots, hyphens and underscores", name)
	}
	return nil
}
