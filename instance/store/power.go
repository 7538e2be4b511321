package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
)

// Power remembers which instances are meant to run: those that somebody started
// and nobody stopped since. It is one empty file an instance, called like its id,
// in a folder of the state: outside of the volumes, so that restoring a snapshot
// does not change it, and on disk, so that a reboot does not.
type Power struct{ dir string }

// Power gives the memory of what is meant to run.
func (d Dirs) Power() Power { return Power{filepath.Join(d.State, "power")} }

// Set remembers, durably, that the instance with this id is meant to run.
func (p Power) Set(id string) error {
	if p.Has(id) {
		return nil
	}
	err := durable.MkdirAll(p.dir, 0o700)
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(filepath.Join(p.dir, id), os.O_CREATE|os.O_WRONLY|unix.O_NOFOLLOW, 0o600); err == nil {
			err = f.Close()
		}
	}
	if err == nil {
		err = durable.Sync(p.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot remember that an instance was started: %w", classed(err))
	}
	return nil
}

// Clear forgets it, durably. To forget it twice is fine.
func (p Power) Clear(id string) error {
	err := os.Remove(filepath.Join(p.dir, id))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = durable.Sync(p.dir)
	}
	if err != nil {
		return fmt.Errorf("cannot remember that an instance was stopped: %w", classed(err))
	}
	return nil
}

// Has tells whether the instance with this id is meant to run.
func (p Power) Has(id string) bool {
	_, err := os.Lstat(filepath.Join(p.dir, id))
	return err == nil
}
