package zfs

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
	"brig/storage/qcow2"
)

// Create makes a volume from what fill provides.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.checkNew(ctx, key); err != nil {
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
	rec := record{Class: key.Class, Content: content, Data: c.name}
	// An image's snapshot has the name of its dataset.
	if err := c.touch(rec.dataset(), rec.dataset()+"@"+c.name); err != nil {
		return nil, err
	}
	if err := p.createDataset(ctx, key, &rec); err != nil {
		return nil, err
	}
	p.step("dataset made")
	if err := c.fill(ctx, &rec, meta, fill); err != nil {
		return nil, err
	}
	p.step("filled")
	if key.Class == storage.Images {
		rec.Base = c.name
	}
	if err := c.stage(rec); err != nil {
		return nil, err
	}
	if err := p.settle(ctx, &rec); err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// settle makes a filled dataset durable: an image's by the snapshot that clones
// start from.
func (p *Pool) settle(ctx context.Context, rec *record) error {
	if rec.Base == "" {
		return p.sync(ctx)
	}
	if err := p.snapshot(ctx, rec.dataset()+"@"+rec.Base); err != nil {
		return err
	}
	p.step("snapshot made")
	return nil
}

// createDataset makes an empty dataset. Disks get a record size between that of
// small writes of a guest and that of large ones.
func (p *Pool) createDataset(ctx context.Context, key storage.Key, rec *record) error {
	args := append([]string{"create"}, labels(key, rec)...)
	if rec.Content == storage.Disk {
		args = append(args, "-o", "recordsize="+diskRecordSize)
	}
	_, err := zfs(ctx, append(args, p.full(rec.dataset()))...)
	return unavailable(err)
}

// diskRecordSize is the record size of disks; DESIGN.md tells why.
const diskRecordSize = "32K"

// snapshot makes a snapshot that only the driver knows.
func (p *Pool) snapshot(ctx context.Context, object string, properties ...string) error {
	args := append([]string{"snapshot"}, properties...)
	_, err := zfs(ctx, append(args, p.full(object))...)
	return gone(err)
}

// checkNew checks the key of a volume to be made.
func (p *Pool) checkNew(ctx context.Context, key storage.Key) error {
	if err := cmp.Or(key.Check(), ctx.Err()); err != nil {
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

// fill lets the caller fill the new dataset, where it is mounted, judges what is
// there, and copies the metadata files into the new volume's directory.
func (c *change) fill(ctx context.Context, rec *record, meta *os.Root, fill func(dir *os.Root) error) (err error) {
	p := c.pool
	data, err := p.mountAt(ctx, p.full(rec.dataset()), p.mountPoint(rec.dataset()), 0)
	if err != nil {
		return unavailable(err)
	}
	defer data.Close()
	defer func() {
		if err != nil {
			p.unmount(rec.dataset())
		}
	}()
	p.step("dataset mounted")
	if err := fill(data); err != nil {
		return err
	}
	name, err := takeData(data, rec.Content)
	if err != nil {
		return err
	}
	if rec.Content == storage.Disk {
		rec.Format = qcow2.FormatOf(name)
	}
	return cmp.Or(ctx.Err(), copyFiles(data, meta), tidy(data, name))
}

// takeData finds the data that fill made, and judges it.
func takeData(dir *os.Root, content storage.Content) (name string, err error) {
	var found []string
	for _, name := range []string{storage.RootName, storage.DiskRaw, storage.DiskQcow2} {
		if _, err := dir.Lstat(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) != 1 || (content == storage.Tree) != (found[0] == storage.RootName) {
		return "", fault.New(fault.Invalid, "a volume of content %q was given %q", content, found)
	}
	name = found[0]
	if content == storage.Disk {
		return name, checkDisk(dir, name)
	}
	if st, err := dir.Lstat(name); err != nil || !st.IsDir() {
		return "", fault.New(fault.Invalid, "the tree %q is not a directory", name)
	}
	return name, nil
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
	f, err := dir.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate((st.Size()+511)/512*512), f.Close())
}

// tidy moves everything but the data into the directory of metadata files, where
// each snapshot has them too.
func tidy(dir *os.Root, data string) error {
	names, err := namesIn(dir, ".")
	if err != nil {
		return err
	}
	if err := dir.Mkdir(metaDir, 0o700); err != nil {
		return err
	}
	for _, name := range names {
		if name == data {
			continue
		}
		if err := dir.Rename(name, path.Join(metaDir, name)); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of the metadata files of a volume.
const (
	maxFiles    = 64
	maxFileSize = 128 << 20
)

// copyFiles copies the metadata files in the directory from into the directory
// to. A command that makes them durable follows.
func copyFiles(from, to *os.Root) error {
	names, err := namesIn(from, ".")
	if err != nil {
		return err
	}
	if len(names) > maxFiles {
		return fault.New(fault.Invalid, "there are %d files, and metadata are at most %d", len(names), maxFiles)
	}
	for _, name := range names {
		st, err := from.Lstat(name)
		if err != nil {
			return err
		}
		if !st.Mode().IsRegular() || name == storage.DiskRaw || name == storage.DiskQcow2 {
			continue
		}
		if err := copyMeta(from, to, name); err != nil {
			return fmt.Errorf("metadata file %q: %w", name, err)
		}
	}
	return nil
}

func copyMeta(from, to *os.Root, name string) (err error) {
	r, err := from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
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
	w, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, maxFileSize))
	return errors.Join(err, w.Close())
}
