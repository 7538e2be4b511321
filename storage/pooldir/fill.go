package pooldir

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/qcow2"
)

// CheckFilled finds the data that Create's fill made in dir, and judges them.
func CheckFilled(dir *os.Root, content storage.Content) (name string, err error) {
	var found []string
	for _, name := range []string{storage.RootName, storage.DiskRaw, storage.DiskQcow2} {
		if _, err := dir.Lstat(name); err == nil {
			found = append(found, name)
		}
	}
	if len(found) != 1 || (content == storage.Tree) != (found[0] == storage.RootName) {
		return "", fault.New(fault.Invalid, "a volume of content %q was given %q", content, found)
	}
	name = found[0]
	if content == storage.Disk {
		return name, checkDisk(dir, name)
	}
	if st, err := dir.Lstat(name); err != nil || !st.IsDir() {
		return "", fault.New(fault.Invalid, "the tree %q is not a directory", name)
	}
	return name, nil
}

// checkDisk refuses disk files that are not what their name says, or that could
// make QEMU open another file. A raw disk is filled up to whole sectors.
func checkDisk(dir *os.Root, name string) error {
	if name == storage.DiskQcow2 {
		_, err := qcow2.Check(dir, name)
		return err
	}
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Size() == 0 {
		return fault.New(fault.Invalid, "the disk %q is empty or not a file", name)
	}
	if st.Size()%512 == 0 {
		return nil
	}
	f, err := dir.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate((st.Size()+511)/512*512), f.Close())
}

// IsDisk tells whether a file has a name of a disk.
func IsDisk(name string) bool { return name == storage.DiskRaw || name == storage.DiskQcow2 }

// Bounds of the metadata files of a volume.
const (
	maxFiles    = 64
	maxFileSize = 128 << 20
)

// CopyMeta copies the metadata files in the directory from into the directory to,
// which has none of them. The caller makes them durable, when all that belongs to a
// change is written.
func CopyMeta(from, to *os.Root) error {
	names, err := Meta(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyFile(from, to, name); err != nil {
			return fmt.Errorf("metadata file %q: %w", name, err)
		}
	}
	return nil
}

// Meta names the metadata files in a directory: the regular files that are not a
// disk.
func Meta(dir opener) ([]string, error) {
	names, err := Files(dir, ".")
	if err != nil {
		return nil, err
	}
	names = slices.DeleteFunc(names, IsDisk)
	if len(names) > maxFiles {
		return nil, fault.New(fault.Invalid, "there are %d metadata files, and at most %d are allowed", len(names), maxFiles)
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
	w, err := to.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, st.Mode().Perm())
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, maxFileSize))
	return errors.Join(err, w.Close())
}
