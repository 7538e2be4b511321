package overlay

import (
	"context"
	"path"

	"golang.org/x/sys/unix"

	"brig/storage/pooldir"
	"brig/storage/treecopy"
)

// twins are the files of one pool that are in several of its layers, by way of
// merging, and were copied to another with one of them. A merged layer holds nothing
// else, and is not copied once more because it has a new name.
type twins struct {
	pool   *Pool
	at     map[inode]twin
	linked map[inode]bool // those that were used
}

// twin is where a file is in both pools.
type twin struct{ layer, dir, name string }

// findTwins looks through the layers that two pools have in common.
func findTwins(ctx context.Context, from, to *Pool) (*twins, error) {
	t := &twins{pool: to, at: map[inode]twin{}, linked: map[inode]bool{}}
	layers, err := pooldir.Names(from.root, layersDir)
	if err != nil {
		return nil, err
	}
	for _, l := range layers {
		if !pooldir.ValidID(l) || !to.hasLayer(l) {
			continue
		}
		top, err := openDir(unix.AT_FDCWD, from.path(layersDir, l, rootName))
		if err != nil {
			continue // it is a disk, or has just gone
		}
		err = t.collect(ctx, top, l, ".")
		unix.Close(top)
		if err != nil {
			return nil, err
		}
	}
	return t, nil
}

// collect notes the files with several names in an open directory of a layer.
func (t *twins) collect(ctx context.Context, dir int, layer, where string) error {
	names, err := treecopy.NamesIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue // it has just gone
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFREG && st.Nlink > 1:
			t.at[inode{st.Dev, st.Ino}] = twin{layer, where, name}
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			in, err := openDir(dir, name)
			if err != nil {
				continue
			}
			err = t.collect(ctx, in, layer, path.Join(where, name))
			unix.Close(in)
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// link gives the copy of a file, if there is one, another name.
func (t *twins) link(dev, ino uint64, dir int, name string) bool {
	id := inode{dev, ino}
	twin, ok := t.at[id]
	if !ok {
		return false
	}
	top, err := openDir(unix.AT_FDCWD, t.pool.path(layersDir, twin.layer, rootName))
	if err != nil {
		return false
	}
	defer unix.Close(top)
	from, err := unix.Openat2(top, twin.dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return false
	}
	defer unix.Close(from)
	if unix.Linkat(from, twin.name, dir, name, 0) != nil {
		return false
	}
	t.linked[id] = true
	return true
}
