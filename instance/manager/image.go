package manager

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
	"brig/storage"
)

// diskSize is the size of the root disk of a virtual machine, in bytes.
const diskSize = 10 << 30

func treeKey(fingerprint string) storage.Key {
	return storage.Key{Class: storage.Images, Name: fingerprint}
}

// diskSuffix tells the volume with an image's disk from that with its tree.
const diskSuffix = "-disk"

func diskKey(fingerprint string) storage.Key {
	return storage.Key{Class: storage.Images, Name: fingerprint + diskSuffix}
}

// keyOf is the volume that an image was unpacked into.
func keyOf(image *images.Image) storage.Key {
	if image.Kind == images.Disk {
		return diskKey(image.Fingerprint)
	}
	return treeKey(image.Fingerprint)
}

// ensureImage gives the image that a user named and the volume to clone for a
// form. It fetches what is not here.
func (m *Manager) ensureImage(ctx context.Context, name string, t instance.Type, in string) (*images.Image, storage.Key, error) {
	image, err := m.fetch(ctx, formOf(name, t), images.ResolveOptions{}, in, toUse)
	if err != nil {
		return nil, storage.Key{}, err
	}
	switch {
	case t == instance.VirtualMachine:
		return image, diskKey(image.Fingerprint), m.ensureDisk(ctx, image, in)
	case image.Kind == images.Disk:
		return nil, storage.Key{}, fault.New(fault.Unsupported, "image %q is the disk of a virtual machine, which boots by itself and is no tree that a container could run: use --vm", name)
	}
	return image, treeKey(image.Fingerprint), nil
}

// formOf is the name of an image's form: some remotes have another image for
// virtual machines. What is no name stays, for fetch to refuse.
func formOf(name string, t instance.Type) string {
	ref, err := images.ParseRef(name)
	if err != nil || t != instance.VirtualMachine {
		return name
	}
	return images.ForMachine(ref).String()
}

// PullImage fetches the image that ref names now, also if an older one is here
// under that name.
func (m *Manager) PullImage(ctx context.Context, ref string, o PullOptions) (*images.Image, error) {
	if r, err := images.ParseRef(ref); err == nil && r.Remote == "" && r.Scheme == "" {
		return nil, fault.New(fault.Invalid, "cannot pull %q: it names no remote; write REMOTE:NAME, for example debian:bookworm, or docker://HOST/REPO:TAG", ref)
	}
	if o.VM {
		ref = formOf(ref, instance.VirtualMachine)
	}
	image, err := m.fetch(ctx, ref, images.ResolveOptions{Architecture: images.Architecture(o.Architecture)}, "", toKeep)
	if err != nil {
		return nil, err
	}
	return m.finishImage(ctx, image, o)
}

// ImportImage takes an image from a file or folder on this host, or of a scheme for
// what is on this host.
func (m *Manager) ImportImage(ctx context.Context, path string, o ImportOptions) (*images.Image, error) {
	name := ImportRemote + ":" + path
	if ref, err := images.ParseRef(path); err == nil && ref.OnHost() {
		if o.Rootfs != "" {
			return nil, fault.New(fault.Invalid, "cannot import %q with %q: an OCI image has no other part", path, o.Rootfs)
		}
		name = path
	}
	image, err := m.fetch(ctx, name, images.ResolveOptions{Architecture: images.Architecture(o.Architecture), Rootfs: o.Rootfs}, "", toKeep)
	if err != nil {
		return nil, err
	}
	return m.finishImage(ctx, image, PullOptions{Alias: o.Alias})
}

// finishImage makes an image one that somebody asked for, and that stays.
func (m *Manager) finishImage(ctx context.Context, image *images.Image, o PullOptions) (*images.Image, error) {
	if image.Cached || o.AutoUpdate && !image.AutoUpdate {
		err := m.cfg.Images.Change(ctx, image.Fingerprint, func(im *images.Image) {
			im.Cached, im.AutoUpdate = false, im.AutoUpdate || o.AutoUpdate
		})
		if err != nil {
			return nil, err
		}
	}
	if o.VM {
		if err := m.ensureDisk(ctx, image, ""); err != nil {
			return nil, err
		}
	}
	if o.Alias != "" {
		if err := m.setAlias(o.Alias, image.Fingerprint); err != nil {
			return nil, err
		}
		image.Aliases = append(image.Aliases, o.Alias)
	}
	return image, nil
}

// purpose is what an image is fetched for.
type purpose int

const (
	toUse     purpose = iota // for an instance: one that is here will do, and a new one goes when nobody uses it
	toKeep                   // somebody asked for what its remote has now, which stays
	toRefresh                // what its remote has now, until refreshing decides what becomes of it
)

// fetch gives the image of a name: one that is here, if that is enough, or what its
// remote has now. Two that fetch one name share the work.
func (m *Manager) fetch(ctx context.Context, name string, o images.ResolveOptions, in string, why purpose) (*images.Image, error) {
	ref, err := images.ParseRef(name)
	if err != nil {
		return nil, err
	}
	local := ref.Remote == "" && ref.Scheme == ""
	// A file on this host may have changed, and is looked at again.
	fresh := why != toUse || ref.Remote == "" && ref.Scheme != "docker" || o.Architecture != ""
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
	return m.pull(ctx, source, ref, name, in, why != toKeep, o)
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

// SearchImages lists what a remote has: those of its images that match all words
// behind the colon, or all. Without a colon it searches images:.
func (m *Manager) SearchImages(ctx context.Context, query, architecture string) ([]images.Image, error) {
	remote, words, ok := strings.Cut(query, ":")
	if !ok {
		remote, words = "images", query
	}
	ref := images.Ref{Remote: remote, Name: words}
	if name, ok := strings.CutPrefix(query, "docker://"); ok {
		ref = images.Ref{Scheme: "docker", Name: name}
	} else if remote == images.ProtocolSimplestreams {
		ref = images.Ref{Scheme: remote, Name: words}
	}
	source, err := m.cfg.Source(ref)
	if err != nil {
		return nil, err
	}
	searcher, ok := source.(images.Searcher)
	if !ok {
		return nil, fault.New(fault.Unsupported, "cannot search %q: it has no list of images", query)
	}
	return searcher.Search(ctx, ref, images.ResolveOptions{Architecture: architecture, Progress: m.cfg.Progress})
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
	// The first step removes several files, so one that failed is carried on, too.
	return &operation{forward: true, turn: -1, steps: []step{
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

func short(fingerprint string) string { return fingerprint[:min(12, len(fingerprint))] }

func isGone(err error) bool {
	return fault.Is(err, fault.NotFound) || errors.Is(err, os.ErrNotExist)
}
