package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// volume is a handle; what may change is asked of the file system each time.
type volume struct {
	pool *Pool
	key  storage.Key
	rec  record // as it was when it was opened
}

var _ storage.Volume = (*volume)(nil)

func (v *volume) Key() storage.Key         { return v.key }
func (v *volume) Content() storage.Content { return v.rec.Content }
func (v *volume) source() storage.Source   { return storage.Source{Key: v.key} }

func (v *volume) Dir() (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open the metadata of volume %q", v.key)
	return v.pool.metadata(v.source())
}

// metadata opens the directory with the metadata files of a volume or snapshot.
func (p *Pool) metadata(from storage.Source) (*os.Root, error) {
	f, err := p.openData(from)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return p.root.OpenRoot(dataPath(from))
}

// Root says where the data is. It stays the same for as long as the volume has its
// name.
func (v *volume) Root() storage.Root {
	root := v.rootAt(v.source())
	if v.key.Class == storage.Images && v.rec.Content == storage.Tree {
		root.Lower, root.Upper = []string{root.Upper}, ""
	}
	return root
}

// SnapshotRoot says where the data of a snapshot is.
func (v *volume) SnapshotRoot(ctx context.Context, name string) (_ storage.Root, err error) {
	defer storage.Fail(&err, "cannot look into snapshot %q of volume %q", name, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", name), ctx.Err()); err != nil {
		return storage.Root{}, err
	}
	if _, err := v.pool.loadSnapshot(v.key, name); err != nil {
		return storage.Root{}, err
	}
	root := v.rootAt(storage.Source{Key: v.key, Snapshot: name})
	if v.rec.Content == storage.Tree {
		root.Lower, root.Upper = []string{root.Upper}, ""
	}
	return root, nil
}

// rootAt says where the data of the volume or of one of its snapshots is.
func (v *volume) rootAt(source storage.Source) storage.Root {
	p, data := v.pool, dataPath(source)
	if v.rec.Content == storage.Disk {
		name := storage.DiskRaw
		if !p.has(path.Join(data, name)) {
			name = storage.DiskQcow2
		}
		return storage.Root{DiskPath: p.path(data, name), DiskFormat: qcow2.FormatOf(name)}
	}
	return storage.Root{Upper: p.path(data, storage.RootName)}
}

// Snapshot makes a read-only snapshot of the subvolume beside its record.
func (v *volume) Snapshot(ctx context.Context, name string, o storage.SnapshotOptions) (err error) {
	defer storage.Fail(&err, "cannot take snapshot %q of volume %q", name, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", name), ctx.Err()); err != nil {
		return err
	}
	data, err := v.pool.openData(v.source())
	if err != nil {
		return err
	}
	defer data.Close()
	switch _, err := v.pool.loadSnapshot(v.key, name); {
	case err == nil:
		return fault.New(fault.AlreadyExists, "there is a snapshot %q already", name)
	case !fault.Is(err, fault.NotFound):
		return err
	}
	rec := snapshotRecord{Version: formatVersion, Snapshot: storage.Snapshot{
		Name: name, Description: o.Description, CreatedAt: o.CreatedAt.Round(0), ExpiresAt: o.ExpiresAt.Round(0), Auto: o.Auto,
	}}
	if rec.CreatedAt.IsZero() {
		rec.CreatedAt = time.Now().Round(0)
	}
	return v.snapshot(ctx, rec, data, o.Live)
}

func (v *volume) snapshot(ctx context.Context, rec snapshotRecord, data *os.File, live *storage.Live) (err error) {
	p := v.pool
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { c.end(err != nil) }()
	if err := c.dir.Mkdir(newSnapshot, 0o700); err != nil {
		return err
	}
	// The snapshot makes the record durable as well.
	if err := writeFile(c.dir.Root, path.Join(newSnapshot, snapshotFile), rec); err != nil {
		return err
	}
	err = p.still(ctx, v.key, v.rec.Content, data, live, func() error { return c.take(data, newSnapshot, true) })
	if err != nil {
		return err
	}
	if err := p.root.Mkdir(path.Join(v.key.String(), snapshotsDir), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := p.move(c.dir.Path(newSnapshot), snapshotPath(v.key, rec.Name)); err != nil {
		return err
	}
	p.step("snapshot in place")
	return c.commit()
}

// Snapshots lists the snapshots, oldest first.
func (v *volume) Snapshots(ctx context.Context) (_ []storage.Snapshot, err error) {
	defer storage.Fail(&err, "cannot list the snapshots of volume %q", v.key)
	if _, err := v.pool.load(v.key); err != nil {
		return nil, err
	}
	names, err := v.pool.withFile(path.Join(v.key.String(), snapshotsDir), snapshotFile)
	if err != nil {
		return nil, pooldir.IgnoreMissing(err)
	}
	list := make([]storage.Snapshot, 0, len(names))
	for _, name := range names {
		rec, err := v.pool.readSnapshot(snapshotPath(v.key, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := cmp.Or(err, ctx.Err()); err != nil {
			return nil, err
		}
		list = append(list, rec.Snapshot)
	}
	slices.SortStableFunc(list, func(a, b storage.Snapshot) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list, ctx.Err()
}

func (v *volume) SnapshotDir(ctx context.Context, name string) (_ *os.Root, err error) {
	defer storage.Fail(&err, "cannot open snapshot %q of volume %q", name, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", name), ctx.Err()); err != nil {
		return nil, err
	}
	return v.pool.metadata(storage.Source{Key: v.key, Snapshot: name})
}

// Restore makes a writable snapshot of the snapshot, gives it the metadata files
// as they are now, and lets the two subvolumes change places.
func (v *volume) Restore(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot restore volume %q to snapshot %q", v.key, name)
	if err := cmp.Or(storage.CheckName("snapshot", name), ctx.Err()); err != nil {
		return err
	}
	p := v.pool
	source, err := p.openData(storage.Source{Key: v.key, Snapshot: name})
	if err != nil {
		return err
	}
	defer source.Close()
	if v.key.Class == storage.Images {
		return fault.New(fault.WrongState, "images are read-only")
	}
	rec, err := p.load(v.key)
	if err := cmp.Or(err, p.idle(v.key, rec.Content)); err != nil {
		return err
	}
	c, err := p.begin(ctx)
	if err != nil {
		return err
	}
	defer func() { c.end(err != nil) }()
	if err := c.take(source, ".", false); err != nil {
		return err
	}
	if err := c.keepFiles(v.key); err != nil {
		return err
	}
	if err := c.count(".", rec.Group); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := c.exchange(dataPath(v.source())); err != nil {
		return err
	}
	p.step("exchanged")
	return c.commit()
}

// exchange lets the new subvolume of the change and the one at path change places.
func (c *change) exchange(path string) error {
	pool, err := c.pool.root.Open(".")
	if err != nil {
		return err
	}
	defer pool.Close()
	if err := unix.Renameat2(int(c.dir.File.Fd()), dataName, int(pool.Fd()), path, unix.RENAME_EXCHANGE); err != nil {
		return fmt.Errorf("exchanging the data: %w", err)
	}
	return nil
}

// keepFiles replaces the metadata files in the new subvolume of the change by
// those that a volume has now.
func (c *change) keepFiles(key storage.Key) error {
	now, err := c.pool.metadata(storage.Source{Key: key})
	if err != nil {
		return err
	}
	defer now.Close()
	next, err := c.dir.OpenRoot(dataName)
	if err != nil {
		return err
	}
	defer next.Close()
	old, err := pooldir.Meta(next)
	if err != nil {
		return err
	}
	for _, name := range old {
		if err := next.Remove(name); err != nil {
			return err
		}
	}
	return cmp.Or(pooldir.CopyMeta(now, next), c.flush(dataName))
}

// DeleteSnapshot drops a snapshot.
func (v *volume) DeleteSnapshot(ctx context.Context, name string) (err error) {
	defer storage.Fail(&err, "cannot delete snapshot %q of volume %q", name, v.key)
	if err := cmp.Or(storage.CheckName("snapshot", name), ctx.Err()); err != nil {
		return err
	}
	p := v.pool
	// A damaged record is no obstacle: this is how one gets rid of it.
	if _, err := p.loadSnapshot(v.key, name); err != nil && !fault.Is(err, fault.Unavailable) {
		return err
	}
	if err := p.drop(snapshotPath(v.key, name), snapshotFile); err != nil {
		return err
	}
	p.step("snapshot deleted")
	return pooldir.Sync(p.root, path.Join(v.key.String(), snapshotsDir))
}

// RenameSnapshot gives a snapshot another name.
func (v *volume) RenameSnapshot(ctx context.Context, name, to string) (err error) {
	defer storage.Fail(&err, "cannot rename snapshot %q of volume %q to %q", name, v.key, to)
	if err := cmp.Or(storage.CheckName("snapshot", name), storage.CheckName("snapshot", to), ctx.Err()); err != nil {
		return err
	}
	if _, err := v.pool.loadSnapshot(v.key, name); err != nil {
		return err
	}
	if err := v.pool.move(snapshotPath(v.key, name), snapshotPath(v.key, to)); err != nil {
		return err
	}
	v.pool.step("snapshot renamed")
	return pooldir.Sync(v.pool.root, path.Join(v.key.String(), snapshotsDir))
}
