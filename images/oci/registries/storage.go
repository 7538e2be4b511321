package registries

import (
	"errors"
	"io/fs"
	"os"

	"github.com/BurntSushi/toml"

	"brig/instance/fault"
)

// Storage tells where podman and its like keep root's images, and with which driver
// (containers-storage.conf(5)). An empty driver is any.
func Storage() (driver, root string, err error) {
	files := []string{"/etc/containers/storage.conf", "/usr/share/containers/storage.conf"}
	if own := os.Getenv("CONTAINERS_STORAGE_CONF"); own != "" {
		files = []string{own}
	}
	for _, name := range files {
		driver, root, err = storageIn(name)
		if err == nil && root != "" {
			return driver, root, nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", "", fault.New(fault.Invalid, "cannot read %q: %w", name, err)
		}
	}
	return "", "/var/lib/containers/storage", nil
}

func storageIn(name string) (driver, root string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", "", err
	}
	if info.Size() > maxFile {
		return "", "", errors.New("it is too long")
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return "", "", err
	}
	var file struct {
		Storage struct {
			Driver    string `toml:"driver"`
			GraphRoot string `toml:"graphroot"`
		} `toml:"storage"`
	}
	err = toml.Unmarshal(data, &file)
	return file.Storage.Driver, file.Storage.GraphRoot, err
}
