package lvm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/run"
	"brig/storage"
	"brig/storage/qcow2"
)

// Create makes a volume from what fill provides, in the file system of a new logical
// volume: the tree's own, or one that a disk is copied from and that goes then.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.checkNew(ctx, key); err != nil {
		return nil, err
	}
	if content != storage.Tree && content != storage.Disk {
		return nil, fault.New(fault.Invalid, "there is no content %q", content)
	}
	if err := p.room(ctx); err != nil {
		return nil, err
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
	staged := rec.Data
	if content == storage.Disk {
		staged = newID()
		defer func() { err = errors.Join(err, c.drop(staged)) }()
	}
	if err := cmp.Or(c.touch(rec.Data, staged), c.ready()); err != nil {
		return nil, err
	}
	if err := c.fill(ctx, key, staged, fill, func(data *os.Root) error { return c.take(ctx, key, &rec, data, meta) }); err != nil {
		return nil, err
	}
	p.step("filled")
	if err := cmp.Or(ctx.Err(), c.stage(rec)); err != nil {
		return nil, err
	}
	return c.publish(ctx, key, rec)
}

// drop removes the logical volume that a disk was copied from. If it cannot, Sweep
// does.
func (c *change) drop(id string) error {
	if !c.done {
		return nil // then all of it goes
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTime)
	defer cancel()
	c.wasteful = len(c.pool.remove(ctx, []string{id})) > 0
	return nil
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

// makeLV makes a logical volume that reads as zeros.
func (p *Pool) makeLV(ctx context.Context, key storage.Key, id string, size int64) (device string, err error) {
	args := []string{"-An", "-V", strconv.FormatInt(size, 10) + "b", "--thinpool", p.thin, "-n", p.lvName(id), "-Wn", "-ky", "-K", "-y"}
	args = append(args, tags(key, "")...)
	if _, err := lvm(ctx, "lvcreate", append(args, "--", p.vg)...); err != nil {
		return "", unavailable(err)
	}
	p.step("volume made")
	return p.activate(ctx, id)
}

// fill makes a logical volume with an empty file system, lets the caller fill it, and
// calls take with what is in it before it is unmounted.
func (c *change) fill(ctx context.Context, key storage.Key, id string, fill, take func(dir *os.Root) error) (err error) {
	p := c.pool
	f, err := p.settled()
	if err != nil {
		return err
	}
	device, err := p.makeLV(ctx, key, id, f.treeSize())
	if err != nil {
		return err
	}
	if err := makeFS(ctx, device, f.treeSize()); err != nil {
		return err
	}
	data, err := p.mountAt(ctx, id, p.mountPoint(id), 0)
	if err != nil {
		return unavailable(err)
	}
	err = cmp.Or(data.Remove("lost+found"), p.boundTo(ctx, id, 0, f.free()))
	if err == nil {
		err = fill(data)
	}
	if err == nil {
		err = take(data)
	}
	if err != nil {
		data.Close()
		p.unmount(id)
		return err
	}
	// What cannot be written for want of space is found out here.
	err = flush(data)
	data.Close()
	if err != nil {
		p.unmount(id)
		return err
	}
	err = patient(ctx, func() error { return unix.Unmount(p.mountPoint(id), unix.UMOUNT_NOFOLLOW) })
	p.unmount(id)
	return err
}

// flush writes all of the file system that dir is in.
func flush(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(unix.Syncfs(int(d.Fd())), d.Close())
}

// makeFS makes the file system of a tree on a device that reads as zeros. A small
// journal takes little space from each clone, which writes one of its own.
func makeFS(ctx context.Context, device string, size int64) error {
	args := []string{"-q", "-F", "-b", strconv.Itoa(blockSize), "-m", "0", "-E", "nodiscard,lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0"}
	if size >= 4<<30 {
		args = append(args, "-J", "size=32")
	}
	_, err := run.Output(ctx, "mkfs.ext4", append(args, "--", device)...)
	return err
}

// take judges what fill made, copies its metadata files into the new volume's
// directory, and copies a disk into a logical volume.
func (c *change) take(ctx context.Context, key storage.Key, rec *record, data, meta *os.Root) error {
	name, err := takeData(data, rec.Content)
	if err != nil {
		return err
	}
	if err := cmp.Or(ctx.Err(), copyFiles(data, meta)); err != nil {
		return err
	}
	if rec.Content == storage.Disk {
		return c.copyDisk(ctx, key, rec, data, name)
	}
	return tidy(data, name)
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
// make qemu-img open another file.
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
	return nil
}

// copyDisk makes a logical volume of a disk's size and copies the disk into it.
func (c *change) copyDisk(ctx context.Context, key storage.Key, rec *record, dir *os.Root, name string) error {
	p := c.pool
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	size, taken := st.Size(), st.Sys().(*syscall.Stat_t).Blocks*512
	source := filepath.Join(dir.Name(), name)
	if name == storage.DiskQcow2 {
		header, err := qcow2.Check(dir, name)
		if err != nil {
			return err
		}
		size = header.Size
		if taken, err = measureQcow2(ctx, source); err != nil {
			return err
		}
	}
	f, err := p.fill()
	if err != nil {
		return err
	}
	if taken > f.free() {
		return fault.New(fault.Exhausted, "the disk takes %d MiB, and %d are free: %w", taken>>20, f.free()>>20, unix.ENOSPC)
	}
	device, err := p.makeLV(ctx, key, rec.Data, size)
	if err != nil {
		return err
	}
	if name == storage.DiskQcow2 {
		_, err = run.Output(ctx, "qemu-img", "convert", "-n", "--target-is-zero", "-f", "qcow2", "-O", "raw", source, device)
	} else {
		err = copyRaw(ctx, dir, name, device)
	}
	return cmp.Or(err, syncDevice(device))
}

// measureQcow2 tells how much space a disk takes once it is raw.
func measureQcow2(ctx context.Context, path string) (int64, error) {
	out, err := run.Output(ctx, "qemu-img", "measure", "--output=json", "-f", "qcow2", "-O", "raw", path)
	if err != nil {
		return 0, err
	}
	var m struct {
		Required int64 `json:"required"`
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return 0, fmt.Errorf("cannot understand qemu-img measure: %w", err)
	}
	return m.Required, nil
}

// copyBlock is the unit in which a disk is copied: what reads as zeros is left out,
// and takes no space.
const copyBlock = 64 << 10

// copyRaw copies a file to a device that reads as zeros.
func copyRaw(ctx context.Context, dir *os.Root, name, device string) (err error) {
	from, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer from.Close()
	to, err := os.OpenFile(device, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	var zeros, block [copyBlock]byte
	for at := int64(0); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		next, err := unix.Seek(int(from.Fd()), at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // the rest is a hole
		}
		if err != nil {
			return err
		}
		at = next / copyBlock * copyBlock
		n, err := from.ReadAt(block[:], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if !bytes.Equal(block[:n], zeros[:n]) {
			if _, err := to.WriteAt(block[:n], at); err != nil {
				return err
			}
		}
		at += copyBlock
	}
}

// syncDevice makes durable what was written to a device.
func syncDevice(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// tidy takes away everything but the data: metadata files are on the pool's own
// volume.
func tidy(dir *os.Root, data string) error {
	names, err := namesIn(dir, ".")
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == data {
			continue
		}
		if err := dir.RemoveAll(name); err != nil {
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
