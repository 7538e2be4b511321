package manager

import (
	"context"
	"fmt"
	"io"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/backup"
	"brig/storage/transfer"
)

// An increment holds what has changed since a snapshot that a file before it has, and
// names that by its data. The files of an instance are a chain: one that holds all, and
// increments to it, each of which builds on a snapshot of one before. When a chain is
// imported it is read twice: first to see that all files are whole and that each builds
// on what is there, and only then to make anything of it.

// exportBase says what an export builds on; nil: on nothing.
func (m *Manager) exportBase(ctx context.Context, inst *opened, r BackupRequest) (*transfer.Base, error) {
	if r.Earlier != nil {
		return m.commonBase(ctx, inst, r.Earlier)
	}
	if r.Base == "" {
		return nil, nil
	}
	if err := store.CheckSnapshotName(r.Base); err != nil {
		return nil, err
	}
	if err := hasSnapshot(ctx, inst, r.Base); err != nil {
		return nil, err
	}
	base, err := transfer.BaseOf(ctx, inst.volume, r.Base, m.mountDir())
	return &base, err
}

// commonBase finds the newest state in an earlier file that an instance still has as a
// snapshot.
func (m *Manager) commonBase(ctx context.Context, inst *opened, earlier io.Reader) (*transfer.Base, error) {
	file, head, err := openBackup(stoppable{ctx, earlier})
	if err == nil && contentOfForm(head.Type) != inst.volume.Content() {
		err = fault.New(fault.Invalid, "it holds a %s", head.Type)
	}
	var states []transfer.Told
	if err == nil {
		states, err = transfer.Scan(ctx, contentOfForm(head.Type), file)
	}
	if err != nil {
		return nil, fmt.Errorf("the earlier file: %w", err)
	}
	list, err := inst.volume.Snapshots(ctx)
	if err != nil {
		return nil, err
	}
	for i := len(states) - 1; i >= 0; i-- {
		for _, s := range list {
			if s.Name != states[i].Snapshot || notExported(s) {
				continue
			}
			base, err := transfer.BaseOf(ctx, inst.volume, s.Name, m.mountDir())
			if err != nil {
				return nil, err
			}
			if base.Sum == states[i].Sum {
				return &base, nil
			}
		}
	}
	return nil, fault.New(fault.NotFound, "no snapshot in the earlier file is still there as it was; export all of it, and keep the newest snapshot for the next increment")
}

// contentOfForm is what volumes of instances of a form hold.
func contentOfForm(t instance.Type) storage.Content {
	if t == instance.VirtualMachine {
		return storage.Disk
	}
	return storage.Tree
}

// openBackup begins to read a file, and what it says first.
func openBackup(in io.Reader) (*backup.Reader, backupHead, error) {
	var head backupHead
	file, err := backup.NewReader(in)
	if err != nil {
		return nil, head, err
	}
	if err := file.Record(&head); err != nil {
		if err == io.EOF {
			err = fault.New(fault.Invalid, "there is nothing in it")
		}
		return nil, head, err
	}
	if (head.Base != nil) != file.Increment() {
		return nil, head, fault.New(fault.Invalid, "its first line and its contents do not agree whether it is an increment")
	}
	return file, head, nil
}

// checkChain refuses files that are not a chain.
func checkChain(ctx context.Context, from io.Reader, increments []io.ReadSeeker) error {
	first, ok := from.(io.ReadSeeker)
	if !ok {
		return fault.New(fault.Invalid, "a file that is imported with increments cannot come from a pipe: it is read twice")
	}
	known := map[string]string{} // sums of snapshots by name
	form := instance.Type("")
	for i, f := range append([]io.ReadSeeker{first}, increments...) {
		head, states, err := scanned(ctx, f)
		if err == nil {
			err = links(i, head, form, known)
		}
		if err != nil && i > 0 {
			return fmt.Errorf("increment %d: %w", i, err)
		}
		if err != nil {
			return err
		}
		form = head.Type
		for _, s := range states {
			known[s.Snapshot] = s.Sum
		}
	}
	return nil
}

// links refuses a file that is not the next of a chain of which these snapshots are
// known.
func links(i int, head backupHead, form instance.Type, known map[string]string) error {
	switch {
	case i == 0 && head.Base != nil:
		return fault.New(fault.Invalid, "the first file is an increment, too: it builds on the snapshot %q; give the file before it first", head.Base.Snapshot)
	case i == 0:
		return nil
	case head.Base == nil:
		return fault.New(fault.Invalid, "it is no increment: it holds all of an instance")
	case head.Type != form:
		return fault.New(fault.Invalid, "it is of a %q, and the file before it of a %q", head.Type, form)
	}
	sum, ok := known[head.Base.Snapshot]
	switch {
	case !ok || head.Base.Snapshot == "":
		return fault.New(fault.Invalid, "it builds on the snapshot %q, which is in none of the files before it: one is missing, or they are in another order", head.Base.Snapshot)
	case sum != head.Base.Sum:
		return fault.New(fault.Invalid, "it builds on a snapshot %q with other data than the files before it have: it is of another instance, or of another time", head.Base.Snapshot)
	}
	return nil
}

// scanned reads a file to its end and goes back to where it was.
func scanned(ctx context.Context, f io.ReadSeeker) (head backupHead, states []transfer.Told, err error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return head, nil, fault.New(fault.Invalid, "it cannot be read twice, as files with increments are: %v", err)
	}
	file, head, err := openBackup(stoppable{ctx, f})
	if err == nil {
		states, err = transfer.Scan(ctx, contentOfForm(head.Type), file)
	}
	if err != nil {
		return head, nil, err
	}
	_, err = f.Seek(at, io.SeekStart)
	return head, states, err
}

// openIncrements begins to read increments, which were checked. The head is that of the
// last: it says what the instance is.
func openIncrements(ctx context.Context, files []io.ReadSeeker, head backupHead) (list []transfer.Increment, last backupHead, err error) {
	for i, f := range files {
		file, next, err := openBackup(stoppable{ctx, f})
		if err == nil && (next.Base == nil || next.Type != head.Type) {
			err = fault.New(fault.Invalid, "it was changed while it was read")
		}
		if err != nil {
			return nil, head, fmt.Errorf("increment %d: %w", i+1, err)
		}
		list = append(list, transfer.Increment{Base: *next.Base, From: file})
		head = next
	}
	return list, head, nil
}
