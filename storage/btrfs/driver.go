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
	return pooldir.IgnoreMissing(os.Remove(medium.At))
}

// Destroy removes what is in a pool, and the file if it is in one. A device
// keeps an empty file system.
func (d Driver) Destroy(ctx context.Context, r storage.Record) error {
	if err := d.empty(ctx, r); err != nil {
		return err
	}
	if r.Config[ownMedium] == "" {
		return pooldir.RemoveFolder(ctx, r.Config["source"], poolFile)
	}
	if err := d.Release(ctx, r); err != nil {
		return err
	}
	if r.Config["source"] != d.file(r.Name) {
		return nil
	}
	return pooldir.IgnoreMissing(os.Remove(r.Config["source"]))
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
