package btrfs

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/instance/size"
	"brig/storage"
	"brig/storage/pooldir"
)

// Keys of a plan. They are not kept in the configuration of the pool.
const (
	keyMade = "volatile.made" // what is made: in a folder, a device, a file
	keyUUID = "volatile.uuid" // of the file system on a device or in a file
)

// What is made.
const (
	madeFolder = "folder" // in one that was there and empty
	madeDevice = "device"
	madeFile   = "file"
)

// Plan tells what Create makes. The key source names a folder or block device;
// without it a file of the key size is made. A device that holds something needs
// force=true.
func (d Driver) Plan(_ context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config == nil {
		config = map[string]string{}
	}
	for key := range config {
		if key != "source" && key != "size" && key != "force" {
			return nil, fault.New(fault.Invalid, "there is no key %q for a btrfs pool; the keys are source, size and force", key)
		}
	}
	if _, err := strconv.ParseBool(config["force"]); err != nil && config["force"] != "" {
		return nil, fault.New(fault.Invalid, "force is true or false, not %q", config["force"])
	}
	st, err := os.Stat(config["source"])
	switch {
	case config["source"] == "":
		return config, d.planFile(r.Name, config)
	case err != nil:
		return nil, fault.New(fault.NotFound, "cannot use the source: %w", err)
	case st.IsDir():
		config[keyMade] = madeFolder
		config["source"], _, err = pooldir.CheckFolder(config["source"], poolFile)
		return config, err
	case config["force"] != "true" && d.medium(r.Name, config).brigs():
		return nil, fault.New(fault.AlreadyExists, "there is a pool on %q already; adopt it with --adopt, or lose all that is on it with force=true", config["source"])
	}
	config[keyMade], config[keyUUID], config[ownMedium] = madeDevice, newUUID(), "true"
	return config, nil
}

// planFile plans a file of the pool's own.
func (d Driver) planFile(name string, config map[string]string) error {
	if config["size"] == "" {
		return fault.New(fault.Invalid, "a btrfs pool needs a source (a folder on btrfs, or a block device), or a size for a file: for example size=20GiB")
	}
	bytes, err := size.Parse(config["size"])
	if err != nil {
		return err
	}
	if bytes < minSize {
		return fault.New(fault.Invalid, "%d bytes are too few: it needs at least %d", bytes, minSize)
	}
	file := d.file(name)
	if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
		return fault.New(fault.AlreadyExists, "there is a file %q already; adopt the pool in it with source=%s --adopt, or delete it", file, file)
	}
	config["source"], config[ownMedium] = file, "true"
	config[keyMade], config[keyUUID] = madeFile, newUUID()
	return nil
}

// file is where the file of a pool is that has one of its own.
func (d Driver) file(name string) string { return filepath.Join(d.Files, name+".btrfs") }

// newUUID is a random one, as mkfs.btrfs takes it.
func newUUID() string {
	id := pooldir.NewID() + pooldir.NewID()
	return id[:8] + "-" + id[8:12] + "-" + id[12:16] + "-" + id[16:20] + "-" + id[20:32]
}

// Create makes what was planned.
func (d Driver) Create(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config[keyMade] == "" {
		var err error
		if config, err = d.Plan(ctx, r); err != nil {
			return nil, err
		}
	}
	var err error
	switch config[keyMade] {
	case madeFolder:
		var p *Pool
		if p, err = Open(config["source"], Options{Name: r.Name}); err == nil {
			err = p.Close()
		}
	default:
		err = d.format(ctx, r.Name, config)
	}
	if err != nil {
		return nil, err
	}
	delete(config, "force")
	delete(config, keyMade)
	delete(config, keyUUID)
	return config, nil
}

// format makes a file system, and a pool in it.
func (d Driver) format(ctx context.Context, name string, config map[string]string) error {
	var bytes int64
	if config[keyMade] == madeFile {
		var err error
		if bytes, err = size.Parse(config["size"]); err != nil {
			return err
		}
		if err := durable.MkdirAll(d.Files, 0o700); err != nil {
			return err
		}
	}
	medium := d.medium(name, config)
	medium.UUID = config[keyUUID]
	if err := medium.Format(ctx, bytes, config["force"] == "true"); err != nil {
		return err
	}
	p, err := medium.Open(ctx, Options{Name: name})
	if err == nil {
		return p.Close()
	}
	return errors.Join(err, d.Abandon(context.WithoutCancel(ctx), storage.Record{Name: name, Config: config}))
}

// Abandon removes what was made of a plan: what is in a folder that was empty, a
// file, and from a device what makes it a file system.
func (d Driver) Abandon(ctx context.Context, r storage.Record) error {
	source := r.Config["source"]
	if r.Config[keyMade] == madeFolder {
		return pooldir.AbandonFolder(source, false, parts(), isPoolFile)
	}
	if err := d.Release(ctx, r); err != nil {
		return err
	}
	if r.Config[keyMade] == madeFile {
		return pooldir.IgnoreMissing(os.Remove(source))
	}
	return wipe(source, r.Config[keyUUID])
}

// wipe takes the signs of a btrfs from a device, if it is the one with this uuid. A
// device that is another's is only looked at.
func wipe(device, uuid string) error {
	id, err := hex.DecodeString(strings.ReplaceAll(uuid, "-", ""))
	if err != nil {
		return err
	}
	f, err := os.Open(device)
	if err != nil {
		return pooldir.IgnoreMissing(err)
	}
	ours := isMade(f, superAt, id)
	if err := f.Close(); err != nil || !ours {
		return err
	}
	if f, err = os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0); err != nil {
		return err
	}
	defer f.Close()
	// The first one last: it tells that there is something to do.
	for _, at := range []int64{256 << 30, 64 << 20, superAt} {
		if !isMade(f, at, id) {
			continue
		}
		if _, err := f.WriteAt(make([]byte, superSize), at); err != nil {
			return err
		}
	}
	return f.Sync()
}

// isMade tells whether there is a superblock of the file system with an id.
func isMade(f *os.File, at int64, id []byte) bool {
	const uuidAt = 0x20
	super := make([]byte, superSize)
	_, err := f.ReadAt(super, at)
	return err == nil && bytes.Equal(super[uuidAt:uuidAt+len(id)], id)
}
