package overlay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
)

// When layers are merged in the background. Looking something up costs the same
// again in each layer, for every read of a disk, and for a tree once, when a file
// is opened for the first time.
const (
	longDisk = 5
	longTree = 4
)

// maxTries bounds how often Shorten starts over because snapshots were taken
// meanwhile.
const maxTries = 3

// errOvertaken tells that the layers are others than those that were merged.
var errOvertaken = errors.New("it got another layer meanwhile")

// Long tells whether the layers should be merged.
func (v *volume) Long() bool {
	rec, err := v.pool.load(v.key)
	return err == nil && rec.Active != "" && (len(rec.Merged) > 0 || v.pool.tooMany(&rec) > 0)
}

// Shorten merges layers while the volume is used, and asks to enter for the moment
// in which the volume moves to the merged one.
func (v *volume) Shorten(ctx context.Context, enter func(context.Context) (*storage.Live, func(), error)) (err error) {
	defer storage.Fail(&err, "cannot merge the layers of volume %q", v.key)
	err = errOvertaken
	for try := 0; try < maxTries && errors.Is(err, errOvertaken); try++ {
		err = v.shorten(ctx, enter)
	}
	if errors.Is(err, errOvertaken) {
		return fault.New(fault.Busy, "snapshots were taken all the time: %w", err)
	}
	return err
}

func (v *volume) shorten(ctx context.Context, enter func(context.Context) (*storage.Live, func(), error)) error {
	c, err := v.pool.begin(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	merged, old, err := c.mergeTop(ctx, v.key)
	if err != nil || old == nil {
		return err
	}
	live, leave, err := enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	return v.change(ctx, func(h *locked) error {
		if len(h.rec.Merged) == 0 {
			if merged == nil {
				return nil // it was settled meanwhile
			}
			if !slices.Equal(h.rec.Layers, old) {
				return errOvertaken
			}
		}
		return c.exchange(ctx, h, merged, live)
	})
}

// mergeTop merges the topmost of the layers that a volume stands on, old. It gives
// those it can stand on instead, or none if it has them already and has yet to move
// to them. Without old, there is nothing to do. Nobody waits for this.
func (c *change) mergeTop(ctx context.Context, key storage.Key) (merged, old []string, err error) {
	p := c.pool
	release, err := p.share(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer func() { release() }()
	rec, err := p.load(key)
	if err != nil || rec.Active == "" || len(rec.Merged) > 0 {
		return nil, rec.Merged, err
	}
	n := p.tooMany(&rec)
	if n == 0 {
		return nil, nil, nil
	}
	if err := p.room(&rec, n); err != nil {
		return nil, nil, err
	}
	// A record of the change's own keeps all these layers, whatever becomes of the
	// volume's snapshots.
	id := pooldir.NewID()
	meta, err := c.dir.MakeVolume()
	if err != nil {
		return nil, nil, err
	}
	meta.Close()
	if err := c.writeRecord(record{Content: rec.Content, Active: id, Layers: rec.Layers}); err != nil {
		return nil, nil, err
	}
	release()
	release = func() {}
	c.unnamed = true
	if rec.Content == storage.Disk {
		err = c.mergeDisks(ctx, id, rec.Layers[:n], rec.Layers[n])
	} else {
		err = c.mergeTrees(ctx, id, rec.Layers, n)
	}
	if err != nil {
		return nil, nil, err
	}
	p.step("layers merged")
	return append([]string{id}, rec.Layers[n:]...), rec.Layers, nil
}

// tooMany tells how many layers, from the top, should become one. The lowest is
// the image, and stays.
func (p *Pool) tooMany(rec *record) int {
	n := len(rec.Layers) - 1
	if rec.Content == storage.Tree {
		if n <= longTree {
			return 0
		}
		return n
	}
	if n <= longDisk {
		return 0
	}
	sizes := make([]int64, n)
	for i, id := range rec.Layers[:n] {
		sizes[i] = p.diskUse(id)
	}
	return run(sizes)
}

// run tells how many disks, of these sizes from the top, are best made one: so many
// that few are left, and those that are no larger than what is on top of them. So
// small ones are merged often and large ones seldom, and all merging together
// copies a block a few times.
func run(sizes []int64) int {
	n, total := 0, int64(0)
	for n < len(sizes) && (n < 2 || len(sizes)-n >= longDisk || sizes[n] <= total) {
		total += sizes[n]
		n++
	}
	return n
}

// diskUse is what the disk of a layer takes up.
func (p *Pool) diskUse(id string) int64 {
	var st unix.Stat_t
	if unix.Fstatat(int(p.root.File.Fd()), inLayer(id, storage.DiskQcow2), &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return 0
	}
	return st.Blocks * 512
}

// room refuses to fill the file system for the sake of speed.
func (p *Pool) room(rec *record, n int) error {
	if rec.Content == storage.Tree {
		return nil // its files are linked
	}
	var need int64
	for _, id := range rec.Layers[:n] {
		need += p.diskUse(id)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.dir, &st); err != nil {
		return err
	}
	if free := int64(st.Bavail) * st.Bsize; free < need+int64(st.Blocks)*st.Bsize/20 {
		return fault.New(fault.Exhausted, "that takes up to %d bytes, and %d are free", need, free)
	}
	return nil
}

// exchange moves a volume to merged layers, or to those it was to move to already.
func (c *change) exchange(ctx context.Context, h *locked, merged []string, live *storage.Live) error {
	p := c.pool
	if h.rec.Content == storage.Tree {
		if live != nil {
			return fault.New(fault.Busy, "its tree is in use")
		}
		rec := h.rec.clone()
		rec.Layers = merged
		return c.save(h, rec)
	}
	running := p.written(h.rec.Active)
	if running && (live == nil || live.RebaseDisk == nil) {
		return fault.New(fault.WrongState, "its disk is in use, and its machine cannot move to another")
	}
	if len(h.rec.Merged) == 0 {
		rec := h.rec.clone()
		rec.Merged = merged
		// From here on the record names all that the disk's header may.
		if err := c.save(h, rec); err != nil {
			return err
		}
	}
	if err := p.rebase(ctx, &h.rec, running, live); err != nil {
		return err
	}
	p.step("disk rebased")
	rec := h.rec.clone()
	if err := p.resolve(&rec); err != nil {
		return err
	}
	return c.save(h, rec)
}

// rebase puts the active disk on the merged one.
func (p *Pool) rebase(ctx context.Context, rec *record, running bool, live *storage.Live) error {
	if running {
		return live.RebaseDisk(ctx, p.path(inLayer(rec.Active, storage.DiskQcow2)), p.path(inLayer(rec.Merged[0], storage.DiskQcow2)))
	}
	f, err := p.root.OpenFile(inLayer(rec.Active, storage.DiskQcow2), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return qcow2.SetBacking(f, beside(rec.Merged[0], storage.DiskQcow2))
}

// beside is how a disk names that of another layer.
func beside(id, name string) string { return path.Join("..", id, name) }

// resolve finds out which layers the active disk stands on: its header says, once
// no machine can change that any more. Snapshots of the same state go along.
func (p *Pool) resolve(rec *record) error {
	if len(rec.Merged) == 0 {
		return nil
	}
	f, err := p.root.Open(inLayer(rec.Active, storage.DiskQcow2))
	if err != nil {
		return fault.New(fault.Unavailable, "the layer %q has lost its disk: %w", rec.Active, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h, err := qcow2.Read(f, st.Size())
	if err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	if h.Backing == beside(rec.Merged[0], storage.DiskQcow2) {
		for i, s := range rec.Snapshots {
			if slices.Equal(s.Layers, rec.Layers) {
				rec.Snapshots[i].Layers = rec.Merged
			}
		}
		rec.Layers = rec.Merged
	}
	rec.Merged = nil
	return nil
}
