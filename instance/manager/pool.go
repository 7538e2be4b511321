package manager

import (
	"context"
	"errors"
	"fmt"
	"os"

	"brig/instance/fault"
	"brig/storage"
)

// DefaultPool is the name of the pool that is made on first use.
const DefaultPool = "default"

// Pools are the pools of this brig.
type Pools interface {
	// Names lists the pools, the default one first, without opening them.
	Names() ([]string, error)

	// Drivers lists the kinds of pools.
	Drivers() []string

	// Open gives a pool; not-found if there is none of this name, unavailable
	// if it cannot be used now. Opening one again is cheap.
	Open(ctx context.Context, name string) (storage.Pool, error)

	// Plan tells all that Create is to make. Create makes a pool that was planned,
	// and Abandon removes what there is of it, wherever Create stopped.
	Plan(ctx context.Context, r storage.Record) (storage.Record, error)
	Create(ctx context.Context, plan storage.Record) error
	Abandon(ctx context.Context, plan storage.Record) error

	// Delete forgets a pool and destroys what Create made. It can be repeated.
	Delete(ctx context.Context, name string) error

	// Record tells how a pool was made, and Update notes it anew.
	Record(name string) (storage.Record, error)
	Update(r storage.Record) error

	// Adopt makes the pool at a source ours, if it fits; Forget lets go of one and
	// leaves what is in it. Both can be repeated.
	Adopt(ctx context.Context, r storage.Record, fits func(storage.Pool) error) error
	Forget(ctx context.Context, name string) error
}

// pool gives a pool by name; empty means the default one.
func (m *Manager) pool(ctx context.Context, name string) (storage.Pool, error) {
	if name == "" {
		name = DefaultPool
	}
	return m.cfg.Pools.Open(ctx, name)
}

// find gives the pool that holds a volume, and its name. A pool that cannot be
// used hides nothing that another has.
func (m *Manager) find(ctx context.Context, key storage.Key) (storage.Volume, string, error) {
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, "", err
	}
	missing := fault.New(fault.NotFound, "cannot find %q in any pool", key.Name)
	for _, name := range names {
		pool, err := m.pool(ctx, name)
		if err == nil {
			var volume storage.Volume
			if volume, err = pool.Open(ctx, key); err == nil {
				return volume, name, nil
			}
		}
		if !fault.Is(err, fault.NotFound) {
			missing = fault.New(fault.Of(err), "cannot tell where %q is: %w", key.Name, err)
		}
	}
	return nil, "", missing
}

// sourceOf says what to clone an instance's volume from.
func sourceOf(name, snapshot string) storage.Source {
	return storage.Source{Key: instanceKey(name), Snapshot: snapshot}
}

// Pools lists the pools with what they say of themselves. A pool that cannot be
// used has a line that says why.
func (m *Manager) Pools(ctx context.Context) ([]PoolView, error) {
	names, err := m.cfg.Pools.Names()
	if err != nil {
		return nil, err
	}
	views := make([]PoolView, 0, len(names))
	for _, name := range names {
		v, err := m.Pool(ctx, name)
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			v = &PoolView{Record: storage.Record{Name: name}, Reason: err.Error()}
		}
		views = append(views, *v)
	}
	return views, nil
}

// PoolView is all that is shown of a pool.
type PoolView struct {
	storage.Record
	Info    storage.Info
	UsedBy  []string // instances
	Trashed []string // what was deleted and is still kept; a custom volume is POOL/NAME
	Volumes []string // custom volumes
	Reason  string   // why it cannot be used; empty: it can
}

// Pool tells about one pool.
func (m *Manager) Pool(ctx context.Context, name string) (*PoolView, error) {
	record, err := m.cfg.Pools.Record(name)
	if err != nil {
		return nil, err
	}
	v := &PoolView{Record: record}
	pool, err := m.pool(ctx, name)
	if err == nil {
		v.Info, err = pool.Info(ctx)
	}
	if err == nil {
		v.UsedBy, _, err = volumesIn(ctx, pool)
	}
	if err == nil {
		var trash []trashed
		trash, err = trashIn(ctx, name, pool)
		for _, t := range trash {
			v.Trashed = append(v.Trashed, t.called())
		}
	}
	if err == nil {
		v.Volumes, err = customIn(ctx, pool)
	}
	if err != nil {
		v.Reason = err.Error()
	}
	return v, nil
}

// CreatePool makes a pool.
func (m *Manager) CreatePool(ctx context.Context, r storage.Record) error {
	if err := checkPoolName(r.Name); err != nil {
		return err
	}
	held, err := m.lock(ctx, "create", "pool:"+r.Name)
	if err != nil {
		return err
	}
	defer held.Release()
	if _, err := m.cfg.Pools.Record(r.Name); !fault.Is(err, fault.NotFound) {
		if err == nil {
			err = fault.New(fault.AlreadyExists, "cannot create pool %q: there is one", r.Name)
		}
		return err
	}
	r.CreatedAt = now()
	plan, err := m.cfg.Pools.Plan(ctx, r)
	if err != nil {
		return err
	}
	return m.perform(ctx, "pool-create", []string{"pool:" + r.Name}, plan)
}

// createPoolOperation makes a pool. One that is on record is complete.
func (m *Manager) createPoolOperation(plan storage.Record) *operation {
	return &operation{steps: []step{{
		name: "pool",
		do:   func(ctx context.Context) error { return m.cfg.Pools.Create(ctx, plan) },
		undo: func(ctx context.Context) error { return m.cfg.Pools.Abandon(ctx, plan) },
	}}, settled: func(context.Context) bool {
		known, err := m.cfg.Pools.Record(plan.Name)
		return err == nil && known.CreatedAt.Equal(plan.CreatedAt)
	}}
}

// DeletePool removes a pool that no instance and no volume is in, with the images
// in it.
func (m *Manager) DeletePool(ctx context.Context, name string) error {
	if name == DefaultPool {
		return fault.New(fault.Forbidden, "cannot delete pool %q: it is the one that is always there", name)
	}
	held, err := m.lock(ctx, "delete", "pool:"+name)
	if err != nil {
		return err
	}
	defer held.Release()
	v, err := m.Pool(ctx, name)
	if err != nil {
		return err
	}
	if v.Reason != "" {
		return fault.New(fault.Unavailable, "cannot delete pool %q: it cannot be looked into: %s; to take it off the list and leave what is in it, use --force", name, v.Reason)
	}
	if len(v.UsedBy) > 0 {
		return fault.New(fault.WrongState, "cannot delete pool %q: %d instances are in it, %q among them; delete or move them first", name, len(v.UsedBy), v.UsedBy[0])
	}
	if len(v.Trashed) > 0 {
		return fault.New(fault.WrongState, "cannot delete pool %q: %d deleted instances or volumes are kept in it, %q among them; empty the trash first, with brig trash empty", name, len(v.Trashed), v.Trashed[0])
	}
	if len(v.Volumes) > 0 {
		return fault.New(fault.WrongState, "cannot delete pool %q: %d volumes are in it, %q among them; delete or move them first, with brig storage volume", name, len(v.Volumes), v.Volumes[0])
	}
	return m.perform(ctx, "pool-delete", []string{"pool:" + name}, poolArgs{name})
}

// poolArgs name a pool.
type poolArgs struct{ Name string }

// deletePoolOperation destroys a pool in which there was nothing. What is half
// destroyed cannot be used, so whoever comes next carries on. A driver that refuses has
// destroyed nothing, and the pool stays.
func (m *Manager) deletePoolOperation(a poolArgs) *operation {
	return &operation{forward: true, steps: []step{{
		name: "pool",
		do: func(ctx context.Context) error {
			err := m.cfg.Pools.Delete(ctx, a.Name)
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		},
	}}, spoiled: func(ctx context.Context) bool {
		_, err := m.cfg.Pools.Open(ctx, a.Name)
		return err != nil
	}}
}

// treeOf gives the one folder with the files of a volume that nobody changes.
func treeOf(volume storage.Volume) (string, error) {
	root := volume.Root()
	switch {
	case len(root.Lower) == 1 && root.Upper == "":
		return root.Lower[0], nil
	case len(root.Lower) == 0 && root.Upper != "":
		return root.Upper, nil
	}
	return "", fmt.Errorf("the files of %q are not in one folder: %w", volume.Key().Name, errors.ErrUnsupported)
}

// openTree opens the folder with the files of a volume.
func openTree(volume storage.Volume) (*os.Root, error) {
	path, err := treeOf(volume)
	if err != nil {
		return nil, err
	}
	return os.OpenRoot(path)
}
