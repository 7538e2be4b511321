package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"brig/instance"
	"brig/instance/fault"

	"golang.org/x/sys/unix"
)

// MaxFile bounds the files that are read whole; none of ours comes near.
const MaxFile = 1 << 20

// WriteFile writes a file below root so that, whatever happens, it holds either
// what it held before or data, and that it is on disk when WriteFile returns.
func WriteFile(root *os.Root, name string, data []byte) error {
	if made, err := createFile(root, name, data); made || err != nil {
		return err
	}
	tmp := name + ".new"
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", name, classed(err))
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = root.Rename(tmp, name)
	}
	if err == nil {
		err = syncDir(root, filepath.Dir(name))
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("cannot write %s: %w", name, classed(err)), ignoreMissing(root.Remove(tmp)))
	}
	return err
}

// createFile is WriteFile for a name that is not there yet: who is killed in it
// leaves nothing. It makes no file where there is one, or where the file system
// knows no files without a name.
func createFile(root *os.Root, name string, data []byte) (made bool, err error) {
	dir, err := root.Open(filepath.Dir(name))
	if err != nil {
		return false, fmt.Errorf("cannot write %s: %w", name, classed(err))
	}
	defer dir.Close()
	fd, err := unix.Openat(int(dir.Fd()), ".", unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return false, nil
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), int(dir.Fd()), filepath.Base(name), unix.AT_SYMLINK_FOLLOW)
	}
	switch {
	case err == nil:
		err = dir.Sync()
	case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENOENT): // the latter without /proc
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("cannot write %s: %w", name, classed(err))
	}
	return true, nil
}

// ReadFile reads a regular file below root, at most 1 MiB.
func ReadFile(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err == nil && len(data) > MaxFile {
		err = fault.New(fault.Invalid, "%s is larger than %d bytes", name, MaxFile)
	}
	return data, err
}

// SpecFile is the name of the file that holds a Spec in a volume.
const SpecFile = "instance.json"

// LoadSpec reads instance.json in a volume's directory. The name of the volume
// is the truth about the instance's name.
func LoadSpec(root *os.Root, name string) (*instance.Spec, error) {
	data, err := ReadFile(root, SpecFile)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration of instance %q: %w", name, err)
	}
	return ParseSpec(data, name)
}

// ParseSpec understands what instance.json of the instance called name says.
func ParseSpec(data []byte, name string) (*instance.Spec, error) {
	spec := new(instance.Spec)
	err := json.Unmarshal(data, spec)
	if err != nil {
		// A newer brig may have changed what a field holds.
		var head struct{ Version int }
		if json.Unmarshal(data, &head) == nil {
			spec.Version = head.Version
		}
	}
	switch {
	case spec.Version > instance.SpecVersion:
		return nil, fault.New(fault.Unsupported, "cannot use instance %q: its %s has format %d, made by a newer brig; this one knows formats up to %d", name, SpecFile, spec.Version, instance.SpecVersion)
	case err != nil:
		return nil, fmt.Errorf("cannot read the configuration of instance %q: %s is damaged: %v", name, SpecFile, err)
	case !ValidID(spec.ID):
		return nil, fmt.Errorf("cannot read the configuration of instance %q: %s is damaged: bad id %q", name, SpecFile, spec.ID)
	}
	spec.Name = name
	return spec, nil
}

// SaveSpec writes instance.json durably.
func SaveSpec(root *os.Root, spec *instance.Spec) error {
	data, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the configuration of instance %q: %v", spec.Name, err)
	}
	return WriteFile(root, SpecFile, append(data, '\n'))
}

// ValidID tells whether id is one of an instance: 16 hex digits.
func ValidID(id string) bool {
	for i := range len(id) {
		if c := id[i]; !isDigit(c) && (c < 'a' || c > 'f') {
			return false
		}
	}
	return len(id) == 16
}

func syncDir(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// classed gives the class of a full disk and of a read-only file system.
func classed(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fault.Wrap(fault.Exhausted, err)
	case errors.Is(err, unix.EROFS):
		return fault.Wrap(fault.Unavailable, err)
	}
	return err
}
