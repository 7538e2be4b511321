package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/treediff"
)

// Change is one path that differs between two states.
type Change = treediff.Change

// Diff calls each for every path that differs between two states of an instance,
// in order. The instance may be running: the files of a container are looked at as
// they are, a virtual machine's through a snapshot that is dropped afterwards.
func (m *Manager) Diff(ctx context.Context, r DiffRequest, each func(Change) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot compare states of %q: %w", r.Name, err)
		}
	}()
	for _, s := range []string{r.From, r.To} {
		if err := store.CheckSnapshotName(s); s != "" && err != nil {
			return err
		}
	}
	inst, err := m.open(ctx, r.Name)
	if err != nil {
		return err
	}
	if r.From == "" {
		list, err := inst.volume.Snapshots(ctx)
		if err != nil {
			return err
		}
		if list = visible(list); len(list) == 0 {
			return fault.New(fault.NotFound, "it has no snapshots; take one with brig snapshot create %s", r.Name)
		}
		r.From = list[len(list)-1].Name
	}
	from, doneFrom, err := m.lookInto(ctx, inst, r.From)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, doneFrom()) }()
	var to *os.File
	var doneTo func() error
	if r.To == "" {
		to, doneTo, err = m.lookAtNow(ctx, inst)
	} else {
		to, doneTo, err = m.lookInto(ctx, inst, r.To)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, doneTo()) }()
	return treediff.Walk(ctx, int(from.Fd()), int(to.Fd()), each)
}

// lookInto gives the root directory of a snapshot's files, until done is called.
func (m *Manager) lookInto(ctx context.Context, inst *opened, snapshot string) (dir *os.File, done func() error, err error) {
	if err := hasSnapshot(ctx, inst, snapshot); err != nil {
		return nil, nil, err
	}
	root, err := inst.volume.SnapshotRoot(ctx, snapshot)
	if err != nil {
		return nil, nil, err
	}
	return m.cfg.Looker.Open(ctx, root)
}

// lookAtNow looks at an instance as it is. A disk at rest is kept from being
// used meanwhile; one in use changes too much under one's eyes.
func (m *Manager) lookAtNow(ctx context.Context, inst *opened) (dir *os.File, done func() error, err error) {
	if inst.volume.Content() == storage.Tree {
		return m.cfg.Looker.Open(ctx, inst.volume.Root())
	}
	inst, held, err := m.openLocked(ctx, "look into", inst.spec.Name)
	if err != nil {
		return nil, nil, err
	}
	end := func() error { held.Release(); return nil }
	defer func() {
		if err != nil {
			err = errors.Join(err, end())
		}
	}()
	var root storage.Root
	if m.state(inst.spec).Status == instance.Stopped {
		root = inst.volume.Root()
	} else {
		var drop func() error
		if root, drop, err = m.passingSnapshot(ctx, inst); err != nil {
			return nil, nil, err
		}
		end = func() error { defer held.Release(); return drop() }
	}
	dir, shut, err := m.cfg.Looker.Open(ctx, root)
	if err != nil {
		return nil, nil, err
	}
	return dir, func() error { return errors.Join(shut(), end()) }, nil
}

// passingTime is when a snapshot for a look that should be gone goes by itself.
const passingTime = time.Hour

// passingPrefix begins the names of snapshots that are there for as long as a command
// takes.
const passingPrefix = "passing-"

// passing takes a snapshot of an instance, not of its volumes: of those nobody wants
// to see anything. Drop, which may be called without the instance's lock, deletes it.
// If this process dies, it expires after a time.
func (m *Manager) passing(ctx context.Context, inst *opened, what string, after time.Duration) (name string, drop func() error, err error) {
	name, err = m.takeSnapshot(ctx, inst, passingPrefix+newID(), SnapshotRequest{
		Description: "for " + what + " of the present state", ExpiresAt: m.cfg.Clock().Add(after), alone: true,
	})
	if err != nil {
		return "", nil, err
	}
	return name, func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		if err := inst.volume.DeleteSnapshot(ctx, name); !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	}, nil
}

// passingSnapshot is passing for a look at its files.
func (m *Manager) passingSnapshot(ctx context.Context, inst *opened) (storage.Root, func() error, error) {
	name, drop, err := m.passing(ctx, inst, "a look", passingTime)
	if err != nil {
		return storage.Root{}, nil, err
	}
	root, err := inst.volume.SnapshotRoot(ctx, name)
	if err != nil {
		return storage.Root{}, nil, errors.Join(err, drop())
	}
	return root, drop, nil
}

// subject is what a mounted snapshot is called, whatever its instance is renamed
// to.
func subject(inst *opened, snapshot string) string { return inst.spec.ID + "/" + snapshot }

// MountSnapshot shows the files of a snapshot at a directory of the host, where
// they stay until UnmountSnapshot.
func (m *Manager) MountSnapshot(ctx context.Context, name, snapshot, target string) error {
	if err := store.CheckSnapshotName(snapshot); err != nil {
		return err
	}
	inst, held, err := m.openLocked(ctx, "mount a snapshot of", name)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := hasSnapshot(ctx, inst, snapshot); err != nil {
		return err
	}
	root, err := inst.volume.SnapshotRoot(ctx, snapshot)
	if err == nil {
		err = m.cfg.Looker.Mount(ctx, root, target, subject(inst, snapshot))
	}
	if err != nil {
		return fmt.Errorf("cannot mount snapshot %q of %q: %w", snapshot, name, err)
	}
	return nil
}

// UnmountSnapshot takes away what MountSnapshot put at a directory.
func (m *Manager) UnmountSnapshot(ctx context.Context, target string) error {
	return m.cfg.Looker.Unmount(ctx, target)
}

// noneMounted refuses to do something to an instance of which somebody looks at a
// snapshot: what is shown would go.
func (m *Manager) noneMounted(spec *instance.Spec, doing string) error {
	where, err := m.cfg.Looker.Mounted(spec.ID + "/")
	if err == nil && where != "" {
		err = fault.New(fault.Busy, "a snapshot of it is mounted at %q; unmount it first: brig snapshot unmount %s", where, where)
	}
	if err != nil {
		return fmt.Errorf("cannot %s %q: %w", doing, spec.Name, err)
	}
	return nil
}

// notMounted refuses to do something to a snapshot that somebody looks at.
func (m *Manager) notMounted(inst *opened, doing, snapshot string) error {
	where, err := m.cfg.Looker.Mounted(subject(inst, snapshot))
	if err == nil && where != "" {
		err = fault.New(fault.Busy, "it is mounted at %q; unmount it first: brig snapshot unmount %s", where, where)
	}
	if err != nil {
		return fmt.Errorf("cannot %s snapshot %q of %q: %w", doing, snapshot, inst.spec.Name, err)
	}
	return nil
}
