package zfs

import (
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	gozfs "github.com/mistifyio/go-zfs/v4"

	"brig/instance/durable"
	"brig/instance/fault"
	"brig/storage"
	"brig/storage/pooldir"
)

// propMaker is on the first dataset of a zpool that Create made: the identity of the
// pool that it was made for.
const propMaker = "brig:made-for"

// Plan tells what Create makes where source says: a pool in the dataset of that name,
// which is made unless it is there and empty, or was a pool; in a new zpool on a
// device; in a new zpool in a file of the given size, whose place may be left to brig.
func (d Driver) Plan(ctx context.Context, r storage.Record) (map[string]string, error) {
	config := maps.Clone(r.Config)
	if config == nil {
		config = map[string]string{}
	}
	for key := range config {
		if key != keySource && key != keySize && key != keyZpool {
			return nil, fault.New(fault.Invalid, "there is no key %q for a zfs pool; the keys are %s, %s and %s", key, keySource, keySize, keyZpool)
		}
	}
	if err := installed(); err != nil {
		return nil, err
	}
	made, source := madeDataset, config[keySource]
	if source == "" || strings.HasPrefix(source, "/") {
		var err error
		if made, err = d.planZpool(r.Name, config); err != nil {
			return nil, err
		}
		source = config[keyZpool]
	} else if config[keySize] != "" || config[keyZpool] != "" {
		return nil, fault.New(fault.Invalid, "the keys %s and %s are for a zpool to be made, and %q is one or is in one", keySize, keyZpool, source)
	}
	if !strings.Contains(source, "/") {
		source += "/" + childOfZpool
	}
	if made == madeDataset {
		if err := checkDataset(source); err != nil {
			return nil, err
		}
		if _, err := look(ctx, source); err == nil {
			made = madeNothing
		} else if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
	}
	config[keyDataset], config[keyUUID], config[keyMade] = source, pooldir.NewID()+pooldir.NewID(), made
	return config, nil
}

// planZpool plans a zpool on the device or in the file that source names, and
// completes the configuration.
func (d Driver) planZpool(pool string, config map[string]string) (made string, err error) {
	name := config[keyZpool]
	if name == "" {
		name = pool
	}
	if err := checkDataset(name); err != nil || strings.Contains(name, "/") || reserved(name) {
		return "", fault.New(fault.Invalid, "cannot call a zpool %q: give another name with %s", name, keyZpool)
	}
	if _, err := gozfs.GetZpool(name); err == nil {
		return "", fault.New(fault.AlreadyExists, "there is a zpool %q already: give another name with %s, or source=%s to use it", name, keyZpool, name)
	}
	source := config[keySource]
	if source == "" {
		source = filepath.Join(d.Files, pool+".zpool")
	}
	config[keySource], config[keyZpool] = source, name
	st, err := os.Stat(source)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return madeFile, nil
	case err != nil:
		return "", err
	case st.Mode().Type() != fs.ModeDevice:
		return "", fault.New(fault.WrongState, "%q is there and is not a device: give a device, or a path where there is nothing yet", source)
	case config[keySize] != "":
		return "", fault.New(fault.Invalid, "a size makes no sense for the device %q", source)
	}
	return madeZpool, nil
}

// Create makes what was planned.
func (d Driver) Create(ctx context.Context, r storage.Record) (_ map[string]string, err error) {
	config := maps.Clone(r.Config)
	if config[keyMade] == "" {
		if config, err = d.Plan(ctx, r); err != nil {
			return nil, err
		}
	}
	made := config[keyMade]
	undo := func() error { return nil }
	if made == madeZpool || made == madeFile {
		if err := d.createZpool(ctx, config); err != nil {
			return nil, err
		}
		undo = func() error { return destroyZpool(config[keyZpool], made, config[keySource]) }
	}
	uuid, wasThere, err := makeAs(ctx, config[keyUUID], config[keyDataset], d.mounts(r.Name))
	if err != nil {
		return nil, errors.Join(err, undo())
	}
	if made == madeDataset && wasThere {
		config[keyMade] = madeNothing
	}
	config[keyUUID] = uuid
	return config, nil
}

// createZpool makes the zpool that was planned.
func (d Driver) createZpool(ctx context.Context, config map[string]string) error {
	source, made := config[keySource], config[keyMade]
	if made == madeFile {
		if filepath.Dir(source) == filepath.Clean(d.Files) {
			if err := durable.MkdirAll(d.Files, 0o700); err != nil {
				return err
			}
		}
		if err := makeFile(source, config[keySize]); err != nil {
			return err
		}
	}
	// Nothing of it is mounted by anybody but brig; -O goes to its first dataset.
	_, err := zpool(ctx, "create", "-o", "ashift=12", "-o", "cachefile=/etc/zfs/zpool.cache", "-O", "mountpoint=none",
		"-O", propMaker+"="+config[keyUUID], config[keyZpool], source)
	if err != nil && made == madeFile {
		err = errors.Join(err, os.Remove(source))
	}
	return err
}

// Abandon removes what was made of a plan: a zpool or a dataset that has its mark, the
// file of a zpool, and what was put into a dataset that was there.
func (d Driver) Abandon(ctx context.Context, r storage.Record) error {
	config, dir := r.Config, d.mounts(r.Name)
	dataset, made, uuid := config[keyDataset], config[keyMade], config[keyUUID]
	owner, property := dataset, propPool
	if made == madeZpool || made == madeFile {
		owner, property = config[keyZpool], propMaker
	}
	mark, err := zfs(ctx, "get", "-H", "-s", "local", "-o", "value", property, owner)
	if err := pooldir.IgnoreMissing(err); err != nil {
		return err
	}
	ours := uuid != "" && strings.TrimSpace(mark) == uuid
	if ours {
		if err := unmountAll(dir); err != nil {
			return err
		}
	}
	switch {
	case ours && (made == madeZpool || made == madeFile):
		return destroyZpool(owner, made, config[keySource])
	case made == madeFile:
		return pooldir.IgnoreMissing(os.Remove(config[keySource]))
	case ours && made == madeDataset:
		_, err := zfs(ctx, "destroy", "-r", dataset)
		return pooldir.IgnoreMissing(err)
	case ours:
		return unmake(ctx, dataset, dir)
	}
	return nil
}
