package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
)

// openMetadata opens the metadata files of a state of a volume.
func openMetadata(ctx context.Context, v storage.Volume, snapshot string) (*os.Root, error) {
	if snapshot == "" {
		return v.Dir()
	}
	return v.SnapshotDir(ctx, snapshot)
}

// metadata copies the metadata files of a state to dir.
func (r *Request) metadata(ctx context.Context, dir *os.Root, s state) error {
	if err := copyMetadata(ctx, r.Source, s.snapshot, dir); err != nil {
		return err
	}
	return r.edit(s)(dir)
}

// edit changes the metadata files of a state.
func (r *Request) edit(s state) func(dir *os.Root) error {
	return func(dir *os.Root) error {
		switch {
		case r.Edit == nil:
			return nil
		case s.keep == nil:
			return r.Edit(dir, "")
		}
		return r.Edit(dir, s.keep.Name)
	}
}

func copyMetadata(ctx context.Context, v storage.Volume, snapshot string, dir *os.Root) error {
	from, err := openMetadata(ctx, v, snapshot)
	if err != nil {
		return err
	}
	defer from.Close()
	names, err := filesIn(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyFile(from, dir, name); err != nil {
			return fmt.Errorf("metadata file %q: %w", name, err)
		}
	}
	return nil
}

// replaceMetadata puts the metadata files of a state in the place of those that
// the new volume has.
func (r *Request) replaceMetadata(ctx context.Context, made storage.Volume, s state) error {
	dir, err := made.Dir()
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := removeFiles(dir); err != nil {
		return err
	}
	return r.metadata(ctx, dir, s)
}

func removeFiles(dir *os.Root) error {
	names, err := filesIn(dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := dir.Remove(name); err != nil {
			return err
		}
	}
	return nil
}

// Bounds of the metadata files of a volume.
const (
	maxFiles    = 64
	maxFileSize = 128 << 20
)

// filesIn names the regular files in a directory of metadata.
func filesIn(dir *os.Root) ([]string, error) {
	d, err := dir.Open(".")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(maxFiles + 1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(entries) > maxFiles {
		return nil, fault.New(fault.Invalid, "there are more than %d metadata files", maxFiles)
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && e.Name() != storage.DiskRaw && e.Name() != storage.DiskQcow2 {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

func copyFile(from, to *os.Root, name string) (err error) {
	r, err := from.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer r.Close()
	st, err := r.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() > maxFileSize {
		return fault.New(fault.Invalid, "it is not a file of at most %d bytes", maxFileSize)
	}
	w, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode()&fs.ModePerm)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.Close()) }()
	if _, err := io.Copy(w, io.LimitReader(r, maxFileSize)); err != nil {
		return err
	}
	return w.Sync()
}
