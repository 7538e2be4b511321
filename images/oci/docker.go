package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/images/rootfs"
	"brig/instance/fault"
)

const (
	dockerTar  = string(types.DockerUncompressedLayer)
	dockerGzip = string(types.DockerLayer)
)

// dockerArchive is the origin of an image in a file that `docker save` wrote.
// Such a file has no manifest that could be pulled: one is put together here,
// always the same for the same image.
type dockerArchive struct {
	*archive
	want  string            // the reference to look for; empty: the only one
	paths map[string]string // of blobs, by digest
}

// saved is one image in manifest.json.
type saved struct {
	Config   string
	RepoTags []string
	Layers   []string
}

func (s *Source) openDockerArchive(ctx context.Context, name string) (*dockerArchive, error) {
	path, want, _ := strings.Cut(name, ":")
	a, err := s.openArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	return &dockerArchive{archive: a, want: want, paths: map[string]string{}}, nil
}

func (a *dockerArchive) local() bool { return true }

func (a *dockerArchive) root(ctx context.Context) (document, error) {
	img, err := a.find()
	if err != nil {
		return document{}, err
	}
	data, err := readAll(a, img.Config, maxConfig)
	if err != nil {
		return document{}, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return document{}, fmt.Errorf("configuration: %w", err)
	}
	if len(c.RootFS.DiffIDs) != len(img.Layers) || len(img.Layers) > maxLayers {
		return document{}, fault.New(fault.Invalid, "it has %d layers and its configuration %d diff_ids", len(img.Layers), len(c.RootFS.DiffIDs))
	}
	m := &manifest{
		SchemaVersion: 2,
		MediaType:     string(types.DockerManifestSchema2),
		Config:        &descriptor{MediaType: string(types.DockerConfigJSON), Digest: digestOf(data), Size: int64(len(data))},
		Layers:        []descriptor{},
	}
	a.paths[m.Config.Digest] = img.Config
	for i, name := range img.Layers {
		d, err := a.layer(ctx, name, c.RootFS.DiffIDs[i])
		if err != nil {
			return document{}, err
		}
		a.paths[d.Digest] = name
		m.Layers = append(m.Layers, d)
	}
	return m.encode()
}

// find gives the image that the user means.
func (a *dockerArchive) find() (saved, error) {
	var list []saved
	data, err := readAll(a, "manifest.json", maxManifest)
	if fault.Is(err, fault.NotFound) {
		return saved{}, fault.New(fault.Invalid, "`docker save` did not write it: it has no file manifest.json")
	}
	if err != nil {
		return saved{}, err
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return saved{}, fault.New(fault.Invalid, "its manifest.json is no valid JSON: %w", err)
	}
	var tags []string
	for _, img := range list {
		tags = append(tags, img.RepoTags...)
		if slices.ContainsFunc(img.RepoTags, func(t string) bool { return sameTag(t, a.want) }) {
			return img, nil
		}
	}
	switch {
	case a.want != "":
		return saved{}, fault.New(fault.NotFound, "it has no image %q, only %.300q", a.want, strings.Join(tags, ", "))
	case len(list) == 1:
		return list[0], nil
	}
	return saved{}, fault.New(fault.Invalid, "it has %d images: add one of the names %.300q after a colon", len(list), strings.Join(tags, ", "))
}

// sameTag compares names as docker does, for which app is app:latest.
func sameTag(a, b string) bool {
	x, err := images.ParseRepository(images.Ref{Scheme: "docker", Name: a})
	if err != nil {
		return a == b
	}
	y, err := images.ParseRepository(images.Ref{Scheme: "docker", Name: b})
	return err == nil && x == y
}

// layer describes the file of a layer. Docker saves plain tars, whose digest is
// the diff_id; whether that is true is seen when it is unpacked.
func (a *dockerArchive) layer(ctx context.Context, name, diffID string) (descriptor, error) {
	f, size, err := a.open(name)
	if err != nil {
		return descriptor{}, err
	}
	defer f.Close()
	d := descriptor{Digest: diffID, Size: size}
	if d.MediaType, err = tarSniff(f); err != nil || d.MediaType == dockerTar {
		return d, err
	}
	h := rootfs.NewHashReader(interruptible{ctx, f})
	if _, err := io.Copy(io.Discard, h); err != nil {
		return d, err
	}
	d.Digest = h.Digest()
	return d, nil
}

func (a *dockerArchive) manifest(context.Context, descriptor) (stream, error) {
	return stream{}, fault.New(fault.Internal, "an archive of docker has no manifests")
}

func (a *dockerArchive) blob(_ context.Context, d descriptor, _ int64) (stream, error) {
	return openExact(a, a.paths[d.Digest], d)
}
