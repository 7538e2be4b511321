package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"brig/images"
	"brig/instance/fault"
	"brig/instance/store"
	"brig/storage"
	"brig/storage/treecopy"
)

// imageFile is the name of the file in an image's volume that holds its record,
// so that a pool can be read without the store.
const imageFile = "image.json"

// pulled is the record in an image's volume, with the pull that made it.
type pulled struct {
	images.Image
	Pull string `json:"pull"`
}

// bringImage makes the tree of an image that is here available in a pool: from
// another pool that has it, with no need to fetch it again. Not-found means that
// no pool has it.
func (m *Manager) bringImage(ctx context.Context, image *images.Image, in string) error {
	pool, err := m.pool(ctx, in)
	if err != nil {
		return err
	}
	key := keyOf(image)
	if _, err := pool.Open(ctx, key); !fault.Is(err, fault.NotFound) {
		return err
	}
	from, _, err := m.find(ctx, key)
	if err != nil {
		return err
	}
	if err := roomLike(ctx, from, pool, in); err != nil {
		return err
	}
	task := m.cfg.Progress.Task("Copying the image to pool "+in, 0, false)
	defer task.Done()
	err = m.copyImage(ctx, from, pool, key)
	if fault.Is(err, fault.AlreadyExists) {
		return nil
	}
	return err
}

// copyImage makes an image's volume in a pool from that in another.
func (m *Manager) copyImage(ctx context.Context, from storage.Volume, pool storage.Pool, key storage.Key) error {
	if err := mount(ctx, from); err != nil {
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
	_, err = pool.Create(ctx, key, from.Content(), func(dir *os.Root) error {
		if err := m.copyData(ctx, from, dir); err != nil {
			return err
		}
		return store.WriteFile(dir, imageFile, record)
	})
	return err
}

// copyData copies the tree or disk of an image.
func (m *Manager) copyData(ctx context.Context, from storage.Volume, dir *os.Root) error {
	if from.Content() == storage.Disk {
		root := from.Root()
		return m.cfg.Disks.Copy(ctx, root.DiskPath, root.DiskFormat, filepath.Join(dir.Name(), storage.DiskRaw))
	}
	tree, err := treeOf(from)
	if err != nil {
		return err
	}
	if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
		return err
	}
	return treecopy.Copy(ctx, tree, filepath.Join(dir.Name(), storage.RootName))
}

// pullArgs are all that is needed to undo a pull.
type pullArgs struct {
	ID          string
	Name        string // the canonical one of what was asked for; empty: it was published here
	Pool        string
	Fingerprint string // empty if it is known only after unpacking
	Alias       string // that the image gets, from another if need be; empty: none
	Disk        bool   // it is an image of the kind disk
	Cached      bool   // it is fetched on the way to an instance, and nobody asked for it
}

// volumeOf is the name of the volume that a pull unpacks into.
func (a pullArgs) volume() storage.Key {
	switch {
	case a.Disk:
		return diskKey(a.Fingerprint)
	case a.Fingerprint != "":
		return treeKey(a.Fingerprint)
	}
	return storage.Key{Class: storage.Images, Name: "pull-" + a.ID}
}

func (m *Manager) pull(ctx context.Context, source images.Source, ref images.Ref, name, in string, cached bool, o images.ResolveOptions) (*images.Image, error) {
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
	a := pullArgs{ID: newID(), Name: name, Pool: in, Fingerprint: image.Fingerprint, Disk: image.Kind == images.Disk, Cached: cached}
	names := []string{"image:" + name}
	if a.Fingerprint != "" {
		// The same image may be fetched under another name.
		held, err := m.lockPull(ctx, "image:"+a.Fingerprint)
		if err != nil {
			return nil, err
		}
		defer held.Release()
		names = append(names, "image:"+a.Fingerprint)
		_, err = pool.Open(ctx, a.volume())
		if err == nil {
			return m.record(image, a)
		}
		if !fault.Is(err, fault.NotFound) {
			return nil, err
		}
	}
	// What is a file on this host is read where it is.
	fetched := ref.Remote != ImportRemote && (ref.Remote != "" || ref.Scheme == "docker" || ref.Scheme == images.ProtocolSimplestreams)
	if err := m.roomForImage(ctx, pool, in, &image, fetched); err != nil {
		return nil, fmt.Errorf("cannot pull %q: %w", ref, err)
	}
	// What is put into the store meanwhile stays until the record needs it.
	release, err := m.cfg.Images.Use(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	op := m.pullOperation(a)
	op.steps[0].do = func(ctx context.Context) error {
		content := storage.Tree
		if a.Disk {
			content = storage.Disk
		}
		_, err := pool.Create(ctx, a.volume(), content, func(dir *os.Root) error {
			var err error
			image, err = m.unpack(ctx, remote, dir, a, o.Progress)
			return err
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
	if err := m.performAs(ctx, "pull", names, a, op); err != nil {
		return nil, fmt.Errorf("cannot pull %q: %w", ref, err)
	}
	m.tell("image-created", imageLock(image.Fingerprint), nil)
	if n, ok := remote.(images.Noter); ok && n.Note() != "" {
		m.cfg.Notice(fmt.Sprintf("%s: %s.", ref, n.Note()))
	}
	return &image, nil
}

// recordPulled makes a volume that was unpacked that of its image.
func (m *Manager) recordPulled(ctx context.Context, pool storage.Pool, a pullArgs, image images.Image) (*images.Image, error) {
	if a.Fingerprint == "" {
		err := pool.Rename(ctx, a.volume(), image.Fingerprint)
		if fault.Is(err, fault.AlreadyExists) {
			// The same files were made before.
			err = pool.Delete(ctx, a.volume())
		}
		if err != nil {
			return nil, err
		}
	}
	return m.nameImage(image, a)
}

// nameImage records an image with the names that were wanted.
func (m *Manager) nameImage(image images.Image, a pullArgs) (*images.Image, error) {
	recorded, err := m.record(image, a)
	if err == nil && a.Alias != "" {
		err = m.giveAlias(a.Alias, recorded)
	}
	return recorded, err
}

func (m *Manager) unpack(ctx context.Context, remote images.Remote, dir *os.Root, a pullArgs, p images.Progress) (images.Image, error) {
	root := dir
	if !a.Disk {
		if err := dir.Mkdir(storage.RootName, 0o755); err != nil {
			return images.Image{}, err
		}
		var err error
		if root, err = dir.OpenRoot(storage.RootName); err != nil {
			return images.Image{}, err
		}
		defer root.Close()
	}
	image, err := remote.Unpack(ctx, root, p)
	if err == nil && !a.Disk {
		err = m.seal(ctx, root, &image)
	}
	if err != nil {
		return images.Image{}, err
	}
	return image, writePulled(dir, image, a.ID)
}

// writePulled puts the record of an image into its volume, with the pull that made it.
func writePulled(dir *os.Root, image images.Image, id string) error {
	data, err := json.MarshalIndent(pulled{image, id}, "", "  ")
	if err != nil {
		return fmt.Errorf("cannot encode the record of an image: %v", err)
	}
	return store.WriteFile(dir, imageFile, data)
}

// record adds an image, or another name of one, to the store. Who asks for an image
// keeps it from the first moment that it is there: a pull that a power cut ends may be
// done as a whole, and what it brought is not to go by itself.
func (m *Manager) record(image images.Image, a pullArgs) (*images.Image, error) {
	old, err := m.cfg.Images.Get(image.Fingerprint)
	switch {
	case err == nil:
		image = old
	case !fault.Is(err, fault.NotFound):
		return nil, err
	default:
		image.UploadedAt = now()
		image.Cached = a.Cached
	}
	image.Cached = image.Cached && a.Cached
	if a.Name != "" && !slices.Contains(image.References, a.Name) {
		image.References = append(image.References, a.Name)
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
			if image, err := m.cfg.Images.Get(strings.TrimSuffix(name, diskSuffix)); err == nil {
				// It is whole, perhaps but for its name.
				if _, err := m.nameImage(image, a); err != nil {
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
