package btrfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/qcow2"
)

// Clone makes a writable snapshot of the subvolume of a volume or snapshot.
func (p *Pool) Clone(ctx context.Context, from storage.Source, key storage.Key, o storage.CloneOptions) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot clone %q to volume %q", from, key)
	if err := cmp.Or(from.Check(), p.checkNew(ctx, key)); err != nil {
		return nil, err
	}
	if key.Class == storage.Images {
		return nil, fault.New(fault.Invalid, "a clone is writable, and images are not")
	}
	parent, err := p.load(from.Key)
	if err != nil {
		return nil, err
	}
	source, err := p.openData(from)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	c, err := p.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { c.end(err != nil) }()
	if err := c.dir.Mkdir(newVolume, 0o700); err != nil {
		return nil, err
	}
	take := func() error { return c.take(source, newVolume, false) }
	if from.Snapshot == "" && from.Class != storage.Images {
		err = p.still(ctx, from.Key, parent.Content, source, o.Live, take)
	} else {
		err = take()
	}
	if err != nil {
		return nil, err
	}
	rec := record{Content: parent.Content}
	if rec.Origins, err = c.origins(parent); err != nil {
		return nil, err
	}
	if err := c.writeRecord(key, &rec); err != nil {
		return nil, err
	}
	if o.Edit != nil {
		if err := c.edit(o.Edit); err != nil {
			return nil, err
		}
	}
	return c.publish(ctx, key, rec)
}

// origins tells where the data of a clone of parent come from.
func (c *change) origins(parent record) ([]origin, error) {
	data, err := openSubvolume(c.dir.Root, path.Join(newVolume, dataName))
	if err != nil {
		return nil, err
	}
	defer data.Close()
	info, err := infoOf(data)
	if err != nil {
		return nil, err
	}
	return append([]origin{{ID: parent.ID, UpTo: info.otransid}}, parent.Origins...), nil
}

// edit has the metadata files of the new volume changed.
func (c *change) edit(edit func(dir *os.Root) error) error {
	name := path.Join(newVolume, dataName)
	dir, err := c.dir.OpenRoot(name)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := edit(dir); err != nil {
		return err
	}
	return c.flush(name)
}

// still calls take, which takes a snapshot of the data of a writable volume, while
// nobody changes them: the volume is not in use, or live stops its writers.
func (p *Pool) still(ctx context.Context, key storage.Key, content storage.Content, data *os.File, live *storage.Live, take func() error) (err error) {
	if live == nil {
		if err := cmp.Or(p.idle(key, content), ctx.Err()); err != nil {
			return err
		}
		return take()
	}
	if live.Freeze == nil {
		if content == storage.Tree {
			return fault.New(fault.WrongState, "it is in use, and its writers cannot be stopped")
		}
		// The snapshot shows what a disk holds after a power failure.
		if err := ctx.Err(); err != nil {
			return err
		}
		return take()
	}
	// What is written out now does not have to be while the writers stand.
	if err := unix.Syncfs(int(data.Fd())); err != nil {
		return fmt.Errorf("syncing: %w", err)
	}
	thaw, err := live.Freeze(ctx)
	if err != nil {
		return fmt.Errorf("freezing its writers: %w", err)
	}
	defer func() { err = errors.Join(err, thaw()) }()
	if err := ctx.Err(); err != nil {
		return err
	}
	return take()
}

// idle refuses a disk that a machine writes to. (Nobody can tell of a tree; the
// manager knows.)
func (p *Pool) idle(key storage.Key, content storage.Content) error {
	if content != storage.Disk {
		return nil
	}
	for _, name := range []string{storage.DiskRaw, storage.DiskQcow2} {
		disk := path.Join(key.String(), dataName, name)
		if p.written(disk) {
			return fault.New(fault.WrongState, "a running machine uses its disk%s; stop it first", holders.By(holders.Using(p.path(disk))))
		}
	}
	return nil
}

// written tells whether a QEMU has a disk open for writing.
func (p *Pool) written(name string) bool {
	f, err := p.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return qcow2.Written(f)
}
