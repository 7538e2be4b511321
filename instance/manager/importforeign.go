package manager

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"brig/images"
	"brig/instance"
	"brig/instance/config"
	"brig/instance/fault"
	"brig/instance/project"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/transfer"
)

// ForeignBackup is a file in which another program has put an instance.
type ForeignBackup interface {
	Info() images.Backup

	// Next goes to the next state and gives the name of its snapshot; what the
	// instance holds has none, and comes last. Then it gives io.EOF.
	Next(ctx context.Context) (snapshot string, err error)

	// Unpack puts the data of that state into a staging directory: the files into
	// the directory tree, or the disk into the new file disk, with the firmware that
	// starts it.
	Unpack(ctx context.Context, dir *os.Root, tree, disk string) (firmware string, err error)

	Close() error
}

// importForeign makes an instance of a file of Incus or LXD.
func (m *Manager) importForeign(ctx context.Context, r BackupSource, from io.Reader) (_ *instance.Spec, err error) {
	b, err := m.cfg.Backups(ctx, from)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	info := b.Info()
	if r.Name == "" {
		r.Name = project.Full(r.Project, info.Instance.Name)
	}
	if err := store.CheckFullName(r.Name); err != nil {
		return nil, err
	}
	if _, err := m.driver(info.Type); err != nil {
		return nil, err
	}
	for _, s := range info.Snapshots {
		if err := store.CheckSnapshotName(s.Name); err != nil {
			return nil, err
		}
	}
	spec, left := foreignSpec(info.Type, info.Instance, r.Name)
	if len(left) > 0 {
		m.cfg.Notice(fmt.Sprintf("Left out, for brig does not know it or does it otherwise: %s.", strings.Join(left, ", ")))
	}
	spec.ID = newID()
	return spec, m.importAs(ctx, r, spec, false, func(ctx context.Context, a importArgs) error {
		return m.writeForeign(ctx, a, spec, b)
	})
}

// foreignSpec makes of a state's configuration what brig knows of it, and tells what it
// does not.
func foreignSpec(t instance.Type, s images.BackupState, name string) (spec *instance.Spec, left []string) {
	spec = &instance.Spec{
		Version: instance.SpecVersion, Name: name, Type: t, Architecture: s.Architecture, Description: s.Description,
		CreatedAt: s.Created, Ephemeral: s.Ephemeral, Profiles: []string{"default"},
		Image:  instance.Image{Description: s.Config["image.description"]},
		Config: map[string]string{}, Devices: map[string]map[string]string{},
	}
	for key, value := range s.Config {
		// What only its own host needed, and what its image said.
		if strings.HasPrefix(key, "volatile.") || strings.HasPrefix(key, "image.") {
			continue
		}
		if err := config.Check(t, map[string]string{key: value}); err != nil || slices.Contains(ofHost, key) {
			left = append(left, key)
			continue
		}
		spec.Config[key] = value
	}
	for device, keys := range s.Devices {
		if keys["type"] == "disk" && keys["path"] == "/" || keys["type"] == "nic" && device == nicName {
			continue // every instance has these
		}
		// A file does not decide which directories of this host an instance gets, and names
		// networks of another.
		if d, err := parseDevice(device, keys); err != nil || path.IsAbs(d.source) || d.nic {
			left = append(left, "the device "+device)
			continue
		}
		spec.Devices[device] = keys
	}
	slices.Sort(left)
	return spec, left
}

// writeForeign makes the volume: of the first state, over which the others are written
// one after another with a snapshot between them.
func (m *Manager) writeForeign(ctx context.Context, a importArgs, spec *instance.Spec, b ForeignBackup) error {
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return err
	}
	var made storage.Volume
	for {
		snapshot, err := b.Next(ctx)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if made == nil {
			made, err = m.unpackForeign(ctx, pool, instanceKey(a.Part), spec, b)
		} else {
			err = m.putForeign(ctx, pool, made, a, spec, b)
		}
		if err == nil {
			err = m.keepForeign(ctx, made, snapshot, spec, b.Info())
		}
		if err != nil && snapshot != "" {
			err = fmt.Errorf("snapshot %q: %w", snapshot, err)
		}
		if err != nil {
			return err
		}
	}
}

// unpackForeign makes a volume of the state that comes next.
func (m *Manager) unpackForeign(ctx context.Context, pool storage.Pool, key storage.Key, spec *instance.Spec, b ForeignBackup) (storage.Volume, error) {
	content := storage.Tree
	if spec.Type == instance.VirtualMachine {
		content = storage.Disk
	}
	return pool.Create(ctx, key, content, func(dir *os.Root) error {
		if content == storage.Tree {
			if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
				return err
			}
		}
		firmware, err := b.Unpack(ctx, dir, storage.RootName, storage.DiskRaw)
		if err != nil {
			return err
		}
		spec.Image.Firmware = firmware
		return store.SaveSpec(dir, spec)
	})
}

// putForeign writes the state that comes next over the one before.
func (m *Manager) putForeign(ctx context.Context, pool storage.Pool, made storage.Volume, a importArgs, spec *instance.Spec, b ForeignBackup) error {
	work, err := m.unpackForeign(ctx, pool, instanceKey(a.Work), spec, b)
	if err != nil {
		return err
	}
	return errors.Join(transfer.Put(ctx, work, made, m.mountDir()), pool.Delete(context.WithoutCancel(ctx), instanceKey(a.Work)))
}

// keepForeign gives a state its configuration, and keeps it if it is a snapshot.
func (m *Manager) keepForeign(ctx context.Context, made storage.Volume, snapshot string, spec *instance.Spec, info images.Backup) error {
	if snapshot == "" {
		return saveSpec(made, spec)
	}
	at := slices.IndexFunc(info.Snapshots, func(s images.BackupState) bool { return s.Name == snapshot })
	if at < 0 {
		return fault.New(fault.Internal, "there is no such snapshot")
	}
	s := info.Snapshots[at]
	then, _ := foreignSpec(info.Type, s, spec.Name)
	then.ID, then.MAC, then.Address, then.Image = spec.ID, spec.MAC, spec.Address, spec.Image
	if err := saveSpec(made, then); err != nil {
		return err
	}
	return made.Snapshot(ctx, snapshot, storage.SnapshotOptions{Description: s.Description, CreatedAt: s.Created, ExpiresAt: s.Expires})
}
