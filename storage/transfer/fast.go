package transfer

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// errSlow tells that two volumes can do nothing for each other that copying their
// files does not.
var errSlow = errors.New("there is no quicker way than to copy")

// mayBeFast tells whether the source's driver knows of a quicker way to some pools,
// which it has for snapshots.
func (r *Request) mayBeFast() bool {
	_, adopts := r.Source.(storage.Adopter)
	_, streams := r.Source.(storage.Streamer)
	return (adopts || streams) && (r.Snapshot != "" || r.Mark.Name != "")
}

// quick tells whether a state of from can be brought to to without reading files.
func quick(from, to storage.Volume) bool {
	if a, ok := to.(storage.Adopter); ok && a.CanAdopt(from) {
		return true
	}
	a, ok1 := from.(storage.Streamer)
	b, ok2 := to.(storage.Streamer)
	return ok1 && ok2 && a.StreamFormat() == b.StreamFormat()
}

// passage is a snapshot on its way from one volume to another.
type passage struct {
	from, to storage.Volume
	snapshot string
	as       storage.Snapshot
	base     string // a snapshot of from that to has as well, for streams; empty: there is none
	baseAs   string // what it is called there
	edit     func(dir *os.Root) error
}

// bring keeps the snapshot in the other volume.
func (p passage) bring(ctx context.Context) error {
	if a, ok := p.to.(storage.Adopter); ok && a.CanAdopt(p.from) {
		return a.Adopt(ctx, p.from, p.snapshot, p.as, p.edit)
	}
	err := p.stream(ctx, p.base, p.baseAs)
	if fault.Is(err, fault.WrongState) && p.base != "" {
		// The two have the base in common, but not by way of a stream.
		return fmt.Errorf("%w: %w", errSlow, err)
	}
	return err
}

// stream sends the snapshot through a pipe.
func (p passage) stream(ctx context.Context, base, baseAs string) error {
	from, to := p.from.(storage.Streamer), p.to.(storage.Streamer)
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sent := make(chan error, 1)
	go func() {
		err := from.Send(ctx, p.snapshot, base, w)
		w.Close()
		sent <- err
	}()
	received := to.Receive(ctx, baseAs, r, p.as)
	// A driver that waits to write into the pipe ends when nobody reads it.
	r.Close()
	cancel()
	failed := <-sent
	if class := fault.Of(received); class != fault.Invalid && class != fault.Internal || failed == nil || errors.Is(failed, context.Canceled) || errors.Is(failed, unix.EPIPE) {
		return received
	}
	return failed // what was received is damaged because it was not all sent
}

// cloned makes the new volume in the pool of the source: a clone, that takes over
// the snapshots.
func (r *Request) cloned(ctx context.Context, states []state) error {
	last := states[len(states)-1]
	made, err := r.Pool.Clone(ctx, storage.Source{Key: r.Source.Key(), Snapshot: last.snapshot}, r.Key, storage.CloneOptions{
		Edit: r.edit(last), Live: r.Live,
	})
	if err != nil {
		return err
	}
	for _, s := range states[:len(states)-1] {
		p := passage{from: r.Source, to: made, snapshot: s.snapshot, as: *s.keep, edit: r.edit(s)}
		if !quick(p.from, p.to) {
			return fault.New(fault.Unsupported, "the pool cannot copy snapshots; leave them behind with --instance-only")
		}
		if err := p.bring(ctx); err != nil {
			return s.wrap(err)
		}
	}
	return nil
}

// fast makes the new volume of snapshots that the drivers bring there. It gives
// errSlow if they cannot.
func (r *Request) fast(ctx context.Context, states []state) error {
	last := states[len(states)-1]
	made, err := r.placeholder(ctx, last)
	if err != nil {
		return err
	}
	if !quick(r.Source, made) {
		return errSlow
	}
	base := ""
	for _, s := range states {
		p := passage{from: r.Source, to: made, snapshot: s.snapshot, base: base, baseAs: base, edit: r.edit(s)}
		switch {
		case s.keep != nil:
			p.as = *s.keep
		case s.snapshot == base:
			continue // it came as a snapshot that is kept
		default:
			p.as = storage.Snapshot{Name: s.snapshot}
		}
		if err := p.bring(ctx); err != nil {
			return s.wrap(err)
		}
		base = s.snapshot
	}
	if err := made.Restore(ctx, last.snapshot); err != nil {
		return err
	}
	from, err := root(ctx, r.Source, last.snapshot)
	if err != nil {
		return err
	}
	to, err := root(ctx, made, "")
	if err != nil {
		return err
	}
	if err := contents(r.Source, r.Dir, false).prove(ctx, from, to); err != nil {
		return err
	}
	if len(states) > 1 && states[len(states)-2].snapshot == last.snapshot {
		return nil
	}
	return made.DeleteSnapshot(ctx, last.snapshot)
}

// placeholder makes a volume with no data, but the metadata files that it is to
// have.
func (r *Request) placeholder(ctx context.Context, last state) (storage.Volume, error) {
	return r.Pool.Create(ctx, r.Key, r.Source.Content(), func(dir *os.Root) error {
		if err := r.metadata(ctx, dir, last); err != nil {
			return err
		}
		if r.Source.Content() == storage.Tree {
			return dir.Mkdir(storage.RootName, 0o755)
		}
		const least = 512
		if r.Source.Root().DiskFormat == qcow2.Raw {
			return dir.WriteFile(storage.DiskRaw, make([]byte, least), 0o600)
		}
		f, err := dir.OpenFile(storage.DiskQcow2, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(qcow2.Create(f, least, "", ""), f.Close())
	})
}
