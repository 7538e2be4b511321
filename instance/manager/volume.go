package manager

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"brig/instance"
	"brig/instance/fault"
	"brig/instance/size"
	"brig/instance/store"
	"brig/storage"
)

// A custom volume is a volume of its own beside the instances that it is attached
// to. What it is called and who uses it is written in no third place: its name is
// that of the volume in its pool, and its users are the instances with a device
// that names it.

// volumeRef names a custom volume.
type volumeRef struct{ Pool, Name string }

func refOf(pool, name string) volumeRef { return volumeRef{cmp.Or(pool, DefaultPool), name} }

func (r volumeRef) key() storage.Key { return storage.Key{Class: storage.Custom, Name: r.Name} }

// lock is the name of the volume's lock. Whoever needs that of an instance, too,
// takes the instance's first.
func (r volumeRef) lock() string { return "volume:" + r.Pool + ":" + r.Name }

// volumeLocks are the locks of some volumes.
func volumeLocks[T any](list []T, ref func(T) volumeRef) []string {
	names := make([]string, len(list))
	for i, v := range list {
		names[i] = ref(v).lock()
	}
	return names
}

// checkVolumeName refuses what cannot be the name of a custom volume, or is a
// name that brig needs itself.
func checkVolumeName(name string) error {
	ok := name != "" && len(name) <= 63 && !halfDone(name) && !strings.Contains(name, trashMark)
	if err := storage.CheckName("volume", name); err != nil || !ok {
		return fault.New(fault.Invalid, "cannot use %q as a volume name: use 1 to 63 letters, digits, dots, hyphens and underscores, starting with a letter or digit", name)
	}
	return nil
}

// custom is a custom volume that was opened.
type custom struct {
	ref    volumeRef
	volume storage.Volume
	info   *instance.Volume
}

func (m *Manager) openVolume(ctx context.Context, ref volumeRef) (*custom, error) {
	if err := checkVolumeName(ref.Name); err != nil {
		return nil, err
	}
	pool, err := m.pool(ctx, ref.Pool)
	if err != nil {
		return nil, err
	}
	volume, err := pool.Open(ctx, ref.key())
	if fault.Is(err, fault.NotFound) {
		return nil, fault.New(fault.NotFound, "cannot find a volume named %q in pool %q: see brig storage volume list", ref.Name, ref.Pool)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open volume %q of pool %q: %w", ref.Name, ref.Pool, err)
	}
	info, err := loadVolume(volume, ref.Name)
	if err != nil {
		return nil, err
	}
	return &custom{ref, volume, info}, nil
}

func loadVolume(volume storage.Volume, name string) (*instance.Volume, error) {
	dir, err := volume.Dir()
	if err != nil {
		return nil, fmt.Errorf("cannot read what volume %q is: %w", name, err)
	}
	defer dir.Close()
	return store.LoadVolume(dir, name)
}

// content is what the volume holds, in Incus's words.
func (c *custom) content() storage.Content {
	if c.info.Content != "" {
		return storage.Content(c.info.Content)
	}
	return c.volume.Content()
}

func (c *custom) save() error {
	dir, err := c.volume.Dir()
	if err != nil {
		return fmt.Errorf("cannot write what volume %q is: %w", c.ref.Name, err)
	}
	defer dir.Close()
	return store.SaveVolume(dir, c.info)
}

// VolumeRequest is what a user wants of a new custom volume.
type VolumeRequest struct {
	Pool, Name  string
	Content     storage.Content // empty: a file system
	Description string
	Config      map[string]string
}

// volumeArgs are all that is needed to unmake a new volume.
type volumeArgs struct {
	Pool, Name string
	Content    storage.Content
	Info       *instance.Volume
}

// defaultBlockSize is that of a block volume for which nobody gives one, as Incus
// has it.
const defaultBlockSize = "10GiB"

// sizeKey is the one key of a volume that says something about its data.
const sizeKey = "size"

// volumeKeys are the configuration keys of custom volumes.
func checkVolumeConfig(content storage.Content, config map[string]string) error {
	for key, value := range config {
		note, isNote := strings.CutPrefix(key, "user.")
		var err error
		switch {
		case key == sizeKey && content != instance.ContentISO:
			var n int64
			if n, err = size.Parse(value); err == nil && (n < minVolume || n > maxVolume) {
				err = fault.New(fault.Invalid, "it must be from 1MiB to 64TiB")
			}
		case key == "security.shared" && content == storage.Disk:
			err = boolean(value)
		case isNote && note != "" && !strings.ContainsAny(key, "=\x00\n "):
		default:
			return fault.New(fault.Invalid, "there is no key %q for a volume of type %s; the keys are size, user.* and, for block volumes, security.shared", key, content)
		}
		if err != nil {
			return fault.New(fault.Invalid, "the value %q of %q cannot be used: %w", value, key, err)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' && r != '\n' && r != '\t' || r == 0x7f }) {
			return fault.New(fault.Invalid, "the value of %q has a control character", key)
		}
	}
	return nil
}

// The sizes that a volume can have.
const (
	minVolume = 1 << 20
	maxVolume = 64 << 40
)

// CreateVolume makes an empty custom volume.
func (m *Manager) CreateVolume(ctx context.Context, r VolumeRequest) error {
	ref := refOf(r.Pool, r.Name)
	if err := checkVolumeName(ref.Name); err != nil {
		return err
	}
	content := cmp.Or(r.Content, storage.Tree)
	if content != storage.Tree && content != storage.Disk {
		return fault.New(fault.Invalid, "cannot create volume %q of type %q: the types are filesystem and block, and brig storage volume import makes iso", ref.Name, content)
	}
	if err := checkVolumeConfig(content, r.Config); err != nil {
		return fmt.Errorf("cannot create volume %q: %w", ref.Name, err)
	}
	info := newVolumeInfo()
	info.Description, info.Config = r.Description, maps.Clone(r.Config)
	if info.Config == nil {
		info.Config = map[string]string{}
	}
	if content == storage.Disk && info.Config[sizeKey] == "" {
		info.Config[sizeKey] = defaultBlockSize
	}
	held, err := m.lock(ctx, "create", ref.lock())
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.volumeIsFree(ctx, ref); err != nil {
		return err
	}
	if err := m.perform(ctx, "volume-create", []string{ref.lock()}, volumeArgs{ref.Pool, ref.Name, content, info}); err != nil {
		return fmt.Errorf("cannot create volume %q in pool %q: %w", ref.Name, ref.Pool, err)
	}
	return nil
}

func newVolumeInfo() *instance.Volume {
	return &instance.Volume{Version: instance.VolumeVersion, ID: newID(), Type: string(storage.Custom), CreatedAt: now()}
}

func (m *Manager) volumeIsFree(ctx context.Context, ref volumeRef) error {
	pool, err := m.pool(ctx, ref.Pool)
	if err != nil {
		return err
	}
	_, err = pool.Open(ctx, ref.key())
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err == nil:
		return fault.New(fault.AlreadyExists, "cannot use the name %q: pool %q has a volume of this name; choose another, or delete that one", ref.Name, ref.Pool)
	}
	return err
}

func (m *Manager) createVolumeOperation(a volumeArgs) *operation {
	ref := volumeRef{a.Pool, a.Name}
	return &operation{steps: []step{
		{
			name: "volume",
			do: func(ctx context.Context) error {
				pool, err := m.pool(ctx, a.Pool)
				if err != nil {
					return err
				}
				_, err = pool.Create(ctx, ref.key(), a.Content, func(dir *os.Root) error { return fillVolume(dir, a) })
				return err
			},
			undo: func(ctx context.Context) error { return m.dropCustom(ctx, ref, a.Info.ID) },
		},
		{name: "size", do: func(ctx context.Context) error {
			if a.Content == storage.Disk {
				return nil
			}
			c, err := m.openVolume(ctx, ref)
			if err != nil {
				return err
			}
			return c.limit(ctx)
		}},
	}}
}

// fillVolume makes the data of a new volume.
func fillVolume(dir *os.Root, a volumeArgs) error {
	if err := store.SaveVolume(dir, a.Info); err != nil {
		return err
	}
	if a.Content == storage.Tree {
		return dir.Mkdir(storage.RootName, 0o755)
	}
	n, err := size.Parse(a.Info.Config[sizeKey])
	if err != nil {
		return err
	}
	return blankDisk(dir, n)
}

// blankDisk makes a disk of so many bytes, none of which is written.
func blankDisk(dir *os.Root, size int64) error {
	f, err := dir.OpenFile(storage.DiskRaw, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Truncate(size), f.Close())
}

// limit keeps a file system from growing beyond the size it is to have.
func (c *custom) limit(ctx context.Context) error {
	var max int64
	if text := c.info.Config[sizeKey]; text != "" {
		n, err := size.Parse(text)
		if err != nil {
			return err
		}
		max = n
	}
	l, ok := c.volume.(storage.Limiter)
	switch {
	case ok && max == 0:
		if have, err := l.Limit(ctx); err == nil && have.Max == 0 {
			return nil
		}
	case !ok && max == 0:
		return nil
	case !ok:
		return fault.New(fault.Unsupported, "pool %q cannot keep file systems from growing; leave the size out, or use another pool", c.ref.Pool)
	}
	return l.SetLimit(ctx, max)
}

// dropCustom deletes a custom volume if it is the one with this id.
func (m *Manager) dropCustom(ctx context.Context, ref volumeRef, id string) error {
	pool, err := m.pool(ctx, ref.Pool)
	if err != nil {
		return err
	}
	volume, err := pool.Open(ctx, ref.key())
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if info, err := loadVolume(volume, ref.Name); err == nil && info.ID != id {
		return nil
	}
	if err := pool.Delete(ctx, ref.key()); !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// RenameVolume gives a custom volume that no instance has another name.
func (m *Manager) RenameVolume(ctx context.Context, pool, name, to string) error {
	return m.MoveVolume(ctx, VolumeCopyRequest{Pool: pool, Name: name, ToPool: pool, To: to})
}

// ConfigureVolume changes configuration keys of a custom volume, all of them or
// none. A file system's new size counts at once; a block volume can only grow,
// and only while nothing uses it.
func (m *Manager) ConfigureVolume(ctx context.Context, pool, name string, c ConfigChange) error {
	v, err := m.lockVolume(ctx, "configure", refOf(pool, name))
	if err != nil {
		return err
	}
	defer v.release()
	content := v.content()
	if err := checkVolumeConfig(content, c.Set); err != nil {
		return fmt.Errorf("cannot configure volume %q: %w", name, err)
	}
	old := v.info.Config
	v.info.Config = maps.Clone(old)
	if v.info.Config == nil {
		v.info.Config = map[string]string{}
	}
	for _, key := range c.Unset {
		if _, ok := v.info.Config[key]; !ok {
			return fault.New(fault.NotFound, "cannot configure volume %q: %q is not set", name, key)
		}
		if key == sizeKey && content == storage.Disk {
			return fault.New(fault.Invalid, "cannot configure volume %q: a block volume has a size; it can be made larger", name)
		}
		delete(v.info.Config, key)
	}
	maps.Copy(v.info.Config, c.Set)
	if maps.Equal(old, v.info.Config) {
		return nil
	}
	if v.info.Config[sizeKey] != old[sizeKey] {
		if content == storage.Disk {
			err = m.growDisk(ctx, v, old[sizeKey])
		} else {
			err = v.limit(ctx)
		}
	}
	if err == nil {
		err = v.save()
	}
	if err != nil {
		return fmt.Errorf("cannot configure volume %q: %w", name, err)
	}
	m.tell("storage-volume-updated", v.ref.lock(), nil)
	return nil
}

// keptAt is the time to give a snapshot that is taken at at.
func keptAt(at time.Time) time.Time { return at.UTC().Truncate(time.Millisecond) }
