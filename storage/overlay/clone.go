package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// Clone makes a writable volume over the layers of another. If that has an active
// layer with changes in it, the layer is frozen first and the source gets a new
// one, so that both share it.
func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot clone %q to volume %q", from, key)
	if err := cmp.Or(from.Check(), p.checkNew(key)); err != nil {
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
	meta, err := c.makeVolume()
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
	if err := syncFiles(c.dir, path.Join(newVolume, metaDir)); err != nil {
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
	layers, files := source.Layers, path.Join(from.Key.String(), metaDir)
	if from.Snapshot != "" {
		i, err := source.find(from.Snapshot)
		if err != nil {
			return rec, err
		}
		layers = source.Snapshots[i].Layers
		files = path.Join(from.Key.String(), snapshotsDir, source.Snapshots[i].ID)
	}
	if err := p.copyFiles(files, c.path(newVolume, metaDir)); err != nil {
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
	defer h.close()
	f, err := c.freeze(ctx, h, live, func() error {
		return p.copyFiles(path.Join(from.String(), metaDir), c.path(newVolume, metaDir))
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

// Bounds of the metadata files of a volume.
const (
	maxFiles    = 64
	maxFileSize = 128 << 20
)

// copyFiles copies the metadata files in the directory from into the directory
// to. The caller syncs them, when all that belongs to a change is written.
func (p *Pool) copyFiles(from, to string) error {
	entries, err := readDir(p.root, from)
	if err != nil {
		return err
	}
	if len(entries) > maxFiles {
		return fault.New(fault.Invalid, "%q holds %d files, and metadata are at most %d", from, len(entries), maxFiles)
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		if err := copyMeta(p.root, path.Join(from, e.Name()), p.root, path.Join(to, e.Name())); err != nil {
			return fmt.Errorf("metadata file %q: %w", e.Name(), err)
		}
	}
	return nil
}

func copyMeta(source *os.Root, from string, target *os.Root, to string) (err error) {
	r, err := source.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFileSize {
		return fault.New(fault.Invalid, "it is not a file of at most %d bytes", maxFileSize)
	}
	w, err := target.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	_, err = io.Copy(w, io.LimitReader(r, maxFileSize))
	return err
}
