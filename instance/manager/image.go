package manager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// diskSize is the size of the root disk of a virtual machine, in bytes.
const diskSize = 10 << 30

func treeKey(fingerprint string) storage.Key {
	return storage.Key{Class: storage.Images, Name: fingerprint}
}

func diskKey(fingerprint string) storage.Key {
	return storage.Key{Class: storage.Images, Name: fingerprint + "-disk"}
}

// imageFile is the name of the file in an image's volume that holds its record,
// so that a pool can be read without the store.
const imageFile = "image.json"

// pulled is the record in an image's volume, with the pull that made it.
type pulled struct {
	images.Image
	Pull string `json:"pull"`
}

// ensureImage gives the image that a user named and the volume to clone for a
// form. It fetches what is not here.
func (m *Manager) ensureImage(ctx context.Context, name string, t instance.Type, in string) (*images.Image, storage.Key, error) {
	image, err := m.fetch(ctx, name, images.ResolveOptions{}, in, false)
	if err != nil {
		return nil, storage.Key{}, err
	}
	if t != instance.VirtualMachine {
		return image, treeKey(image.Fingerprint), nil
	}
	return image, diskKey(image.Fingerprint), m.ensureDisk(ctx, image, in)
}

// PullImage fetches the image that ref names now, also if an older one is here
// under that name.
func (m *Manager) PullImage(ctx context.Context, ref string, o PullOptions) (*images.Image, error) {
	if r, err := images.ParseRef(ref); err == nil && r.Remote == "" && r.Scheme == "" {
		return nil, fault.New(fault.Invalid, "cannot pull %q: it names no remote; write REMOTE:NAME, for example debian:bookworm, or docker://HOST/REPO:TAG", ref)
	}
	image, err := m.fetch(ctx, ref, images.ResolveOptions{Architecture: o.Architecture}, "", true)
	if err != nil {
		return nil, err
	}
	return m.finishImage(ctx, image, o.VM, o.Alias)
}

// ImportImage takes an image from a file or folder on this host.
func (m *Manager) ImportImage(ctx context.Context, path string, o ImportOptions) (*images.Image, error) {
	image, err := m.fetch(ctx, ImportRemote+":"+path, images.ResolveOptions{}, "", true)
	if err != nil {
		return nil, err
	}
	return m.finishImage(ctx, image, false, o.Alias)
}

func (m *Manager) finishImage(ctx context.Context, image *images.Image, vm bool, alias string) (*images.Image, error) {
	if vm {
		if err := m.ensureDisk(ctx, image, ""); err != nil {
			return nil, err
		}
	}
	if alias != "" {
		if err := m.cfg.Images.SetAlias(alias, image.Fingerprint); err != nil {
			return nil, err
		}
		image.Aliases = append(image.Aliases, alias)
	}
	return image, nil
}

// fetch gives the image of a name: one that is here, unless fresh is wanted, or
// what its remote has now. Two that fetch one name share the work.
func (m *Manager) fetch(ctx context.Context, name string, o images.ResolveOptions, in string, fresh bool) (*images.Image, error) {
	ref, err := images.ParseRef(name)
	if err != nil {
		return nil, err
	}
	local := ref.Remote == "" && ref.Scheme == ""
	// A file on this host may have changed, and is looked at again.
	fresh = fresh || ref.Remote == "" && ref.Scheme != "docker" || o.Architecture != ""
	if local || !fresh {
		image, err := m.cachedImage(ctx, ref, in)
		if err == nil || local || !fault.Is(err, fault.NotFound) {
			return image, err
		}
	}
	source, err := m.cfg.Source(ref)
	if err != nil {
		return nil, err
	}
	o.Progress = m.cfg.Progress
	name, err = canonical(ref)
	if err != nil {
		return nil, err
	}
	held, err := m.lockPull(ctx, "image:"+name)
	if err != nil {
		return nil, err
	}
	defer held.Release()
	if !fresh {
		// Another may have fetched it while this one waited.
		if image, err := m.cachedImage(ctx, ref, in); err == nil {
			return image, nil
		}
	}
	return m.pull(ctx, source, ref, name, in, o)
}

// ImportRemote is the remote that stands for files on this host.
const ImportRemote = "import"

// canonical is the one name of the image that ref names.
func canonical(ref images.Ref) (string, error) {
	if ref.Remote != ImportRemote {
		return images.Canonical(ref)
	}
	path, err := filepath.Abs(ref.Name)
	if err != nil {
		return "", fault.New(fault.Invalid, "cannot use the path %q: %w", ref.Name, err)
	}
	return ImportRemote + ":" + path, nil
}

// cachedImage gives an image that is here, with its tree.
func (m *Manager) cachedImage(ctx context.Context, ref images.Ref, in string) (*images.Image, error) {
	image, err := m.cfg.Images.Get(ref.String())
	if err != nil {
		return nil, err
	}
	if err := m.bringImage(ctx, &image, in); err != nil {
		return nil, fmt.Errorf("cannot use image %q: %w", ref, err)
	}
	return &image, nil
}

// bringImage makes the tree of an image that is here available in a pool: from
// another pool that has it, with no need to fetch it again. Not-found means that
// no pool has it.
func (m *Manager) bringImage(ctx context.Context, image *images.Image, in string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	key := treeKey(image.Fingerprint)
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	from, _, err := m.find(ctx, key)
	if err != nil {
		return err
	}
	task := m.cfg.Progress.Task("Copying the image to pool "+in, 0, false)
	defer task.Done()
	err = copyImage(ctx, from, pool, key)
	if fault.Is(err, fault.AlreadyExists) {
		return nil
	}
	return err
}

// copyImage makes an image's volume in a pool from that in another.
func copyImage(ctx context.Context, from storage.Volume, pool storage.Pool, key storage.Key) error {
	tree, err := treeOf(from)
	if err != nil {
		return err
	}
	meta, err := from.Dir()
	if err != nil {
		return err
	}
	defer meta.Close()
	record, err := store.ReadFile(meta, imageFile)
	if err != nil {
		return fmt.Errorf("cannot read the record of an image: %w", err)
	}
	_, err = pool.Create(ctx, key, storage.Tree, func(dir *os.Root) error {
		if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
			return err
		}
		if err := treecopy.Copy(ctx, tree, filepath.Join(dir.Name(), storage.RootName)); err != nil {
			return err
		}
		return store.WriteFile(dir, imageFile, record)
	})
	return err
}

// pullArgs are all that is needed to undo a pull.
type pullArgs struct {
	ID          string
	Name        string // the canonical one of what was asked for
	Pool        string
	Fingerprint string // empty if it is known only after unpacking
}

// volumeOf is the name of the volume that a pull unpacks into.
func (a pullArgs) volume() storage.Key {
	if a.Fingerprint != "" {
		return treeKey(a.Fingerprint)
	}
	return storage.Key{Class: storage.Images, Name: "pull-" + a.ID}
}

func (m *Manager) pull(ctx context.Context, source images.Source, ref images.Ref, name, in string, o images.ResolveOptions) (*images.Image, error) {
	remote, err := source.Resolve(ctx, ref, o)
	if err != nil {
		return nil, err
	}
	defer remote.Close()
	pool, err := m.pool(ctx, in)
	if err != nil {
		return nil, err
	}
	image := remote.Image()
	a := pullArgs{ID: newID(), Name: name, Pool: in, Fingerprint: image.Fingerprint}
	names := []string{"image:" + name}
	if a.Fingerprint != "" {
		// The same image may be fetched under another name.
		held, err := m.lockPull(ctx, "image:"+a.Fingerprint)
		if err != nil {
			return nil, err
		}
		defer held.Release()
		names = append(names, "image:"+a.Fingerprint)
		_, err = pool.Open(ctx, treeKey(a.Fingerprint))
		if err == nil {
			return m.record(image, name)
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
	}
	op := m.pullOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		_, err := pool.Create(ctx, a.volume(), storage.Tree, func(dir *os.Root) error {
			var err error
			image, err = unpack(ctx, remote, dir, a, o.Progress)
			return err
		})
		return err
	}
	op.steps[1].do = func(ctx context.Context) error {
		if a.Fingerprint == "" {
			err := pool.Rename(ctx, a.volume(), image.Fingerprint)
			if fault.Is(err, fault.AlreadyExists) {
				// The same files were made before.
				err = pool.Delete(ctx, a.volume())
			}
			if err != nil {
				return err
			}
		}
		recorded, err := m.record(image, name)
		if err == nil {
			image = *recorded
		}
		return err
	}
	if err := m.performAs(ctx, "pull", names, a, op); err != nil {
		return nil, fmt.Errorf("cannot pull %q: %w", ref, err)
	}
	return &image, nil
}

func unpack(ctx context.Context, remote images.Remote, dir *os.Root, a pullArgs, p images.Progress) (images.Image, error) {
	if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
		return images.Image{}, err
	}
	root, err := dir.OpenRoot(storage.RootName)
	if err != nil {
		return images.Image{}, err
	}
	defer root.Close()
	image, err := remote.Unpack(ctx, root, p)
	if err != nil {
		return images.Image{}, err
	}
	data, err := json.MarshalIndent(pulled{image, a.ID}, "", "  ")
	if err != nil {
		return images.Image{}, fmt.Errorf("cannot encode the record of an image: %v", err)
	}
	return image, store.WriteFile(dir, imageFile, data)
}

// record adds an image, or another name of one, to the store.
func (m *Manager) record(image images.Image, name string) (*images.Image, error) {
	old, err := m.cfg.Images.Get(image.Fingerprint)
	switch {
	case err == nil:
		image = old
	case !fault.Is(err, fault.NotFound):
		return nil, err
	default:
		image.UploadedAt = now()
	}
	if !slices.Contains(image.References, name) {
		image.References = append(image.References, name)
	}
	return &image, m.cfg.Images.Put(image)
}

// pullOperation is what recovery needs of a pull: its volume is dropped unless
// the image was recorded. Then it is kept under the name that was wanted.
func (m *Manager) pullOperation(a pullArgs) *operation {
	drop := func(ctx context.Context) error {
		pool, err := m.pool(ctx, a.Pool)
		if err != nil {
			return err
		}
		names, err := pool.List(ctx, storage.Images)
		if err != nil {
			return err
		}
		for _, name := range names {
			key := storage.Key{Class: storage.Images, Name: name}
			if made, err := m.madeBy(ctx, pool, key); err != nil || made != a.ID {
				continue
			}
			if image, err := m.cfg.Images.Get(name); err == nil {
				// It is whole, perhaps but for its name.
				if _, err := m.record(image, a.Name); err != nil {
					return err
				}
				continue
			}
			if err := pool.Delete(ctx, key); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	}
	return &operation{steps: []step{{name: "unpack", undo: drop}, {name: "record"}}}
}

// madeBy tells which pull made an image's volume.
func (m *Manager) madeBy(ctx context.Context, pool storage.Pool, key storage.Key) (string, error) {
	volume, err := pool.Open(ctx, key)
	if err != nil {
		return "", err
	}
	dir, err := volume.Dir()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	data, err := store.ReadFile(dir, imageFile)
	if err != nil {
		return "", err
	}
	var p pulled
	return p.Pull, json.Unmarshal(data, &p)
}

// ensureDisk makes the disk of an image for virtual machines, once.
func (m *Manager) ensureDisk(ctx context.Context, image *images.Image, in string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	key := diskKey(image.Fingerprint)
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	held, err := m.lockPull(ctx, "image:"+image.Fingerprint)
	if err != nil {
		return err
	}
	defer held.Release()
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	tree, err := m.imageTree(ctx, pool, image.Fingerprint)
	if err != nil {
		return err
	}
	task := m.cfg.Progress.Task("Making the disk", 0, false)
	defer task.Done()
	_, err = pool.Create(ctx, key, storage.Disk, func(dir *os.Root) error {
		return m.cfg.Disks.Make(ctx, tree, dir.Name()+"/"+storage.DiskRaw, image.Fingerprint, diskSize)
	})
	if err != nil && !fault.Is(err, fault.AlreadyExists) {
		return fmt.Errorf("cannot make the disk of image %q: %w", short(image.Fingerprint), err)
	}
	return nil
}

// imageTree gives the folder with the files of an image.
func (m *Manager) imageTree(ctx context.Context, pool storage.Pool, fingerprint string) (string, error) {
	volume, err := pool.Open(ctx, treeKey(fingerprint))
	if err != nil {
		return "", fmt.Errorf("cannot open the files of image %q: %w", short(fingerprint), err)
	}
	return treeOf(volume)
}

// Images lists the images that are here. A damaged record is told about and
// does not hide the others.
func (m *Manager) Images(context.Context) ([]images.Image, error) {
	list, damaged := m.cfg.Images.List()
	for _, err := range damaged {
		m.cfg.Notice(err.Error())
	}
	return list, nil
}

// Image gives the image with an alias, a reference, or the start of a
// fingerprint.
func (m *Manager) Image(_ context.Context, name string) (*images.Image, error) {
	image, err := m.cfg.Images.Get(name)
	if err != nil {
		return nil, err
	}
	return &image, nil
}

// deleteImageArgs are all that is needed to carry on with deleting an image.
type deleteImageArgs struct{ Fingerprint string }

// DeleteImage removes an image. Instances that were made from it are not
// harmed: they keep what they share with it.
func (m *Manager) DeleteImage(ctx context.Context, name string) error {
	m.tidy(ctx) // which may be about this image
	image, err := m.Image(ctx, name)
	if err != nil {
		return err
	}
	held, err := m.lockPull(ctx, "image:"+image.Fingerprint)
	if err != nil {
		return err
	}
	defer held.Release()
	if err := m.perform(ctx, "image-delete", []string{"image:" + image.Fingerprint}, deleteImageArgs{image.Fingerprint}); err != nil {
		return fmt.Errorf("cannot delete image %q: %w", name, err)
	}
	m.sweepLater()
	return nil
}

func (m *Manager) deleteImageOperation(a deleteImageArgs) *operation {
	drop := func(key storage.Key) func(context.Context) error {
		return func(ctx context.Context) error {
			names, err := m.cfg.Pools.Names()
			if err != nil {
				return err
			}
			for _, name := range names {
				pool, err := m.pool(ctx, name)
				if err == nil {
					err = pool.Delete(ctx, key)
				}
				if err != nil && !fault.Is(err, fault.NotFound) && !fault.Is(err, fault.Unavailable) {
					return err
				}
			}
			return nil
		}
	}
	return &operation{forward: true, steps: []step{
		{name: "record", do: func(context.Context) error {
			err := m.cfg.Images.Delete(a.Fingerprint)
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		}},
		{name: "disk", do: drop(diskKey(a.Fingerprint))},
		{name: "tree", do: drop(treeKey(a.Fingerprint))},
	}}
}

// lockPull takes the lock of an image name, for as long as another fetches it,
// after recovering what an earlier fetch left.
func (m *Manager) lockPull(ctx context.Context, name string) (*store.Held, error) {
	m.tidy(ctx)
	held, err := m.pulls.Lock(ctx, "fetch", name)
	if err != nil {
		return nil, err
	}
	left, _, err := m.concerning([]string{name})
	if err == nil {
		err = m.recoverIntents(ctx, left)
	}
	if err != nil {
		held.Release()
		return nil, err
	}
	return held, nil
}

// Kernels lists the kernels for virtual machines.
func (m *Manager) Kernels(ctx context.Context) ([]KernelInfo, error) {
	return m.cfg.Kernels.List(ctx)
}

// ImportKernel takes a kernel from a package, a folder or an image.
func (m *Manager) ImportKernel(ctx context.Context, source string) (KernelInfo, error) {
	return m.cfg.Kernels.Import(ctx, source, m.cfg.Progress)
}

func short(fingerprint string) string { return fingerprint[:min(12, len(fingerprint))] }

func isGone(err error) bool {
	return fault.Is(err, fault.NotFound) || errors.Is(err, os.ErrNotExist)
}
