package overlay

import (
	"cmp"
	"context"
	"path"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// Clone makes a writable volume over the layers of another. If that has an active
// layer with changes in it, the layer is frozen first and the source gets a new
// one, so that both share it.
func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot clone %q to volume %q", from, key)
	if err := cmp.Or(from.Check(), p.root.CheckNew(ctx, key)); err != nil {
		return nil, err
	}
	if key.Class == storage.Images {
		return nil, fault.New(fault.Invalid, "a clone is writable, and images are not")
	}
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer c.end()
	meta, err := c.dir.MakeVolume()
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	rec, err := c.take(ctx, from, key, o.Live)
	if err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := o.Edit(meta); err != nil {
			return nil, err
		}
	}
	if err := syncFiles(c.dir, path.Join(pooldir.NewVolume, pooldir.MetaDir)); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	release, err := p.share(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	return c.publish(key, rec)
}

// take fills the new volume with the metadata files of from and a record over its
// layers. From then on the record in the change's directory keeps the layers.
func (c *change) take(ctx context.Context, from storage.Source, to storage.Key, live *storage.Live) (record, error) {
	if from.Snapshot != "" || from.Class == storage.Images {
		return c.takeFrozen(ctx, from, to)
	}
	return c.takeActive(ctx, from.Key, to, live)
}

// takeFrozen takes a snapshot or an image, which nobody writes.
func (c *change) takeFrozen(ctx context.Context, from storage.Source, to storage.Key) (rec record, err error) {
	p := c.pool
	release, err := p.share(ctx)
	if err != nil {
		return rec, err
	}
	defer release()
	source, err := p.load(from.Key)
	if err != nil {
		return rec, err
	}
	layers, files := source.Layers, path.Join(from.Key.String(), pooldir.MetaDir)
	if from.Snapshot != "" {
		i, err := source.find(from.Snapshot)
		if err != nil {
			return rec, err
		}
		layers = source.Snapshots[i].Layers
		files = path.Join(from.Key.String(), snapshotsDir, source.Snapshots[i].ID)
	}
	if err := p.copyMeta(files, c.dir.Path(pooldir.NewVolume, pooldir.MetaDir)); err != nil {
		return rec, err
	}
	if source.Flat && isFlat(to, source.Content) {
		return c.standFlat(ctx, layers[0], false)
	}
	return c.standOn(source.Content, layers)
}

// takeActive takes a writable volume as it is now.
func (c *change) takeActive(ctx context.Context, from, to storage.Key, live *storage.Live) (rec record, err error) {
	p := c.pool
	h, err := p.lockVolume(ctx, from)
	if err != nil {
		return rec, err
	}
	defer h.dir.Close()
	f, err := c.freeze(ctx, h, live, func() error {
		return p.copyMeta(path.Join(from.String(), pooldir.MetaDir), c.dir.Path(pooldir.NewVolume, pooldir.MetaDir))
	})
	if err != nil {
		return rec, err
	}
	defer f.release()
	if f.changed {
		if err := c.save(h, f.rec); err != nil {
			return rec, err
		}
	}
	if h.rec.Flat && isFlat(to, h.rec.Content) {
		return c.standFlat(ctx, f.layers[0], true)
	}
	return c.standOn(h.rec.Content, f.layers)
}

// standOn gives the new volume an active layer over layers and a record.
func (c *change) standOn(content storage.Content, layers []string) (rec record, err error) {
	rec = record{Content: content, Layers: layers}
	if rec.Active, err = c.newActive(content, layers); err != nil {
		return rec, err
	}
	return rec, c.writeRecord(rec)
}

// copyMeta copies the metadata files in the directory from into the directory to.
// The caller syncs them, when all that belongs to a change is written.
func (p *Pool) copyMeta(from, to string) error {
	source, err := p.root.OpenRoot(from)
	if err != nil {
		return err
	}
	defer source.Close()
	target, err := p.root.OpenRoot(to)
	if err != nil {
		return err
	}
	defer target.Close()
	return pooldir.CopyMeta(source, target)
}
