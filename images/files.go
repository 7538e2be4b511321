package images

import (
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"brig/instance/durable"
	"brig/instance/fault"
)

// checkVersion looks at the version alone first: the rest of a newer file may
// not decode at all. What is damaged is found by the caller.
func checkVersion(data []byte) error {
	var v struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(data, &v) == nil && v.Version > RecordVersion {
		return fault.New(fault.Unsupported, "it has format %d and this brig knows up to %d: use the newer brig that made it", v.Version, RecordVersion)
	}
	return nil
}

func readFile(path string) ([]byte, time.Time, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, time.Time{}, classify(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, time.Time{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxRecord))
	return data, info.ModTime(), err
}

// write replaces a file, whole and durably.
func (s *Store) write(path string, data []byte, at time.Time) error {
	lock, f, err := s.temporary()
	if err != nil {
		return err
	}
	defer lock.Discard()
	defer f.Close()
	_, err = f.Write(data)
	if err == nil && !at.IsZero() {
		err = os.Chtimes(f.Name(), time.Time{}, at)
	}
	if err == nil {
		err = publish(f, path)
	}
	if err != nil {
		os.Remove(f.Name())
		return classify(err)
	}
	return nil
}

// publish gives a finished temporary file its place, durably.
func publish(f *os.File, path string) error {
	if err := f.Sync(); err != nil {
		return err
	}
	if err := place(f, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// place gives a finished temporary file its place.
func place(f *os.File, path string) error {
	if err := durable.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return classify(err)
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return classify(err)
	}
	defer d.Close()
	return d.Sync()
}
