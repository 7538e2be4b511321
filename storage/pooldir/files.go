package pooldir

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
)

// opener is a directory: an os.Root, a Dir or a Held.
type opener interface {
	Open(name string) (*os.File, error)
}

// NewID makes a name that nothing else has.
func NewID() string {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return hex.EncodeToString(b[:])
}

// ValidID keeps damaged records from naming anything that NewID did not make.
func ValidID(id string) bool {
	return len(id) == 16 && strings.Trim(id, "0123456789abcdef") == ""
}

// Names names what is in a directory, in no order.
func Names(dir opener, name string) ([]string, error) {
	d, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return d.Readdirnames(-1)
}

// Files names the regular files in a directory, in no order.
func Files(dir opener, name string) ([]string, error) {
	d, err := dir.Open(name)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	entries, err := d.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Sync makes the names in a directory durable.
func Sync(dir opener, name string) error {
	d, err := dir.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Write writes a file and syncs it. Its name is durable after Sync.
func Write(dir interface {
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
}, name string, b []byte) error {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Sync(), f.Close())
}

// Move moves a file from one open directory to another.
func Move(from opener, name string, to opener, newName string) error {
	src, err := from.Open(".")
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Open(".")
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := unix.Renameat(int(src.Fd()), name, int(dst.Fd()), newName); err != nil {
		return fmt.Errorf("rename %q: %w", name, err)
	}
	return nil
}

// IgnoreMissing makes nothing of an error that says that something is not there.
func IgnoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) || fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}
