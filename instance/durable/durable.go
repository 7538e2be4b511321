// Package durable makes folders whose names survive a power cut. To sync a file, and the
// folder it is in, makes nothing durable while the name of that folder is not.
package durable

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// MkdirAll is os.MkdirAll for a folder that things are kept in: what it made is on disk
// when it returns. It costs nothing where the folder is there already.
func MkdirAll(path string, mode fs.FileMode) error {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return nil
	}
	parent := filepath.Dir(path)
	if parent != path {
		if err := MkdirAll(parent, mode); err != nil {
			return err
		}
	}
	// Another may make it at the same time, and go on before it is on disk: so both sync.
	if err := os.MkdirAll(path, mode); err != nil {
		return err
	}
	return Sync(parent)
}

// Sync makes the names in a folder durable.
func Sync(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
