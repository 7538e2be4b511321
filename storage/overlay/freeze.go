package overlay

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/pooldir"
	"brig/storage/qcow2"
	"brig/storage/treecopy"
)

// frozen is the present state of a volume as layers that nobody writes.
type frozen struct {
	layers  []string // the state, top first
	rec     record   // what the volume's record has to become for that
	changed bool     // whether it differs from the record now
	release func()   // lets Sweep collect layers again, once a record names these
}

// freeze makes the present state of a volume into layers. Capture copies the
// metadata files that belong to it.
func (c *change) freeze(ctx context.Context, h *locked, live *storage.Live, capture func() error) (*frozen, error) {
	if err := capture(); err != nil {
		return nil, err
	}
	switch {
	case h.rec.Flat && live == nil:
		return c.copyTree(ctx, h, still())
	case h.rec.Active == "" || live == nil:
		return c.freezeIdle(ctx, h)
	case h.rec.Content == storage.Tree:
		return c.copyTree(ctx, h, live)
	}
	return c.switchDisk(ctx, h, live)
}

// freezeIdle turns the active layer of a volume that is not in use into a frozen
// one, if something was changed in it.
func (c *change) freezeIdle(ctx context.Context, h *locked) (_ *frozen, err error) {
	p := c.pool
	if err := p.idle(&h.rec); err != nil {
		return nil, err
	}
	f := &frozen{layers: h.rec.Layers, rec: h.rec.clone()}
	if f.release, err = p.share(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.release()
		}
	}()
	if h.rec.Active == "" {
		return f, nil
	}
	same, err := p.untouched(&h.rec)
	if err != nil || same {
		return f, err
	}
	f.layers = append([]string{h.rec.Active}, h.rec.Layers...)
	if f.layers, err = c.flatten(ctx, f.rec.Content, f.layers); err != nil {
		return nil, err
	}
	f.rec.Layers, f.changed = slices.Clone(f.layers), true
	f.rec.Active, err = c.newActive(f.rec.Content, f.layers)
	return f, err
}

// copyTree copies the active layer of a tree in use, while its writers stand
// still: overlayfs does not allow to put another layer under a mounted tree. The
// volume itself goes on as it is.
func (c *change) copyTree(ctx context.Context, h *locked, live *storage.Live) (_ *frozen, err error) {
	p := c.pool
	if live.Freeze == nil {
		return nil, fault.New(fault.WrongState, "it is in use, and its writers cannot be stopped")
	}
	f := &frozen{layers: h.rec.Layers, rec: h.rec.clone()}
	copied, err := c.copyFrozen(ctx, h, live)
	if err != nil {
		return nil, err
	}
	if copied {
		// Names and data of the copy, before a record relies on them.
		if err := unix.Syncfs(int(c.dir.File.Fd())); err != nil {
			return nil, err
		}
	}
	p.step("tree copied")
	if f.release, err = p.share(ctx); err != nil || !copied {
		return f, err
	}
	id := pooldir.NewID()
	if err := c.putLayer(id); err != nil {
		f.release()
		return nil, err
	}
	p.step("layer in place")
	f.layers = append([]string{id}, h.rec.Layers...)
	if len(f.layers) > maxTreeLayers {
		f.release()
		return nil, fault.New(fault.Exhausted, "it would stand on %d layers; stop it and take a snapshot, which merges them", len(f.layers))
	}
	return f, pooldir.Sync(p.root, layersDir)
}

// copyFrozen copies the tree and stops the writers for what they changed last. It
// tells whether there was anything to copy.
func (c *change) copyFrozen(ctx context.Context, h *locked, live *storage.Live) (copied bool, err error) {
	for _, name := range []string{newLayer, path.Join(newLayer, rootName)} {
		if err := c.dir.Mkdir(name, 0o755); err != nil {
			return false, err
		}
	}
	from := c.pool.path(layersDir, h.rec.Active, rootName)
	copy := treecopy.NewAhead(from, c.pool.path(c.dir.Path(newLayer, rootName)))
	if size, err := treecopy.Size(ctx, from); err != nil || size > aheadFrom {
		if err := copy.Copy(ctx); err != nil {
			return false, err
		}
	}
	thaw, err := live.Freeze(ctx)
	if err != nil {
		return false, fmt.Errorf("freezing its writers: %w", err)
	}
	defer func() { err = errors.Join(err, thaw()) }()
	if !h.rec.Flat {
		same, err := c.pool.untouched(&h.rec)
		if err != nil || same {
			return false, err
		}
	}
	return true, copy.Finish(ctx)
}

// aheadFrom is the size from which a tree is copied while its writers go on, before
// they are stopped for what they changed meanwhile.
const aheadFrom = 4 << 20

// switchDisk makes the machine that uses a disk go on in an empty one over it.
// The record names the new disk before the machine does so, because from then on
// it holds data, whatever becomes of this program.
func (c *change) switchDisk(ctx context.Context, h *locked, live *storage.Live) (_ *frozen, err error) {
	p := c.pool
	if live.SwitchDisk == nil {
		return nil, fault.New(fault.WrongState, "it is in use, and its machine cannot go on in another disk")
	}
	layers := append([]string{h.rec.Active}, h.rec.Layers...)
	if err := c.announce(ctx, h, layers); err != nil {
		return nil, err
	}
	if err := live.SwitchDisk(ctx, p.path(layersDir, h.rec.Next, storage.DiskQcow2)); err != nil {
		return nil, errors.Join(fmt.Errorf("switching its disk: %w", err), p.settle(context.WithoutCancel(ctx), h))
	}
	p.step("disk switched")
	rec := h.rec.clone()
	// What it was told before it has done, or never will.
	if err := p.resolve(&rec); err != nil {
		return nil, err
	}
	layers = append([]string{rec.Active}, rec.Layers...)
	f := &frozen{layers: layers, rec: rec, changed: true}
	f.rec.Active, f.rec.Next, f.rec.Layers = h.rec.Next, "", slices.Clone(layers)
	// The machine has moved on, and so must the record, even if the caller gave up.
	f.release, err = p.share(context.WithoutCancel(ctx))
	return f, err
}

// announce makes the next disk and notes it in the record.
func (c *change) announce(ctx context.Context, h *locked, layers []string) error {
	release, err := c.pool.share(ctx)
	if err != nil {
		return err
	}
	defer release()
	rec := h.rec.clone()
	if rec.Next, err = c.newActive(rec.Content, layers); err != nil {
		return err
	}
	return c.save(h, rec)
}

// settle finds out what became of a switch of disks that was not finished, by
// asking the kernel which file is being written. If the old one is not, then the
// machine has switched or ended, and the new one is right in both cases: over the
// old one and empty, it shows the old one. If the old one is, the new one is
// forgotten, unless the machine holds it open and may yet switch.
//
// A move to merged layers that was not finished is settled when no machine writes
// to the disk. Until then both are kept, since a machine may still do what a
// program told it that has died since.
func (p *Pool) settle(ctx context.Context, h *locked) error {
	if h.rec.Next == "" && len(h.rec.Merged) == 0 {
		return nil
	}
	rec := h.rec.clone()
	if !p.written(h.rec.Active) {
		if err := p.resolve(&rec); err != nil {
			return err
		}
		if rec.Next != "" {
			rec.Layers = append([]string{rec.Active}, rec.Layers...)
			rec.Active, rec.Next = rec.Next, ""
		}
		return p.save(ctx, h, rec)
	}
	if rec.Next == "" {
		return nil
	}
	rec.Next = ""
	if p.written(h.rec.Next) {
		return fault.New(fault.WrongState, "its machine was told to go on in another disk and did not yet; try again, or restart the machine")
	}
	unused := h.rec.Next
	if err := p.save(ctx, h, rec); err != nil {
		return err
	}
	return p.discard(path.Join(layersDir, unused))
}

// idle refuses a disk that a machine writes to. (Nobody can tell of a tree; the
// manager knows.)
func (p *Pool) idle(rec *record) error {
	if rec.Content == storage.Disk && rec.Active != "" && p.written(rec.Active) {
		disk := p.path(inLayer(rec.Active, storage.DiskQcow2))
		return fault.New(fault.WrongState, "a running machine uses its disk%s; stop it first", holders.By(holders.Using(disk)))
	}
	return nil
}

// written tells whether a QEMU has the disk of a layer open for writing.
func (p *Pool) written(id string) bool {
	f, err := p.root.Open(inLayer(id, storage.DiskQcow2))
	if err != nil {
		return false
	}
	defer f.Close()
	return qcow2.Written(f)
}
