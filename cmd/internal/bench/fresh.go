package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/run"
)

// freshSize is the size of a fresh file system, in bytes. Its file has it from the start.
const freshSize = 32 << 30

// fresh is an ext4 made for one series of measurements of the images, which write
// thousands of files each, in folders of their own that stay until the series has ended.
// For minutes ext4 does not use the inodes of deleted files again, and looks at each of
// them for every new file (recently_deleted in fs/ext4/ialloc.c), so what was deleted
// before would make a measurement slower, of whatever program, by up to ten times.
//
// Its loop device writes past the page cache, into room that is there: what is written
// would otherwise be copied once more, and a flush would be that of two file systems.
type fresh struct {
	b     *bench
	image string
	dir   string
}

// newFresh makes the file system in a sparse file and mounts it.
func (b *bench) newFresh(ctx context.Context) (_ *fresh, err error) {
	dir, err := os.MkdirTemp(b.work, "fresh-")
	if err != nil {
		return nil, err
	}
	f := &fresh{b: b, image: dir + ".img", dir: dir}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.remove())
		}
	}()
	if err := tool(ctx, "fallocate", "-l", strconv.Itoa(freshSize), f.image); err != nil {
		return nil, err
	}
	if err := tool(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", f.image); err != nil {
		return nil, err
	}
	said, err := run.Output(ctx, "losetup", "--find", "--show", "--direct-io=on", f.image)
	if err != nil {
		return nil, err
	}
	device := strings.TrimSpace(string(said))
	// It goes when the file system does.
	return f, errors.Join(tool(ctx, "mount", device, f.dir), tool(ctx, "losetup", "--detach", device))
}

func (f *fresh) close() error { return errors.Join(unix.Unmount(f.dir, 0), f.remove()) }

func (f *fresh) remove() error { return errors.Join(os.RemoveAll(f.image), os.RemoveAll(f.dir)) }

// flush waits until what was written is on disk.
func (f *fresh) flush() error {
	dir, err := os.Open(f.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return unix.Syncfs(int(dir.Fd()))
}

// side times do in a new folder.
func (f *fresh) side(do func(ctx context.Context, dir string) error) side {
	return func(ctx context.Context) (float64, error) {
		dir, err := os.MkdirTemp(f.dir, "")
		if err != nil {
			return 0, err
		}
		took, err := timed(func() error { return do(ctx, dir) })
		return took, errors.Join(err, f.flush())
	}
}

// brig times a brig command with a new folder for BRIG_DIR, and appends the most memory
// that it had to memory, in MiB.
func (f *fresh) brig(memory *[]float64, args ...string) side {
	return f.side(func(ctx context.Context, dir string) error {
		cmd := f.b.command(ctx, args...)
		cmd.Env = append(cmd.Env, "BRIG_DIR="+filepath.Join(dir, "brig"))
		_, err := f.b.time(ctx, cmd)
		if err == nil && memory != nil {
			*memory = append(*memory, peak(cmd))
		}
		return err
	})
}
