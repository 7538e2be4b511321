package btrfs

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"brig/instance/fault"
	"brig/instance/size"
	"brig/storage"
	"brig/storage/holders"
	"brig/storage/pooldir"
)

// Driver makes and opens pools: in a folder on btrfs, on a block device, or in a
// file that it makes.
type Driver struct {
	Files  string // folder for the files of pools
	Mounts string // folder that devices and files are mounted in, of a brig's own
}

// ownMedium is the key that tells that a pool has its source for itself.
const ownMedium = "medium"

// Create makes a pool. The key source names a folder or block device; without
// it a file of the key size is made. A device that holds something needs
// force=true.
func (d Driver) Create(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	for key := range config {
		if key != "source" && key != "size" && key != "force" {
			return nil, fault.New(fault.Invalid, "there is no key %q for a btrfs pool; the keys are source, size and force", key)
		}
	}
	st, err := os.Stat(config["source"])
	switch {
	case config["source"] == "":
		return d.makeFile(ctx, r.Name, config)
	case err != nil:
		return nil, fault.New(fault.NotFound, "cannot use the source: %w", err)
	case st.IsDir():
		return d.makeIn(config, r.Name)
	case config["force"] != "true" && d.medium(r.Name, config).brigs():
		return nil, fault.New(fault.AlreadyExists, "there is a pool on %q already; adopt it with --adopt, or lose all that is on it with force=true", config["source"])
	}
	force, err := strconv.ParseBool(config["force"])
	if err != nil && config["force"] != "" {
		return nil, fault.New(fault.Invalid, "force is true or false, not %q", config["force"])
	}
	delete(config, "force")
	config[ownMedium] = "true"
	return config, d.format(ctx, r.Name, config, 0, force)
}

// makeFile makes a pool in a file of its own.
func (d Driver) makeFile(ctx context.Context, name string, config map[string]string) (map[string]string, error) {
	if config["size"] == "" {
		return nil, fault.New(fault.Invalid, "a btrfs pool needs a source (a folder on btrfs, or a block device), or a size for a file: for example size=20GiB")
	}
	bytes, err := size.Parse(config["size"])
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(d.Files, 0o700); err != nil {
		return nil, err
	}
	config["source"], config[ownMedium] = filepath.Join(d.Files, name+".btrfs"), "true"
	if err := d.format(ctx, name, config, bytes, false); err != nil {
		return nil, err
	}
	return config, nil
}

// makeIn makes a pool in a folder.
func (d Driver) makeIn(config map[string]string, name string) (map[string]string, error) {
	source, err := filepath.Abs(config["source"])
	if err != nil {
		return nil, fault.New(fault.Invalid, "cannot use the folder %q: %w", config["source"], err)
	}
	if entries, err := os.ReadDir(source); err == nil && len(entries) > 0 {
		if _, err := os.Lstat(filepath.Join(source, poolFile)); err == nil {
			return nil, fault.New(fault.AlreadyExists, "there is a pool in the folder %q already; adopt it with --adopt, or give another folder", source)
		}
		return nil, fault.New(fault.WrongState, "the folder %q is not empty", source)
	}
	p, err := Open(source, Options{Name: name})
	if err != nil {
		return nil, err
	}
	config["source"] = source
	return config, p.Close()
}

func (d Driver) format(ctx context.Context, name string, config map[string]string, bytes int64, force bool) error {
	medium := d.medium(name, config)
	if err := medium.Format(ctx, bytes, force); err != nil {
		return err
	}
	p, err := medium.Open(ctx, Options{Name: name})
	if err != nil {
		return errors.Join(err, medium.Unmount(ctx))
	}
	return p.Close()
}

func (d Driver) medium(name string, config map[string]string) Medium {
	return Medium{Source: config["source"], At: filepath.Join(d.Mounts, name)}
}

// Adopt gives the configuration of the pool that is in the folder, on the device or
// in the file source, and takes that over from another host.
func (d Driver) Adopt(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	for key := range config {
		if key != "source" {
			return nil, fault.New(fault.Invalid, "to adopt a btrfs pool takes the key source, and not %q", key)
		}
	}
	source, err := filepath.Abs(config["source"])
	if err != nil || config["source"] == "" {
		return nil, fault.New(fault.Invalid, "to adopt a btrfs pool takes its folder, device or file: give source=/path")
	}
	st, err := os.Stat(source)
	if err != nil {
		return nil, fault.New(fault.NotFound, "cannot use the source: %w", err)
	}
	config["source"] = source
	if st.IsDir() {
		return config, nil
	}
	config[ownMedium] = "true"
	medium := d.medium(r.Name, config)
	medium.Adopt = true
	if err := medium.Mount(ctx); err != nil {
		return nil, err
	}
	if st.Mode().IsRegular() {
		config["size"] = strconv.FormatInt(st.Size(), 10)
	}
	return config, nil
}

// Open opens a pool, and mounts what it is on if it has that for itself.
func (d Driver) Open(ctx context.Context, r storage.Record) (storage.Pool, error) {
	o := Options{Name: r.Name, Existing: !r.New}
	var p *Pool
	var err error
	if r.Config[ownMedium] == "" {
		p, err = Open(r.Config["source"], o)
	} else {
		p, err = d.medium(r.Name, r.Config).Open(ctx, o)
	}
	if err != nil {
		return nil, err
	}
	return p, nil
}

// Release lets go of a pool that stays as it is: a medium is unmounted. One that is
// gone needs nothing.
func (d Driver) Release(ctx context.Context, r storage.Record) error {
	if r.Config[ownMedium] == "" {
		return nil
	}
	medium := d.medium(r.Name, r.Config)
	err := unmount(ctx, medium)
	if fault.Is(err, fault.Unavailable) {
		// Its file or device is gone, and with it what could be written.
		if err = unix.Unmount(medium.At, unix.UMOUNT_NOFOLLOW); errors.Is(err, unix.EINVAL) || errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		if errors.Is(err, unix.EBUSY) {
			return fault.New(fault.Busy, "%q is in use%s", medium.At, holders.By(holders.Using(medium.At)))
		}
	}
	if err != nil {
		return err
	}
	if err := os.Remove(medium.At); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Destroy removes what is in a pool, and the file if it is in one. A device
// keeps an empty file system.
func (d Driver) Destroy(ctx context.Context, r storage.Record) error {
	if err := d.empty(ctx, r); err != nil {
		return err
	}
	if r.Config[ownMedium] == "" {
		return os.RemoveAll(r.Config["source"])
	}
	medium := d.medium(r.Name, r.Config)
	if err := unmount(ctx, medium); err != nil {
		return err
	}
	if err := os.Remove(medium.At); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if r.Config["source"] != filepath.Join(d.Files, r.Name+".btrfs") {
		return nil
	}
	if err := os.Remove(r.Config["source"]); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// unmountTime is how long a sweep that is under way may keep a pool in use.
const unmountTime = 10 * time.Second

func unmount(ctx context.Context, m Medium) error {
	ctx, cancel := context.WithTimeout(ctx, unmountTime)
	defer cancel()
	for {
		err := m.Unmount(ctx)
		if !fault.Is(err, fault.Busy) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// empty deletes every volume of a pool.
func (d Driver) empty(ctx context.Context, r storage.Record) error {
	r.New = true // one that is half made, or half destroyed
	pool, err := d.Open(ctx, r)
	if fault.Is(err, fault.NotFound) || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer pool.(*Pool).Close()
	for _, class := range pooldir.Classes() {
		names, err := pool.List(ctx, class)
		if err != nil {
			return err
		}
		for _, name := range names {
			if err := pool.Delete(ctx, storage.Key{Class: class, Name: name}); err != nil {
				return fmt.Errorf("cannot delete volume %q: %w", name, err)
			}
		}
	}
	return pool.Sweep(ctx)
}
