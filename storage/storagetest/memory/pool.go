// Package memory is a pool for tests of what stands on pools: the contract in its
// simplest form, proved by the same suite as the drivers that people use. What it
// knows about its volumes is in memory and goes with the program. Their files are
// in plain directories, since callers mount and open them, and each volume and
// snapshot has a whole copy, so that no two share anything. It has no disks, limits
// or durability, and nobody is offered it.
package memory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/treecopy"
)

// Pool is a pool in memory, with the files of its volumes in one directory.
type Pool struct {
	dir string

	mu      sync.Mutex // guards what follows, and the volumes themselves
	volumes map[storage.Key]*volume
	made    int             // directories so far
	pins    map[string]int  // directories that are being copied, and how often
	waste   map[string]bool // directories that nobody needs
}

var _ storage.Pool = (*Pool)(nil)

// New makes an empty pool whose files will be in dir, which is made if it is
// missing. The caller removes it.
func New(dir string) (*Pool, error) {
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, fmt.Errorf("cannot make a pool: %w", err)
	}
	return &Pool{dir: dir, volumes: map[storage.Key]*volume{}, pins: map[string]int{}, waste: map[string]bool{}}, nil
}

// state is where the files of a volume or snapshot are.
type state struct{ meta, data string }

func (p *Pool) Info(ctx context.Context) (_ storage.Info, err error) {
	defer storage.Fail(&err, "cannot describe the pool in memory")
	var st unix.Statfs_t
	if err := errors.Join(ctx.Err(), unix.Statfs(p.dir, &st)); err != nil {
		return storage.Info{}, err
	}
	return storage.Info{
		Name: "memory", Driver: "memory", Source: p.dir,
		Total: int64(st.Blocks) * st.Bsize, Free: int64(st.Bavail) * st.Bsize,
		Limits:       "not kept: this pool is for tests",
		Capabilities: storage.Capabilities{Contents: []storage.Content{storage.Tree}},
	}, nil
}

func (p *Pool) List(ctx context.Context, class storage.Class) (_ []string, err error) {
	defer storage.Fail(&err, "cannot list the %s", class)
	if err := errors.Join(ctx.Err(), storage.Key{Class: class, Name: "any"}.Check()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	var names []string
	for key := range p.volumes {
		if key.Class == class {
			names = append(names, key.Name)
		}
	}
	slices.Sort(names)
	return names, nil
}

func (p *Pool) Open(ctx context.Context, key storage.Key) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot open volume %q", key)
	if err := errors.Join(ctx.Err(), key.Check()); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find(key)
	if err != nil {
		return nil, err
	}
	return &handle{p, key, v.now}, nil
}

// find gives a volume. The caller has the lock.
func (p *Pool) find(key storage.Key) (*volume, error) {
	if v, ok := p.volumes[key]; ok {
		return v, nil
	}
	return nil, fault.New(fault.NotFound, "there is no volume %q", key)
}

func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	switch {
	case key.Check() != nil:
		return nil, key.Check()
	case content == storage.Disk:
		return nil, fault.New(fault.Unsupported, "a pool in memory has no disks")
	case content != storage.Tree:
		return nil, fault.New(fault.Invalid, "there is no content %q", content)
	}
	return p.add(ctx, key, func(s state) error {
		// What fill leaves beside the tree are metadata files.
		if err := os.Remove(s.data); err != nil {
			return err
		}
		dir, err := os.OpenRoot(s.meta)
		if err != nil {
			return err
		}
		defer dir.Close()
		if err := fill(dir); err != nil {
			return err
		}
		if st, err := dir.Lstat(storage.RootName); err != nil || !st.IsDir() {
			return fault.New(fault.Invalid, "it was filled without the directory %s", storage.RootName)
		}
		for _, name := range []string{storage.DiskRaw, storage.DiskQcow2} {
			if _, err := dir.Lstat(name); err == nil {
				return fault.New(fault.Invalid, "it was filled with a tree and a disk")
			}
		}
		return os.Rename(filepath.Join(s.meta, storage.RootName), s.data)
	})
}

func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot clone volume %q to %q", from.Key, key)
	if err := errors.Join(from.Check(), key.Check()); err != nil {
		return nil, err
	}
	if key.Class == storage.Images {
		return nil, fault.New(fault.Invalid, "a clone is writable, and images are not")
	}
	return p.add(ctx, key, func(s state) error {
		source, unpin, err := p.source(from)
		if err != nil {
			return err
		}
		defer unpin()
		if from.Snapshot != "" {
			o.Live = nil
		}
		if err := copyState(ctx, source, s, o.Live); err != nil || o.Edit == nil {
			return err
		}
		dir, err := os.OpenRoot(s.meta)
		if err != nil {
			return err
		}
		defer dir.Close()
		return o.Edit(dir)
	})
}

// add makes a volume of what fill puts into two empty directories.
func (p *Pool) add(ctx context.Context, key storage.Key, fill func(state) error) (storage.Volume, error) {
	taken := func() error {
		if _, ok := p.volumes[key]; ok {
			return fault.New(fault.AlreadyExists, "there is one with that name")
		}
		return nil
	}
	p.mu.Lock()
	err := taken()
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	s, err := p.fresh(ctx, fill)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := taken(); err != nil {
		p.drop(s)
		return nil, err
	}
	p.volumes[key] = &volume{now: s}
	return &handle{p, key, s}, nil
}

// fresh makes a state with fill. If that fails, or ctx ends, nothing of it stays.
func (p *Pool) fresh(ctx context.Context, fill func(state) error) (_ state, err error) {
	if err := ctx.Err(); err != nil {
		return state{}, err
	}
	p.mu.Lock()
	p.made++
	s := state{filepath.Join(p.dir, fmt.Sprintf("meta%d", p.made)), filepath.Join(p.dir, fmt.Sprintf("data%d", p.made))}
	p.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(s.meta), os.RemoveAll(s.data))
		}
	}()
	if err := errors.Join(os.Mkdir(s.meta, 0o700), os.Mkdir(s.data, 0o755)); err != nil {
		return s, err
	}
	if err := fill(s); err != nil {
		return s, err
	}
	return s, ctx.Err()
}

// source finds what to copy, which stays until unpin is called.
func (p *Pool) source(from storage.Source) (_ state, unpin func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find(from.Key)
	if err != nil {
		return state{}, nil, err
	}
	s := v.now
	if from.Snapshot != "" {
		i, err := v.index(from.Snapshot)
		if err != nil {
			return state{}, nil, err
		}
		s = v.snapshots[i].state
	}
	p.pins[s.meta]++
	p.pins[s.data]++
	return s, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.pins[s.meta]--
		p.pins[s.data]--
	}, nil
}

// copyState copies a state to another, whose directories are empty.
func copyState(ctx context.Context, from, to state, live *storage.Live) (err error) {
	if live != nil {
		thaw, err := live.Freeze(ctx)
		if err != nil {
			return err
		}
		if err := errors.Join(ctx.Err(), treecopy.Copy(ctx, from.data, to.data), thaw()); err != nil {
			return err
		}
	} else if err := treecopy.Copy(ctx, from.data, to.data); err != nil {
		return err
	}
	return treecopy.Copy(ctx, from.meta, to.meta)
}

func (p *Pool) Rename(ctx context.Context, key storage.Key, name string) (err error) {
	defer storage.Fail(&err, "cannot rename volume %q to %q", key, name)
	to := storage.Key{Class: key.Class, Name: name}
	if err := errors.Join(key.Check(), to.Check(), ctx.Err()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find(key)
	if err != nil {
		return err
	}
	if _, ok := p.volumes[to]; ok {
		return fault.New(fault.AlreadyExists, "there is one with that name")
	}
	p.volumes[to] = v
	delete(p.volumes, key)
	return nil
}

func (p *Pool) Delete(ctx context.Context, key storage.Key) (err error) {
	defer storage.Fail(&err, "cannot delete volume %q", key)
	if err := errors.Join(key.Check(), ctx.Err()); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	v, err := p.find(key)
	if err != nil {
		return err
	}
	delete(p.volumes, key)
	p.drop(v.now)
	for _, s := range v.snapshots {
		p.drop(s.state)
	}
	return nil
}

// drop gives a state up. The caller has the lock.
func (p *Pool) drop(s state) {
	p.waste[s.meta] = true
	p.waste[s.data] = true
}

func (p *Pool) Sweep(ctx context.Context) (err error) {
	defer storage.Fail(&err, "cannot free what was deleted")
	p.mu.Lock()
	waste := maps.Clone(p.waste)
	for dir := range waste {
		if p.pins[dir] > 0 {
			delete(waste, dir)
		}
	}
	p.mu.Unlock()
	for dir := range waste {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
		p.mu.Lock()
		delete(p.waste, dir)
		delete(p.pins, dir)
		p.mu.Unlock()
	}
	return nil
}

func (p *Pool) Pending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.waste) > 0
}
