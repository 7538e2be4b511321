package overlay_test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"brig/storage"
	"brig/storage/overlay"
	"brig/storage/storagetest"
)

// driver is this driver for one of its contents.
func driver(name string, content storage.Content) storagetest.Driver {
	return storagetest.Driver{
		Name:    name,
		Content: content,
		Capabilities: storage.Capabilities{
			Contents:     []storage.Content{storage.Tree, storage.Disk},
			InstantClone: true,
		},
		Open: func(place string, step func(string)) (storage.Pool, error) {
			return overlay.Open(place, overlay.Options{Step: step})
		},
		Files: files,
	}
}

// files names all there is in a pool but what overlayfs keeps for itself, which
// comes and goes.
func files(place string) ([]string, error) {
	var names []string
	err := filepath.WalkDir(place, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		names = append(names, path)
		if err == nil && e.Name() == "work" {
			return fs.SkipDir
		}
		return err
	})
	return names, err
}

func TestMain(m *testing.M) {
	storagetest.Main(m, driver("overlay", storage.Tree), driver("qcow2", storage.Disk))
}

func TestOverlay(t *testing.T) { storagetest.Run(t, driver("overlay", storage.Tree)) }

func TestQcow2(t *testing.T) { storagetest.Run(t, driver("qcow2", storage.Disk)) }
