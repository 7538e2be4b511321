package memory

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/treecopy"
)

// volume is what the pool knows of a volume. The pool's lock guards it.
type volume struct {
	now       state
	snapshots []snapshot // oldest first
}

type snapshot struct {
	storage.Snapshot
	state
}

// index finds a snapshot by its name.
func (v *volume) index(name string) (int, error) {
	i := slices.IndexFunc(v.snapshots, func(s snapshot) bool { return s.Name == name })
	if i < 0 {
		return i, fault.New(fault.NotFound, "there is no snapshot %q", name)
	}
	return i, nil
}

// handle is an open volume.
type handle struct {
	pool *Pool
	key  storage.Key
	last state // where its files were when it was opened
}

var (
	_ storage.Volume     = (*handle)(nil)
	_ storage.MetaReader = (*handle)(nil)
)

func (h *handle) Key() storage.Key         { return h.key }
func (h *handle) Content() storage.Content { return storage.Tree }

// with calls f with the volume, while nobody else changes the pool.
func (h *handle) with(f func(v *volume) error) error {
	h.pool.mu.Lock()
	defer h.pool.mu.Unlock()
	v, err := h.pool.find(h.key)
	if err != nil {
		return err
	}
	return f(v)
}

// at finds where the files of the volume or, with a name, of a snapshot are.
func (h *handle) at(snapshot string) (s state, err error) {
	err = h.with(func(v *volume) error {
		if s = v.now; snapshot == "" {
			return nil
		}
		i, err := v.index(snapshot)
		if err == nil {
			s = v.snapshots[i].state
		}
		return err
	})
	return s, err
}

func (h *handle) Dir() (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open the metadata of volume %q", h.key)
	s, err := h.at("")
	if err != nil {
		return nil, err
	}
	return os.OpenRoot(s.meta)
}

func (h *handle) ReadMeta(name string, most int64) (_ []byte, err error) {
	defer storage.Fail(&err, "cannot read the metadata of volume %q", h.key)
	s, err := h.at("")
	if err != nil {
		return nil, err
	}
	if !filepath.IsLocal(name) || filepath.Base(name) != name {
		return nil, fault.New(fault.Invalid, "%q is not the name of a file", name)
	}
	path := filepath.Join(s.meta, name)
	switch st, err := os.Lstat(path); {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > most:
		return nil, fault.New(fault.Invalid, "%q is not a file of at most %d bytes", name, most)
	}
	return os.ReadFile(path)
}

func (h *handle) Root() storage.Root {
	s, err := h.at("")
	if err != nil {
		s = h.last
	}
	return storage.Root{Upper: s.data}
}

func (h *handle) Snapshot(ctx context.Context, name string, o storage.SnapshotOptions) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q", name, h.key)
	if err := storage.CheckName("snapshot", name); err != nil {
		return err
	}
	free := func(v *volume) error {
		if _, err := v.index(name); err == nil {
			return fault.New(fault.AlreadyExists, "there is one with that name")
		}
		return nil
	}
	if err := h.with(free); err != nil {
		return err
	}
	s, err := h.pool.fresh(ctx, func(s state) error {
		from, unpin, err := h.pool.source(storage.Source{Key: h.key})
		if err != nil {
			return err
		}
		defer unpin()
		return copyState(ctx, from, s, o.Live)
	})
	if err != nil {
		return err
	}
	if o.CreatedAt.IsZero() {
		o.CreatedAt = time.Now()
	}
	taken := snapshot{storage.Snapshot{
		Name: name, Description: o.Description, CreatedAt: o.CreatedAt, ExpiresAt: o.ExpiresAt, Auto: o.Auto,
	}, s}
	return h.with(func(v *volume) error {
		if err := free(v); err != nil {
			h.pool.drop(s)
			return err
		}
		v.snapshots = append(v.snapshots, taken)
		slices.SortStableFunc(v.snapshots, func(a, b snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
		return nil
	})
}

func (h *handle) Snapshots(ctx context.Context) (list []storage.Snapshot, err error) {
	defer storage.Fail(&err, "cannot list the snapshots of volume %q", h.key)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	err = h.with(func(v *volume) error {
		for _, s := range v.snapshots {
			list = append(list, s.Snapshot)
		}
		return nil
	})
	return list, err
}

func (h *handle) SnapshotDir(ctx context.Context, name string) (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open the metadata of snapshot %q of volume %q", name, h.key)
	s, err := h.named(ctx, name)
	if err != nil {
		return nil, err
	}
	return os.OpenRoot(s.meta)
}

func (h *handle) SnapshotRoot(ctx context.Context, name string) (_ storage.Root, err error) {
	defer storage.Fail(&err, "cannot find snapshot %q of volume %q", name, h.key)
	s, err := h.named(ctx, name)
	return storage.Root{Upper: s.data}, err
}

func (h *handle) named(ctx context.Context, name string) (state, error) {
	if err := cmp.Or(ctx.Err(), storage.CheckName("snapshot", name)); err != nil {
		return state{}, err
	}
	return h.at(name)
}

func (h *handle) Restore(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot restore volume %q to snapshot %q", h.key, name)
	if err := storage.CheckName("snapshot", name); err != nil {
		return err
	}
	s, err := h.pool.fresh(ctx, func(s state) error {
		from, unpin, err := h.pool.source(storage.Source{Key: h.key, Snapshot: name})
		if err != nil {
			return err
		}
		defer unpin()
		return treecopy.Copy(ctx, from.data, s.data)
	})
	if err != nil {
		return err
	}
	return h.with(func(v *volume) error {
		// The metadata stay as they are.
		h.pool.drop(state{s.meta, v.now.data})
		v.now.data = s.data
		return nil
	})
}

func (h *handle) DeleteSnapshot(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot delete snapshot %q of volume %q", name, h.key)
	if err := cmp.Or(ctx.Err(), storage.CheckName("snapshot", name)); err != nil {
		return err
	}
	return h.with(func(v *volume) error {
		i, err := v.index(name)
		if err != nil {
			return err
		}
		h.pool.drop(v.snapshots[i].state)
		v.snapshots = slices.Delete(v.snapshots, i, i+1)
		return nil
	})
}

func (h *handle) RenameSnapshot(ctx context.Context, name, to string) (err error) {
	defer storage.Fail(&err, "cannot rename snapshot %q of volume %q to %q", name, h.key, to)
	if err := cmp.Or(ctx.Err(), storage.CheckName("snapshot", name), storage.CheckName("snapshot", to)); err != nil {
		return err
	}
	return h.with(func(v *volume) error {
		i, err := v.index(name)
		if err != nil {
			return err
		}
		if _, err := v.index(to); err == nil {
			return fault.New(fault.AlreadyExists, "there is one with that name")
		}
		v.snapshots[i].Name = to
		return nil
	})
}

// Usage counts files: no volume or snapshot shares anything.
func (h *handle) Usage(ctx context.Context) (u storage.Usage, err error) {
	defer storage.Fail(&err, "cannot measure volume %q", h.key)
	var now state
	var snapshots []snapshot
	err = h.with(func(v *volume) error {
		now, snapshots = v.now, slices.Clone(v.snapshots)
		return ctx.Err()
	})
	if err != nil {
		return u, err
	}
	if u.Used, err = sizeOf(ctx, now); err != nil {
		return u, err
	}
	for _, s := range snapshots {
		size, err := sizeOf(ctx, s.state)
		if err != nil {
			return u, err
		}
		u.Used += size
		u.Snapshots = append(u.Snapshots, storage.SnapshotUsage{Name: s.Name, Used: size, Exclusive: size})
	}
	u.Exclusive = u.Used
	return u, nil
}

func sizeOf(ctx context.Context, s state) (total int64, err error) {
	for _, dir := range []string{s.meta, s.data} {
		size, err := treecopy.Size(ctx, dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a restore or sweep was quicker
			return 0, err
		}
		total += size
	}
	return total, nil
}
