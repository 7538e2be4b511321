package overlay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// change is one change being prepared, in a directory of its own below staging.
// The lock on that directory tells Sweep that its owner lives.
type change struct {
	pool *Pool
	name string // of the directory
	dir  *os.Root
	lock *os.File
}

// cleanupTime is how long a failed change may take to remove what it made.
const cleanupTime = 10 * time.Second

// Names in a change's directory.
const (
	newVolume   = "volume"
	newLayer    = "layer"
	newSnapshot = "snapshot"
)

// begin starts a change. The caller ends it.
func (p *Pool) begin(ctx context.Context) (*change, error) {
	for {
		c := &change{pool: p, name: newID()}
		if err := p.root.Mkdir(c.path(), 0o700); err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fault.New(fault.Unavailable, "the pool is gone: %w", err)
			}
			return nil, err
		}
		var err error
		if c.dir, err = p.root.OpenRoot(c.path()); errors.Is(err, fs.ErrNotExist) {
			continue // Sweep came between
		} else if err != nil {
			return nil, err
		}
		if c.lock, err = flock(ctx, c.dir, unix.LOCK_EX); err != nil {
			c.dir.Close()
			return nil, err
		}
		if _, err := p.root.Lstat(c.path()); err == nil {
			p.step("change begun")
			return c, nil
		}
		c.lock.Close()
		c.dir.Close()
	}
}

// path is a path in the change's directory, relative to the pool.
func (c *change) path(parts ...string) string {
	return path.Join(append([]string{stagingDir, c.name}, parts...)...)
}

// end takes away what is left of the change.
func (c *change) end() {
	// An empty directory needs no trash. What cannot be removed now waits for Sweep.
	if c.pool.root.Remove(c.path()) != nil {
		if id, err := c.pool.throwAway(c.path()); err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
			defer cancel()
			c.pool.emptyTrash(ctx, []string{id})
		}
	}
	c.lock.Close()
	c.dir.Close()
}

// Create makes a volume from what fill provides.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer fail(&err, "cannot create volume %q", key)
	if err := p.checkNew(key); err != nil {
		return nil, err
	}
	if content != storage.Tree && content != storage.Disk {
		return nil, fault.New(fault.Invalid, "there is no content %q", content)
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
	if err := fill(meta); err != nil {
		return nil, err
	}
	if err := first(ctx.Err(), c.takeData(meta, content), c.sync(content)); err != nil {
		return nil, err
	}
	p.step("filled")
	rec := record{Content: content, Layers: []string{newID()}}
	release, err := p.share(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if err := p.root.Rename(c.path(newLayer), path.Join(layersDir, rec.Layers[0])); err != nil {
		return nil, err
	}
	p.step("layer in place")
	if key.Class != storage.Images {
		if rec.Active, err = p.newActive(content, rec.Layers); err != nil {
			return nil, err
		}
	}
	if err := c.writeRecord(rec); err != nil {
		return nil, err
	}
	return c.publish(key, rec)
}

// checkNew checks the key of a volume to be made.
func (p *Pool) checkNew(key storage.Key) error {
	if err := key.Check(); err != nil {
		return err
	}
	_, err := p.load(key)
	if err == nil {
		return fault.New(fault.AlreadyExists, "there is a volume %q already", key)
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// makeVolume makes the directory of the new volume and opens that of its
// metadata files.
func (c *change) makeVolume() (meta *os.Root, err error) {
	for _, name := range []string{newVolume, path.Join(newVolume, metaDir)} {
		if err := c.dir.Mkdir(name, 0o700); err != nil {
			return nil, err
		}
	}
	return c.dir.OpenRoot(path.Join(newVolume, metaDir))
}

// takeData moves the data that fill made out of the metadata directory, and
// judges it.
func (c *change) takeData(meta *os.Root, content storage.Content) error {
	if err := c.dir.Mkdir(newLayer, 0o700); err != nil {
		return err
	}
	var found []string
	for _, name := range []string{storage.RootName, storage.DiskRaw, storage.DiskQcow2} {
		if _, err := meta.Lstat(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) != 1 || (content == storage.Tree) != (found[0] == storage.RootName) {
		return fault.New(fault.Invalid, "a volume of content %q was given %q", content, found)
	}
	name := found[0]
	if content == storage.Disk {
		if err := checkDisk(meta, name); err != nil {
			return err
		}
	} else if st, err := meta.Lstat(name); err != nil || !st.IsDir() {
		return fault.New(fault.Invalid, "the tree %q is not a directory", name)
	}
	return c.dir.Rename(path.Join(newVolume, metaDir, name), path.Join(newLayer, name))
}

// checkDisk refuses disk files that are not what their name says, or that could
// make QEMU open another file. A raw disk is filled up to whole sectors.
func checkDisk(dir *os.Root, name string) error {
	if name == storage.DiskQcow2 {
		_, err := qcow2.Check(dir, name)
		return err
	}
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return fault.New(fault.Invalid, "the disk %q is empty or not a file", name)
	}
	if st.Size()%512 == 0 {
		return nil
	}
	f, err := dir.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate((st.Size()+511)/512*512), f.Close())
}

// sync makes what was filled durable: a disk by itself, a tree with its thousands
// of files by syncing the file system once.
func (c *change) sync(content storage.Content) error {
	if content == storage.Tree {
		return unix.Syncfs(int(c.lock.Fd()))
	}
	for _, dir := range []string{newLayer, path.Join(newVolume, metaDir)} {
		if err := syncFiles(c.dir, dir); err != nil {
			return err
		}
	}
	return nil
}

// syncFiles syncs a directory and the files in it.
func syncFiles(root *os.Root, dir string) error {
	entries, err := readDir(root, dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue
		}
		f, err := root.Open(path.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(root, dir)
}

// writeRecord writes the record of the new volume.
func (c *change) writeRecord(rec record) error {
	b, err := encode(rec)
	if err != nil {
		return err
	}
	name := path.Join(newVolume, recordFile)
	if err := writeFile(c.dir, name+".new", b); err != nil {
		return err
	}
	if err := c.dir.Rename(name+".new", name); err != nil {
		return err
	}
	c.pool.step("new record written")
	return syncDir(c.dir, newVolume)
}

// publish makes the new volume visible. The caller holds the layers shared.
func (c *change) publish(key storage.Key, rec record) (storage.Volume, error) {
	if err := c.pool.move(c.path(newVolume), key); err != nil {
		return nil, err
	}
	c.pool.step("published")
	return &volume{pool: c.pool, key: key, last: rec}, nil
}

// Clone makes a writable volume over the layers of another. If that has an active
// layer with changes in it, the layer is frozen first and the source gets a new
// one, so that both share it.
func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer fail(&err, "cannot clone %q to volume %q", sourceName(from), key)
	if err := first(from.Check(), p.checkNew(key)); err != nil {
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
	rec, err := c.take(ctx, from, o.Live)
	if err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := o.Edit(meta); err != nil {
			return nil, err
		}
		if err := syncFiles(c.dir, path.Join(newVolume, metaDir)); err != nil {
			return nil, err
		}
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

func sourceName(from storage.Source) string {
	if from.Snapshot == "" {
		return from.Key.String()
	}
	return from.Key.String() + "/" + from.Snapshot
}

// take fills the new volume with the metadata files of from and a record over its
// layers. From then on the record in the change's directory keeps the layers.
func (c *change) take(ctx context.Context, from storage.Source, live *storage.Live) (rec record, err error) {
	p := c.pool
	var layers []string
	var release func()
	if from.Snapshot != "" || from.Class == storage.Images {
		if release, err = p.share(ctx); err != nil {
			return rec, err
		}
		defer release()
		source, err := p.load(from.Key)
		if err != nil {
			return rec, err
		}
		rec.Content, layers = source.Content, source.Layers
		files := path.Join(from.Key.String(), metaDir)
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
	} else {
		h, err := p.lockVolume(ctx, from.Key)
		if err != nil {
			return rec, err
		}
		defer h.close()
		rec.Content = h.rec.Content
		capture := func() error {
			return p.copyFiles(path.Join(from.Key.String(), metaDir), c.path(newVolume, metaDir))
		}
		f, err := c.freeze(ctx, h, live, capture)
		if err != nil {
			return rec, err
		}
		defer f.release()
		if f.changed {
			if err := c.save(h, f.rec); err != nil {
				return rec, err
			}
		}
		layers = f.layers
	}
	rec.Layers = layers
	if rec.Active, err = p.newActive(rec.Content, layers); err != nil {
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
// to, and syncs them.
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
		if err := p.copyMeta(path.Join(from, e.Name()), path.Join(to, e.Name())); err != nil {
			return fmt.Errorf("metadata file %q: %w", e.Name(), err)
		}
	}
	return syncDir(p.root, to)
}

func (p *Pool) copyMeta(from, to string) (err error) {
	r, err := p.root.OpenFile(from, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
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
	w, err := p.root.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := io.Copy(w, io.LimitReader(r, maxFileSize)); err != nil {
		return err
	}
	return w.Sync()
}
