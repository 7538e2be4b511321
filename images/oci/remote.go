package oci

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

// remote is an image that was found.
type remote struct {
	source   *Source
	from     origin
	manifest *manifest
	image    images.Image
	release  func() // of the store, from Unpack on
}

func (r *remote) Image() images.Image { return r.image }

// Close lets the store sweep what no record needs by now.
func (r *remote) Close() error {
	if r.release != nil {
		r.release()
	}
	return r.from.Close()
}

// Unpack fetches the layers that the store lacks, several at once, and applies
// each as soon as its first bytes and all layers below it are there.
func (r *remote) Unpack(ctx context.Context, root *os.Root, p images.Progress) (images.Image, error) {
	if err := r.unpack(ctx, root, p); err != nil {
		return images.Image{}, fmt.Errorf("cannot unpack image %q: %w", r.name(), err)
	}
	return r.image, nil
}

func (r *remote) name() string {
	if len(r.image.References) > 0 {
		return r.image.References[0]
	}
	return r.image.Fingerprint
}

func (r *remote) unpack(ctx context.Context, root *os.Root, p images.Progress) error {
	if p == nil {
		p = images.Discard
	}
	if r.release == nil {
		release, err := r.source.store.Use(ctx)
		if err != nil {
			return err
		}
		r.release = release
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()

	unique := r.manifest.uniqueLayers()
	fetching, unpacking := images.Discard.Task("", 0, true), p.Task("Unpacking "+r.name(), total(r.manifest.Layers), true)
	if !r.from.local() {
		fetching = p.Task("Fetching "+r.name(), total(unique), true)
	}
	defer fetching.Done()
	defer unpacking.Done()

	f := r.source.fetch(ctx, r.from, unique, fetching)
	err := r.apply(ctx, cancel, root, f, unpacking)
	if err == nil {
		err = f.wait()
	}
	cancel()
	f.close()
	if err != nil || r.from.local() {
		return err
	}
	return r.keep()
}

func total(layers []descriptor) (n int64) {
	for _, d := range layers {
		n += d.Size
	}
	return n
}

func (r *remote) apply(ctx context.Context, cancel func(), root *os.Root, f *fetcher, task images.Task) error {
	u, err := rootfs.New(root, rootfs.Limits{})
	if err != nil {
		cancel()
		return err
	}
	defer u.Close()
	for _, layer := range r.image.Layers {
		if err := r.layer(ctx, cancel, u, f.layers[layer.Digest], layer, task); err != nil {
			return err
		}
	}
	return u.Finish(ctx)
}

// layer applies one layer and compares all that is claimed of it.
func (r *remote) layer(ctx context.Context, cancel func(), u *rootfs.Unpacker, l *layerFile, want images.Layer, task images.Task) error {
	b, err := rootfs.OpenBlob(counted{l.reader(), task}, want.MediaType, rootfs.Limits{})
	if err != nil {
		return r.blame(l, err)
	}
	err = u.Layer(ctx, b)
	if err == nil {
		err = l.compare(b.Digest(), b.Size())
	}
	if err == nil && b.DiffID() != want.DiffID {
		err = fault.New(fault.Invalid, "layer %s has the diff_id %s, the configuration says %s", want.Digest, b.DiffID(), want.DiffID)
	}
	if err != nil {
		err = r.blame(l, err)
		cancel() // ends a read that Close would wait for
	}
	b.Close()
	return err
}

// blame finds out whether a layer that could not be applied is what it should
// be. If not, that is the error, and a damaged copy is dropped from the store.
func (r *remote) blame(l *layerFile, err error) error {
	switch fault.Of(err) {
	case fault.Invalid, fault.Unavailable:
	default:
		return err
	}
	wrong := l.settle()
	if wrong == nil {
		return err
	}
	if l.stored() {
		r.source.store.RemoveBlob(l.d.Digest)
		return fault.New(fault.Unavailable, "the stored copy was damaged and is removed now, so that trying again fetches it: %w", wrong)
	}
	return wrong
}

// keep puts manifest and configuration beside the layers: the record needs
// them, and the next Resolve asks the registry for less.
func (r *remote) keep() error {
	if err := r.source.store.PutBlob(r.manifest.digest, int64(len(r.manifest.data)), bytes.NewReader(r.manifest.data)); err != nil {
		return err
	}
	c := r.manifest.Config
	return r.source.store.PutBlob(c.Digest, c.Size, bytes.NewReader(r.image.Config))
}

// counted tells a task what is read.
type counted struct {
	io.Reader
	task images.Task
}

func (c counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.task.Add(int64(n))
	return n, err
}
