package oci

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/images/oci/registries"
	"brig/instance/fault"
)

// Limits of what is read of a storage.
const (
	maxStorageList = 64 << 20
	maxStoragePath = 4096
)

// storage is the origin of an image in the storage of podman, skopeo and their like
// (github.com/containers/storage). It is read, never locked or written. Its layers are
// kept unpacked beside what is needed to put their tar together again, so the image
// gets the same manifest as a docker archive of it.
type storage struct {
	dirFiles
	store  *images.Store // for the tars
	driver string        // overlay or vfs
	want   string
	config string            // path of the configuration
	layers map[string]string // ids, by digest
}

// containersImage and containersLayer are lines of images.json and layers.json.
type containersImage struct {
	ID     string   `json:"id"`
	Digest string   `json:"digest"`
	Names  []string `json:"names"`
	Layer  string   `json:"layer"`
}

type containersLayer struct {
	ID       string `json:"id"`
	Parent   string `json:"parent"`
	Digest   string `json:"diff-digest"`
	DiffSize int64  `json:"diff-size"`
}

// openStorage opens the image [DRIVER@ROOT+RUN:OPTIONS]NAME, where what is in brackets
// may be missing, as for skopeo.
func (source *Source) openStorage(name string) (*storage, error) {
	driver, path := "", ""
	if rest, ok := strings.CutPrefix(name, "["); ok {
		where, image, ok := strings.Cut(rest, "]")
		if !ok {
			return nil, fault.New(fault.Invalid, "the bracket is not closed: want containers-storage:[overlay@/FOLDER]NAME")
		}
		if d, p, ok := strings.Cut(where, "@"); ok {
			driver, where = d, p
		}
		where, _, _ = strings.Cut(where, "+")
		path, _, _ = strings.Cut(where, ":")
		name = image
		if !filepath.IsAbs(path) || len(path) > maxStoragePath {
			return nil, fault.New(fault.Invalid, "%.300q is not the absolute path of a storage", path)
		}
	}
	if name == "" {
		return nil, fault.New(fault.Invalid, "there is no name of an image")
	}
	if path == "" {
		var err error
		if driver, path, err = registries.Storage(); err != nil {
			return nil, err
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, pathFault(err)
	}
	s := &storage{dirFiles: dirFiles{root}, store: source.store, driver: driver, want: name, layers: map[string]string{}}
	if err := s.findDriver(path); err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

// findDriver finds out how the storage keeps its layers.
func (s *storage) findDriver(path string) error {
	known := []string{"overlay", "vfs"}
	if s.driver != "" && !slices.Contains(known, s.driver) {
		return fault.New(fault.Unsupported, "storage with the driver %.30q cannot be read: only overlay and vfs can; use podman save and docker-archive:FILE", s.driver)
	}
	for _, d := range known {
		if s.driver != "" && d != s.driver {
			continue
		}
		if _, err := s.dirFiles.root.Stat(d + "-images/images.json"); err == nil {
			s.driver = d
			return nil
		}
	}
	return fault.New(fault.NotFound, "there are no images of podman in %q", path)
}

func (s *storage) local() bool { return true }

func (s *storage) root(context.Context) (document, error) {
	img, err := s.find()
	if err != nil {
		return document{}, err
	}
	data, err := s.readConfig(img)
	if err != nil {
		return document{}, err
	}
	c, err := parseConfig(data)
	if err != nil {
		return document{}, fmt.Errorf("configuration: %w", err)
	}
	chain, err := s.chain(img)
	if err != nil {
		return document{}, err
	}
	if len(chain) != len(c.RootFS.DiffIDs) {
		return document{}, fault.New(fault.Invalid, "it has %d layers and its configuration %d diff_ids", len(chain), len(c.RootFS.DiffIDs))
	}
	m := &manifest{
		SchemaVersion: 2,
		MediaType:     string(types.DockerManifestSchema2),
		Config:        &descriptor{MediaType: string(types.DockerConfigJSON), Digest: digestOf(data), Size: int64(len(data))},
		Layers:        []descriptor{},
	}
	for i, l := range chain {
		digest := c.RootFS.DiffIDs[i]
		if l.Digest != "" && l.Digest != digest {
			return document{}, fault.New(fault.Invalid, "its layer %d is %.80q and should be %s", i, l.Digest, digest)
		}
		size, err := s.layerSize(l)
		if err != nil {
			return document{}, err
		}
		s.layers[digest] = l.ID
		m.Layers = append(m.Layers, descriptor{MediaType: dockerTar, Digest: digest, Size: size})
	}
	return m.encode()
}

// find gives the image that the user means: by a name of it, or by its id.
func (s *storage) find() (containersImage, error) {
	var list []containersImage
	if err := s.readList(s.driver+"-images/images.json", &list); err != nil {
		return containersImage{}, err
	}
	var names []string
	id := strings.TrimPrefix(strings.TrimPrefix(s.want, "@"), "sha256:")
	for _, img := range list {
		if !images.IsFingerprint(img.ID) {
			continue
		}
		names = append(names, img.Names...)
		if len(id) >= 12 && strings.HasPrefix(img.ID, id) || slices.ContainsFunc(img.Names, func(name string) bool {
			return sameTag(name, s.want) || sameTag(name, "localhost/"+s.want) || s.want == name
		}) {
			return img, nil
		}
	}
	return containersImage{}, fault.New(fault.NotFound, "the storage has no image %q, only %.300q", s.want, strings.Join(names, ", "))
}

func (s *storage) readList(name string, list any) error {
	data, err := readAll(s, name, maxStorageList)
	if err == nil {
		err = json.Unmarshal(data, list)
		if err != nil {
			err = fault.New(fault.Invalid, "%s is no valid JSON: %w", name, err)
		}
	}
	return err
}

// readConfig reads the configuration that the manifest names.
func (s *storage) readConfig(img containersImage) ([]byte, error) {
	dir := s.driver + "-images/" + img.ID + "/"
	data, err := readAll(s, dir+"manifest", maxManifest)
	if err != nil {
		return nil, err
	}
	var m struct {
		Config descriptor `json:"config"`
	}
	if err := json.Unmarshal(data, &m); err != nil || images.CheckDigest(m.Config.Digest) != nil {
		return nil, fault.New(fault.Unsupported, "its manifest names no configuration: it is of an old kind; podman save makes a docker-archive of it")
	}
	// Names with other than small letters, digits and dots are encoded.
	s.config = dir + "=" + base64.StdEncoding.EncodeToString([]byte(m.Config.Digest))
	data, err = readAll(s, s.config, maxConfig)
	if err == nil && digestOf(data) != m.Config.Digest {
		err = fault.New(fault.Invalid, "its configuration is damaged: it has the digest %s instead of %s", digestOf(data), m.Config.Digest)
	}
	return data, err
}

// chain are the layers of an image, bottom first.
func (s *storage) chain(img containersImage) ([]containersLayer, error) {
	var list []containersLayer
	if err := s.readList(s.driver+"-layers/layers.json", &list); err != nil {
		return nil, err
	}
	byID := map[string]containersLayer{}
	for _, l := range list {
		byID[l.ID] = l
	}
	var chain []containersLayer
	for id := img.Layer; id != ""; {
		l, ok := byID[id]
		if !ok || !images.IsFingerprint(id) {
			return nil, fault.New(fault.Invalid, "it is not complete: the storage lacks its layer %.80q", id)
		}
		if chain = append(chain, l); len(chain) > maxLayers {
			return nil, fault.New(fault.Invalid, "it has more than %d layers", maxLayers)
		}
		id = l.Parent
	}
	slices.Reverse(chain)
	return chain, nil
}

func (s *storage) manifest(context.Context, descriptor) (stream, error) {
	return stream{}, fault.New(fault.Internal, "a storage has no manifests")
}

func (s *storage) blob(ctx context.Context, d descriptor, _ int64) (stream, error) {
	if id, ok := s.layers[d.Digest]; ok {
		f, err := s.layerFile(ctx, id)
		if err != nil {
			return stream{}, err
		}
		return stream{ReadCloser: f}, nil
	}
	return openExact(s, s.config, d)
}
