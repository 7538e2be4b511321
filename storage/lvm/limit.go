package lvm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// limits says for people how limits are kept.
const limits = "by the file system of a tree: what is in it, what it shares with its image included, without its snapshots; " +
	"a tree without a limit grows as long as the pool has space; a disk is as large as it was made"

// Sizes of the file systems of trees that nobody gave a limit. They take up what is
// written to them, whatever their size is.
const (
	minVolume = 1 << 30
	maxVolume = 256 << 30
)

// treeSize is the size of a new tree's file system.
func (f fill) treeSize() int64 { return min(maxVolume, max(minVolume, f.total*f.chunk)) }

// SetLimit keeps the tree from growing beyond max bytes, from now on and wherever it
// is mounted. It holds for its clones too, and after a restore.
func (v *volume) SetLimit(ctx context.Context, max int64) (err error) {
	defer storage.Fail(&err, "cannot limit the size of volume %q", v.key)
	if max < 0 {
		return fault.New(fault.Invalid, "a size of %d bytes makes no sense", max)
	}
	return v.change(ctx, func(h *locked) error {
		if h.rec.Content == storage.Disk {
			return fault.New(fault.Unsupported, "a disk is as large as it was made, and cannot grow beyond that")
		}
		c, err := v.pool.begin(ctx)
		if err != nil {
			return err
		}
		defer c.end()
		rec := h.rec.clone()
		rec.Limit = max
		if err := c.save(h, rec, nil); err != nil {
			return err
		}
		if rec.readOnly() {
			return nil
		}
		return v.pool.mountVolume(ctx, rec.Data, &rec, false)
	})
}

// Limit gives the limit and what counts against it.
func (v *volume) Limit(ctx context.Context) (_ storage.Limit, err error) {
	defer storage.Fail(&err, "cannot tell the limit of volume %q", v.key)
	rec, err := v.pool.load(v.key)
	if err := cmp.Or(err, ctx.Err()); err != nil || rec.Content == storage.Disk {
		return storage.Limit{}, err
	}
	if err := v.pool.mountVolume(ctx, rec.Data, &rec, rec.readOnly()); err != nil {
		return storage.Limit{}, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(v.pool.mountPoint(rec.Data), &st); err != nil {
		return storage.Limit{}, err
	}
	return storage.Limit{Max: rec.Limit, Used: int64(st.Blocks-st.Bfree) * st.Bsize}, nil
}

// bound keeps what is written to a mounted tree within its limit and within what the
// pool has to give, so that whoever fills it meets the end of a file system, and not
// that of the thin pool, which would break the file systems of all others.
func (p *Pool) bound(ctx context.Context, id string, limit int64) error {
	f, err := p.fill()
	if err != nil {
		return err
	}
	return p.boundTo(ctx, id, limit, f.free()+f.reserve()/2)
}

// boundTo bounds a mounted tree to limit, if that is not zero, and to more bytes
// than it has now.
func (p *Pool) boundTo(ctx context.Context, id string, limit, more int64) error {
	dir, err := os.Open(p.mountPoint(id))
	if err != nil {
		return err
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir.Name(), Err: err}
	}
	if capacity := int64(st.Blocks) * st.Bsize; limit > capacity {
		if err := p.grow(ctx, id, dir, limit); err != nil {
			return err
		}
		if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
			return &os.PathError{Op: "statfs", Path: dir.Name(), Err: err}
		}
	}
	return setReserved(dir, withheld(int64(st.Blocks), int64(st.Bfree), st.Bsize, limit, more))
}

// withheld is how many blocks a file system must not give away, for it to stay in
// its bounds. The first ones it keeps for its own use in any case.
func withheld(blocks, free, size, limit, more int64) int64 {
	allowed := min(blocks, blocks-free+more/size)
	if limit > 0 {
		allowed = min(allowed, limit/size)
	}
	return max(blocks-allowed, min(blocks/50, 4096))
}

// setReserved makes the ext4 that dir is in withhold blocks, as long as it is
// mounted. Unlike the blocks for root, nobody gets these.
func setReserved(dir *os.File, blocks int64) error {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return err
	}
	name := fmt.Sprintf("/sys/fs/ext4/dm-%d/reserved_clusters", unix.Minor(st.Dev))
	// The kernel makes nothing new of what is there.
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("bounding a file system: %w", err)
	}
	_, err = f.WriteString(strconv.FormatInt(blocks, 10))
	return errors.Join(err, f.Close())
}

// resizeFS is EXT4_IOC_RESIZE_FS.
const resizeFS = 1<<30 | 8<<16 | 'f'<<8 | 16

// grow makes the mounted file system large enough to hold limit bytes.
func (p *Pool) grow(ctx context.Context, id string, dir *os.File, limit int64) error {
	// Its own tables take 1 to 2 parts in a hundred, and its journal some megabytes.
	want := (limit/100*104 + 128<<20 + 4<<20 - 1) &^ (4<<20 - 1)
	device, err := p.activate(ctx, id)
	if err != nil {
		return err
	}
	size, err := deviceSize(device)
	if err != nil {
		return err
	}
	if size < want {
		if _, err := lvm(ctx, "lvextend", "-An", "-L", strconv.FormatInt(want, 10)+"b", "--", p.full(id)); err != nil {
			return err
		}
		p.step("volume extended")
		if size, err = deviceSize(device); err != nil {
			return err
		}
	}
	blocks := uint64(size / blockSize)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks)))
	if errno != 0 {
		return fmt.Errorf("growing the file system on %q: %w", p.full(id), errno)
	}
	p.step("file system extended")
	return nil
}

// blockSize is that of the file systems of trees.
const blockSize = 4096

// deviceSize gives the bytes of a block device.
func deviceSize(device string) (int64, error) {
	f, err := os.Open(device)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.Seek(0, 2)
}
