package overlay

import (
	"cmp"
	"context"
	"os"
	"path"
	"slices"
	"sync"
	"time"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// volume is a handle: the record on disk is read anew where it matters.
type volume struct {
	pool *Pool
	key  storage.Key

	mu   sync.Mutex
	last record // as it was read last; guarded by mu
}

var (
	_ storage.Volume     = (*volume)(nil)
	_ storage.MetaReader = (*volume)(nil)
	_ storage.Shortener  = (*volume)(nil)
)

func (v *volume) Key() storage.Key { return v.key }

func (v *volume) Content() storage.Content {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.last.Content
}

func (v *volume) Dir() (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open the metadata of volume %q", v.key)
	return v.pool.root.OpenMeta(v.key)
}

func (v *volume) ReadMeta(name string, most int64) (_ []byte, err error) {
	defer storage.Fail(&err, "cannot read the metadata of volume %q", v.key)
	return v.pool.root.ReadMeta(v.key, name, most)
}

// Root says where the data is. After a machine was told to go on in another disk
// and brig died before it knew the outcome, it asks the kernel which of the two
// is written to; if neither is, the newer one shows the older one's data at least.
func (v *volume) Root() storage.Root {
	rec, err := v.pool.load(v.key)
	v.mu.Lock()
	if err != nil {
		rec = v.last.clone()
	} else {
		v.last = rec
	}
	v.mu.Unlock()
	p := v.pool
	if rec.Content == storage.Disk {
		id := rec.Active
		switch {
		case id == "":
			id = rec.Layers[0]
		case rec.Next != "" && !p.written(rec.Active):
			id = rec.Next
		}
		return p.diskRoot(id)
	}
	root := p.treeRoot(rec.Layers)
	switch {
	case rec.Flat:
		root.Upper = p.path(layersDir, rec.Active, rootName)
	case rec.Active != "":
		root.Aside = p.path(v.key.String(), asideDir)
		root.Upper, root.Work = p.path(layersDir, rec.Active, rootName), p.path(layersDir, rec.Active, workName)
	}
	return root
}

// diskRoot is the root of a disk whose topmost layer is id.
func (p *Pool) diskRoot(id string) storage.Root {
	name, err := p.diskName(id)
	if err != nil {
		name = storage.DiskQcow2 // whoever opens it will say that it is missing
	}
	return storage.Root{DiskPath: p.path(layersDir, id, name), DiskFormat: qcow2.FormatOf(name), DiskDir: p.path(layersDir)}
}

// treeRoot is the root of a tree of frozen layers.
func (p *Pool) treeRoot(layers []string) (root storage.Root) {
	for _, id := range layers {
		root.Lower = append(root.Lower, p.path(layersDir, id, rootName))
	}
	return root
}

// change locks the volume and calls f to change it.
func (v *volume) change(ctx context.Context, f func(h *locked) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	h, err := v.pool.lockVolume(ctx, v.key)
	if err != nil {
		return err
	}
	defer h.dir.Close()
	err = f(h)
	v.mu.Lock()
	v.last = h.rec
	v.mu.Unlock()
	return err
}

// Snapshot freezes the active layer and notes the layers under a name. One saved
// record does both.
func (v *volume) Snapshot(ctx context.Context, name string, o storage.SnapshotOptions) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q", name, v.key)
	if err := storage.CheckName("snapshot", name); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if err := v.free(h, name); err != nil {
			return err
		}
		s := snapshot{ID: pooldir.NewID(), Snapshot: storage.Snapshot{
			Name: name, Description: o.Description, CreatedAt: o.CreatedAt.Round(0), ExpiresAt: o.ExpiresAt.Round(0), Auto: o.Auto,
		}}
		if s.CreatedAt.IsZero() {
			s.CreatedAt = time.Now().Round(0)
		}
		return v.pool.snapshot(ctx, v.key, h, s, o.Live)
	})
}

func (p *Pool) snapshot(ctx context.Context, key storage.Key, h *locked, s snapshot, live *storage.Live) error {
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	if err := c.dir.Mkdir(newSnapshot, 0o700); err != nil {
		return err
	}
	f, err := c.freeze(ctx, h, live, func() error {
		return p.copyMeta(path.Join(key.String(), pooldir.MetaDir), c.dir.Path(newSnapshot))
	})
	if err != nil {
		return err
	}
	defer f.release()
	if err := syncFiles(c.dir, newSnapshot); err != nil {
		return err
	}
	s.Layers = f.layers
	return c.keep(h, f.rec, s)
}

// free refuses the name of a snapshot that there is.
func (v *volume) free(h *locked, name string) error {
	_, err := v.pool.find(v.key.String(), &h.rec, name)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return cmp.Or(err, fault.New(fault.AlreadyExists, "there is a snapshot %q already", name))
}

// snapshot finds a snapshot.
func (v *volume) snapshot(ctx context.Context, name string) (snapshot, record, error) {
	rec, err := v.pool.load(v.key)
	if err := cmp.Or(err, ctx.Err()); err != nil {
		return snapshot{}, rec, err
	}
	s, err := v.pool.find(v.key.String(), &rec, name)
	return s, rec, err
}

// Snapshots lists the snapshots, oldest first.
func (v *volume) Snapshots(ctx context.Context) (_ []storage.Snapshot, err error) {
	defer storage.Fail(&err, "cannot list the snapshots of volume %q", v.key)
	rec, err := v.pool.load(v.key)
	if err != nil {
		return nil, err
	}
	all, err := v.pool.snapshots(v.key.String(), &rec)
	if err != nil {
		return nil, err
	}
	var list []storage.Snapshot
	for _, s := range all {
		list = append(list, s.Snapshot)
	}
	return list, ctx.Err()
}

func (v *volume) SnapshotDir(ctx context.Context, name string) (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open snapshot %q of volume %q", name, v.key)
	s, _, err := v.snapshot(ctx, name)
	if err != nil {
		return nil, err
	}
	return v.pool.root.OpenRoot(path.Join(v.key.String(), snapshotsDir, s.ID))
}

// SnapshotRoot gives the layers of a snapshot.
func (v *volume) SnapshotRoot(ctx context.Context, name string) (_ storage.Root, err error) {
	defer storage.Fail(&err, "cannot look into snapshot %q of volume %q", name, v.key)
	s, rec, err := v.snapshot(ctx, name)
	if err != nil {
		return storage.Root{}, err
	}
	if rec.Content == storage.Disk {
		return v.pool.diskRoot(s.Layers[0]), nil
	}
	return v.pool.treeRoot(s.Layers), nil
}

// Restore puts a new active layer over the snapshot's layers.
func (v *volume) Restore(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot restore volume %q to snapshot %q", v.key, name)
	return v.change(ctx, func(h *locked) error {
		s, err := v.pool.find(v.key.String(), &h.rec, name)
		if err != nil {
			return err
		}
		if h.rec.Active == "" {
			return fault.New(fault.WrongState, "images are read-only")
		}
		return v.pool.restore(ctx, h, s.Layers)
	})
}

func (p *Pool) restore(ctx context.Context, h *locked, layers []string) error {
	if err := p.idle(&h.rec); err != nil {
		return err
	}
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	release, err := p.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec := h.rec.clone()
	if rec.Flat {
		rec.Active, err = c.copyFlat(ctx, layers[0])
	} else {
		rec.Layers = slices.Clone(layers)
		rec.Active, err = c.newActive(rec.Content, rec.Layers)
	}
	if err != nil {
		return err
	}
	old := h.rec.Active
	if err := c.save(h, rec); err != nil {
		return err
	}
	// Nobody else ever names an active layer. If this fails, Sweep finds it.
	p.discard(path.Join(layersDir, old))
	return nil
}

// DeleteSnapshot drops a snapshot. Its layers stay as long as others need them.
func (v *volume) DeleteSnapshot(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot delete snapshot %q of volume %q", name, v.key)
	return v.change(ctx, func(h *locked) error {
		p := v.pool
		s, err := p.find(v.key.String(), &h.rec, name)
		switch {
		case err == nil:
			// A snapshot whose directory is gone counts as deleted: that needs no space.
			if err := p.discard(h.dir.Path(snapshotsDir, s.ID)); err != nil {
				return err
			}
			p.step("snapshot discarded")
		case !fault.Is(err, fault.Unavailable):
			return err
		}
		// A damaged file is no obstacle: this is how one gets rid of it.
		if err := pooldir.IgnoreMissing(h.dir.Remove(fileOf(name))); err != nil {
			return err
		}
		if err := pooldir.Sync(h.dir, snapshotsDir); err != nil {
			return err
		}
		i := h.rec.index(name)
		if i < 0 {
			return nil
		}
		rec := h.rec.clone()
		rec.Snapshots = slices.Delete(rec.Snapshots, i, i+1)
		if err := p.save(ctx, h, rec); err != nil && !storage.NoSpace(err) {
			return err
		}
		h.rec = rec
		return nil
	})
}

// RenameSnapshot gives a snapshot another name.
func (v *volume) RenameSnapshot(ctx context.Context, name, to string) (err error) {
	defer storage.Fail(&err, "cannot rename snapshot %q of volume %q to %q", name, v.key, to)
	if err := storage.CheckName("snapshot", to); err != nil {
		return err
	}
	return v.change(ctx, func(h *locked) error {
		if _, err := v.pool.find(v.key.String(), &h.rec, name); err != nil {
			return err
		}
		if err := v.free(h, to); err != nil {
			return err
		}
		if i := h.rec.index(name); i >= 0 {
			return v.pool.renameInRecord(ctx, h, i, to)
		}
		return v.pool.renameFile(ctx, h, name, to)
	})
}

func (p *Pool) renameInRecord(ctx context.Context, h *locked, i int, to string) error {
	rec := h.rec.clone()
	// Somebody who died may have made its file already.
	if err := pooldir.IgnoreMissing(h.dir.Remove(fileOf(rec.Snapshots[i].Name))); err != nil {
		return err
	}
	rec.Snapshots[i].Name = to
	return p.save(ctx, h, rec)
}

// renameFile holds the layers, so that Sweep sees the one name or the other.
func (p *Pool) renameFile(ctx context.Context, h *locked, name, to string) error {
	release, err := p.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	if err := h.dir.Rename(fileOf(name), fileOf(to)); err != nil {
		return err
	}
	p.step("snapshot renamed")
	return pooldir.Sync(h.dir, snapshotsDir)
}
