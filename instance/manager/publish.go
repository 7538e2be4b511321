package manager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/treecopy"
)

// PublishRequest describes an image to be made of an instance.
type PublishRequest struct {
	Name, Snapshot string // of the instance, and empty: as it is now
	Alias          string // empty: none
	Reuse          bool   // take the alias from another image
	Properties     map[string]string
}

// Publish makes an image of an instance, or of one of its snapshots. Either form gives
// files, of which the same image is made: instances of both forms can be launched of
// it. A running instance stands still only for the moment that a snapshot takes.
// Errors: already-exists for the alias of another image.
func (m *Manager) Publish(ctx context.Context, r PublishRequest) (*images.Image, error) {
	image, err := m.publish(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("cannot publish %q: %w", r.Name, err)
	}
	return image, nil
}

func (m *Manager) publish(ctx context.Context, r PublishRequest) (*images.Image, error) {
	if err := m.checkAlias(r.Alias, r.Reuse); err != nil {
		return nil, err
	}
	if r.Snapshot != "" {
		if err := store.CheckSnapshotName(r.Snapshot); err != nil {
			return nil, err
		}
	}
	inst, err := m.open(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	spec := inst.spec
	if r.Snapshot != "" {
		if err := hasSnapshot(ctx, inst, r.Snapshot); err != nil {
			return nil, err
		}
		if spec, err = snapshotSpec(ctx, inst, r.Snapshot); err != nil {
			return nil, err
		}
	}
	if spec.Image.Firmware != "" {
		return nil, fault.New(fault.Unsupported, "its disk boots by itself, from partitions that brig does not look into: only instances of images with files of their own can be published")
	}
	pool, err := m.pool(ctx, inst.pool)
	if err != nil {
		return nil, err
	}
	if err := roomLike(ctx, inst.volume, pool, inst.pool); err != nil {
		return nil, err
	}
	dir, done, err := m.lookToKeep(ctx, inst, r.Snapshot)
	if err != nil {
		return nil, err
	}
	published, err := m.publishTree(ctx, pullArgs{ID: newID(), Pool: inst.pool, Alias: r.Alias}, dir, m.imageOf(spec, r))
	return published, errors.Join(err, done())
}

// checkAlias finds out early whether an image can have an alias.
func (m *Manager) checkAlias(alias string, reuse bool) error {
	if alias == "" {
		return nil
	}
	if err := images.CheckAlias(alias); err != nil {
		return err
	}
	other, err := m.cfg.Images.Get(alias)
	if err != nil || reuse || !slices.Contains(other.Aliases, alias) {
		return nil
	}
	return fault.New(fault.AlreadyExists, "image %s has the alias %q: choose another, or give --reuse", short(other.Fingerprint), alias)
}

// giveAlias gives an image an alias, which another may have had until now.
func (m *Manager) giveAlias(alias string, image *images.Image) error {
	err := m.setAlias(alias, image.Fingerprint)
	if fault.Is(err, fault.AlreadyExists) {
		err = m.cfg.Images.MoveAlias(alias, image.Fingerprint)
	}
	if err == nil && !slices.Contains(image.Aliases, alias) {
		image.Aliases = append(image.Aliases, alias)
	}
	return err
}

// lookToKeep is a look at a state that does not change until done is called: at a
// snapshot, at an instance at rest, or at a snapshot taken for this.
func (m *Manager) lookToKeep(ctx context.Context, inst *opened, snapshot string) (dir *os.File, done func() error, err error) {
	if snapshot != "" {
		return m.lookInto(ctx, inst, snapshot)
	}
	inst, held, err := m.openLocked(ctx, "publish", inst.spec.Name)
	if err != nil {
		return nil, nil, err
	}
	root, drop := inst.volume.Root(), func() error { return nil }
	if m.state(inst.spec).Status != instance.Stopped {
		root, drop, err = m.passingSnapshot(ctx, inst)
		if err != nil {
			held.Release()
			return nil, nil, err
		}
		held.Release() // what is in the snapshot stays as it is
		held = nil
	}
	end := func() error {
		if held != nil {
			defer held.Release()
		}
		return drop()
	}
	dir, shut, err := m.cfg.Looker.Open(ctx, root)
	if err != nil {
		return nil, nil, errors.Join(err, end())
	}
	return dir, func() error { return errors.Join(shut(), end()) }, nil
}

// imageOf is the record of an image of an instance: what its own image said of how it
// runs holds on.
func (m *Manager) imageOf(spec *instance.Spec, r PublishRequest) images.Image {
	image := images.Image{
		Kind: images.System, Architecture: spec.Architecture, CreatedAt: now(), App: spec.Image.App,
		Description: spec.Description, Base: spec.Image.Fingerprint,
		Properties: map[string]string{},
	}
	if image.Description == "" {
		image.Description = spec.Image.Description
	}
	if base, err := m.cfg.Images.Get(spec.Image.Fingerprint); err == nil {
		maps.Copy(image.Properties, base.Properties)
		image.Config = base.Config
	}
	maps.Copy(image.Properties, r.Properties)
	if d, ok := r.Properties["description"]; ok {
		image.Description = d
	}
	switch {
	case image.App != nil:
		image.Kind = images.App
	case len(spec.Image.Init)+len(spec.Image.Env) > 0 && image.Config == nil:
		// Its image is gone by now.
		image.Config = initConfig(spec.Image.Init, spec.Image.Env)
	}
	return image
}

// initConfig says of a system's init what initOf reads.
func initConfig(init, env []string) json.RawMessage {
	var oci struct {
		Config struct {
			Entrypoint []string
			Env        []string
		} `json:"config"`
	}
	oci.Config.Entrypoint, oci.Config.Env = init, env
	data, err := json.Marshal(oci)
	if err != nil {
		panic(err) // strings only
	}
	return data
}

// publishTree makes the volume and the record of an image of the files in dir.
func (m *Manager) publishTree(ctx context.Context, a pullArgs, dir *os.File, image images.Image) (*images.Image, error) {
	pool, err := m.pool(ctx, a.Pool)
	if err != nil {
		return nil, err
	}
	task := m.cfg.Progress.Task("Copying the files", 0, false)
	defer task.Done()
	op := m.pullOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		_, err := pool.Create(ctx, a.volume(), storage.Tree, func(to *os.Root) error {
			err := m.copyForImage(ctx, dir, to, &image)
			if err == nil {
				image.Fingerprint, err = fingerprintOf(image)
			}
			if err != nil {
				return err
			}
			return writePulled(to, image, a.ID)
		})
		return err
	}
	op.steps[1].do = func(ctx context.Context) error {
		recorded, err := m.recordPulled(ctx, pool, a, image)
		if err == nil {
			image = *recorded
		}
		return err
	}
	if err := m.performAs(ctx, "publish", []string{"image:" + a.ID}, a, op); err != nil {
		return nil, err
	}
	m.tell("image-created", imageLock(image.Fingerprint), nil)
	return &image, nil
}

// copyForImage copies a tree without what tells one machine from another, and notes
// in the image what is in it.
func (m *Manager) copyForImage(ctx context.Context, from *os.File, to *os.Root, image *images.Image) error {
	if err := to.Mkdir(storage.RootName, 0o755); err != nil {
		return err
	}
	// The dot makes it a directory rather than the link to one.
	if err := treecopy.Copy(ctx, fmt.Sprintf("/proc/self/fd/%d/.", from.Fd()), filepath.Join(to.Name(), storage.RootName)); err != nil {
		return err
	}
	root, err := to.OpenRoot(storage.RootName)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := forgetMachine(root); err != nil {
		return err
	}
	return m.seal(ctx, root, image)
}

// forgetMachine empties the machine id (machine-id(5)), so that each instance gets its
// own at its first boot, and takes away what mkfs left in the disk of a virtual
// machine. It keeps all times, so that the same files give the same image.
func forgetMachine(root *os.Root) error {
	const id = "etc/machine-id"
	if info, err := root.Lstat(id); err == nil && info.Mode().IsRegular() && info.Size() > 0 {
		f, err := root.OpenFile(id, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		if err := errors.Join(f.Close(), root.Chtimes(id, info.ModTime(), info.ModTime())); err != nil {
			return err
		}
	}
	top, err := root.Stat(".")
	if err != nil || root.Remove("lost+found") != nil {
		return err // there is none, or it holds something
	}
	return root.Chtimes(".", top.ModTime(), top.ModTime())
}

// fingerprintOf is that of an image without blobs: of its files, and of how it runs.
func fingerprintOf(image images.Image) (string, error) {
	data, err := json.Marshal([]any{image.Tree, image.Kind, image.Architecture, image.App, image.Config, image.Properties[images.InitProperty]})
	if err != nil {
		return "", fmt.Errorf("cannot encode the record of an image: %v", err)
	}
	all := sha256.Sum256(data)
	return hex.EncodeToString(all[:]), nil
}
