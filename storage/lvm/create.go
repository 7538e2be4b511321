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
	"brig/storage/holders"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// Create makes a volume from what fill provides, in the file system of a new logical
// volume: the tree's own, or one that a disk is copied from and that goes then.
func (p *Pool) Create(ctx context.Context, key storage.Key, content storage.Content, fill func(dir *os.Root) error) (_ storage.Volume, err error) {
	defer storage.Fail(&err, "cannot create volume %q", key)
	if err := p.root.CheckNew(ctx, key); err != nil {
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
	meta, err := c.dir.MakeVolume()
	if err != nil {
		return nil, err
	}
	defer meta.Close()
	rec := record{Class: key.Class, Content: content, Data: c.name}
	staged := rec.Data
	if content == storage.Disk {
		staged = pooldir.NewID()
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

// makeLV makes a logical volume that reads as zeros.
func (p *Pool) makeLV(ctx context.Context, key storage.Key, id string, size int64) (device string, err error) {
	args := []string{"-An", "-V", strconv.FormatInt(size, 10) + "b", "--thinpool", p.thin, "-n", p.lvName(id), "-Wn", "-ky", "-K", "-y"}
	args = append(args, tags(key, "")...)
	if _, err := lvm(ctx, "lvcreate", append(args, "--", p.vg)...); err != nil {
		return "", pooldir.Damaged(err)
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
		return pooldir.Damaged(err)
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
	err = holders.Outlast(ctx, func() error { return unix.Unmount(p.mountPoint(id), unix.UMOUNT_NOFOLLOW) })
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
	name, err := pooldir.CheckFilled(data, rec.Content)
	if err != nil {
		return err
	}
	if err := cmp.Or(ctx.Err(), pooldir.CopyMeta(data, meta)); err != nil {
		return err
	}
	if rec.Content == storage.Disk {
		return c.copyDisk(ctx, key, rec, data, name)
	}
	return tidy(data, name)
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
	names, err := pooldir.Names(dir, ".")
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
