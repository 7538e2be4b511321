// Package owner keeps the note of whose a pool is, in a small file beside the pool's
// other files, for the drivers whose pools have a directory. What follows from it
// is decided by whoever opens pools.
package owner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// File is the name of the note in a pool's directory.
const File = "owner.json"

// maxFile is more than any note has.
const maxFile = 64 << 10

// Read gives the owner of the pool in dir, or the zero Owner if it has none.
func Read(dir *os.Root) (o storage.Owner, err error) {
	f, err := dir.OpenFile(File, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return o, nil
	}
	if err != nil {
		return o, fault.New(fault.Unavailable, "cannot tell whose pool it is: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err == nil {
		err = json.Unmarshal(data, &o)
	}
	if err != nil {
		return o, fault.New(fault.Unavailable, "cannot tell whose pool it is: %s is damaged: %w", File, err)
	}
	return o, nil
}

// Write notes the owner of the pool in dir, durably. Whatever happens, there is
// the old note or the new one.
func Write(dir *os.Root, o storage.Owner) error {
	data, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("cannot note whose pool it is: %v", err)
	}
	temporary := File + ".new-" + pooldir.NewID()
	err = pooldir.Write(dir, temporary, append(data, '\n'))
	if err == nil {
		err = dir.Rename(temporary, File)
	}
	if err == nil {
		err = pooldir.Sync(dir, ".")
	} else {
		err = errors.Join(err, pooldir.IgnoreMissing(dir.Remove(temporary)))
	}
	if err != nil {
		return fmt.Errorf("cannot note whose pool it is: %w", err)
	}
	return nil
}

// Mine tells whether a file in a pool's directory is one of this package.
func Mine(name string) bool { return len(name) >= len(File) && name[:len(File)] == File }
