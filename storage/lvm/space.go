package lvm

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage/mount"
)

// Of a thin pool, a part is kept: brig makes nothing new in it, so that what runs can
// go on for a while after everything else has met the end of the space.
const (
	reservePart = 16
	minReserve  = 32 << 20
	maxReserve  = 4 << 30
)

// reserve is what is kept, in bytes.
func (f fill) reserve() int64 {
	return min(maxReserve, max(minReserve, f.total*f.chunk/reservePart))
}

// free is what new data can take, in bytes.
func (f fill) free() int64 {
	return max(0, (f.total-f.used)*f.chunk-f.reserve())
}

// nearFull is how much free space, in bytes or as a part of the pool, is so little that
// what is on its way to the thin pool counts.
const (
	nearFull     = 256 << 20
	nearFullPart = 8
)

// settled tells how full the pool is. If it is nearly full, what was written to trees
// and has no place yet gets one first: a file system puts that off.
func (p *Pool) settled() (fill, error) {
	f, err := p.fill()
	if err != nil || f.free() > max(nearFull, f.total*f.chunk/nearFullPart) {
		return f, err
	}
	points, err := os.ReadDir(filepath.Join(p.dir, volumeMount))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return f, err
	}
	for _, e := range points {
		if !mount.Mounted(p.mountPoint(e.Name())) {
			continue
		}
		if d, err := os.Open(p.mountPoint(e.Name())); err == nil {
			unix.Syncfs(int(d.Fd())) // whoever writes there is told what fails
			d.Close()
		}
	}
	return p.fill()
}

// maxMeta is how full the metadata of a thin pool may get, in percent, before brig
// makes nothing new: a thin pool whose metadata are full stands still as a whole.
const maxMeta = 90

// room refuses to make something new when the pool is full, or has failed.
func (p *Pool) room(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f, err := p.settled()
	if err != nil {
		return err
	}
	name := p.vg + "/" + p.thin
	switch {
	case f.check || f.mode == "ro":
		return fault.New(fault.Unavailable, "the thin pool %q is read-only until its metadata are repaired: deactivate what is in it, and use lvconvert --repair %s", name, name)
	case f.metaUsed*100 >= f.metaTotal*maxMeta:
		return fault.New(fault.Exhausted, "the metadata of the thin pool %q are full to %d%%: make them larger with lvextend --poolmetadatasize +128M %s", name, f.metaUsed*100/f.metaTotal, name)
	case f.free() == 0:
		return fault.New(fault.Exhausted, "the pool is full: %d MiB are left in the thin pool %q, and kept for machines that run; delete something, or make it larger with lvextend", (f.total-f.used)*f.chunk>>20, name)
	}
	return nil
}

// tend makes the pool's own volume larger when it gets full, if the volume group has
// room. If not, whoever needs space there is told that there is none.
func (p *Pool) tend(ctx context.Context) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(p.root.File.Fd()), &st); err != nil || st.Bfree > st.Blocks/4 && st.Ffree > st.Files/4 {
		return
	}
	// In a thin pool it has its space for itself, and would get more only on paper.
	if kind, _, err := dmText(dmName(p.vg, p.lvName(ownVolume)), 0); err != nil || kind != "linear" {
		return
	}
	p.grow(ctx, ownVolume, p.root.File, 2*int64(st.Blocks)*st.Bsize)
}
