package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"brig/storage/pooldir"
	"brig/storage/treecopy"
)

// remover empties the trash. Trees come from guests, so they may be deeper than
// there are file descriptors or stack, or carry the immutable flag.
type remover struct {
	ctx   context.Context
	trash int
	moved []string // parts of trees that were moved up to the trash, because they are deep
}

// maxDepth is how deep the remover goes before it moves what is below up.
const maxDepth = 64

// emptyTrash removes the named things from the trash. Others may do the same
// beside it.
func (p *Pool) emptyTrash(ctx context.Context, names []string) error {
	d, err := p.root.Open(pooldir.Trash)
	if err != nil {
		return err
	}
	defer d.Close()
	r := &remover{ctx: ctx, trash: int(d.Fd()), moved: names}
	for len(r.moved) > 0 {
		name := r.moved[0]
		r.moved = r.moved[1:]
		if err := r.remove(r.trash, name, 0); err != nil {
			return fmt.Errorf("removing %q: %w", path.Join(p.dir, pooldir.Trash, name), err)
		}
	}
	return nil
}

// remove removes a name of an open directory with everything below it.
func (r *remover) remove(dir int, name string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	err := unlink(dir, name, 0)
	if err == nil || !errors.Is(err, unix.EISDIR) {
		return err
	}
	if depth == maxDepth {
		id := pooldir.NewID()
		if err := unix.Renameat(dir, name, r.trash, id); err != nil {
			return pooldir.IgnoreMissing(err)
		}
		r.moved = append(r.moved, id)
		return nil
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	defer unix.Close(fd)
	names, err := treecopy.NamesIn(fd)
	if err != nil {
		return pooldir.IgnoreMissing(err) // somebody else has removed it since
	}
	for _, n := range names {
		if err := r.remove(fd, n, depth+1); err != nil {
			return err
		}
	}
	return unlink(dir, name, unix.AT_REMOVEDIR)
}

// unlink removes one name. A file or directory that a privileged guest made
// immutable is made mutable first.
func unlink(dir int, name string, flags int) error {
	err := unix.Unlinkat(dir, name, flags)
	if errors.Is(err, unix.EPERM) {
		clearFlags(dir, ".")
		clearFlags(dir, name)
		err = unix.Unlinkat(dir, name, flags)
	}
	return pooldir.IgnoreMissing(err)
}

// The inode flags that keep a file from being removed (linux/fs.h).
const fixedFlags = 0x10 | 0x20 // immutable, append-only

// clearFlags takes the immutable and append-only flags from a file or directory.
func clearFlags(dir int, name string) {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return
	}
	// Opening anything else could do something.
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS)
	if err == nil && flags&fixedFlags != 0 {
		unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags&^fixedFlags))
	}
}
