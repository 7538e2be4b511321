package instancetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// ImageConfig is the config part of an OCI image configuration.
type ImageConfig struct {
	Entrypoint []string `json:",omitempty"`
	Cmd        []string `json:",omitempty"`
	Env        []string `json:",omitempty"`
	User       string   `json:",omitempty"`
	WorkingDir string   `json:",omitempty"`
	StopSignal string   `json:",omitempty"`
}

// File is a file of a test image. A name that ends in a slash is a folder.
type File struct {
	Name string
	Data []byte
	Mode int64
	UID  int
	GID  int
	Link string // a symbolic link to there
}

// Image is an OCI image with one layer, made by hand so that tests know every
// byte of it.
type Image struct {
	Manifest []byte
	Config   []byte
	Layer    []byte // as it is transferred: tar.gz
	plain    []byte
}

// The media types of the parts of an image.
const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// MakeImage makes an image of files.
func MakeImage(t testing.TB, config ImageConfig, files []File) *Image {
	t.Helper()
	return MakeImageOf(t, config, tarOf(t, files))
}

// MakeImageOf makes an image of the tar of its layer.
func MakeImageOf(t testing.TB, config ImageConfig, layer []byte) *Image {
	t.Helper()
	im := &Image{plain: layer}
	im.Layer = compress(t, im.plain)
	im.Config = encode(t, map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{Digest(im.plain)}},
	})
	im.Manifest = encode(t, map[string]any{
		"schemaVersion": 2,
		"mediaType":     manifestType,
		"config":        descriptor(configType, im.Config),
		"layers":        []any{descriptor(layerType, im.Layer)},
	})
	return im
}

// WriteImage writes an image layout into dir and gives the name to launch it by.
func WriteImage(t testing.TB, dir, tag string, config ImageConfig, files []File) string {
	t.Helper()
	return MakeImage(t, config, files).Layout(t, dir, tag)
}

// Layout writes im as an image layout into dir and gives the name to launch it
// by (https://github.com/opencontainers/image-spec/blob/main/image-layout.md).
func (im *Image) Layout(t testing.TB, dir, tag string) string {
	t.Helper()
	for name, data := range im.layout(t, tag) {
		write(t, filepath.Join(dir, name), data)
	}
	return "oci:" + dir + ":" + tag
}

// OCIArchive writes im as the tar of an image layout and gives the name to
// launch it by.
func (im *Image) OCIArchive(t testing.TB, file, tag string) string {
	t.Helper()
	write(t, file, archiveOf(t, im.layout(t, tag)))
	return "oci-archive:" + file
}

// DockerArchive writes im as docker save does and gives the name to launch it
// by.
func (im *Image) DockerArchive(t testing.TB, file, tag string) string {
	t.Helper()
	config := strings.TrimPrefix(Digest(im.Config), "sha256:") + ".json"
	write(t, file, archiveOf(t, map[string][]byte{
		config:            im.Config,
		"layer/layer.tar": im.plain,
		"manifest.json": encode(t, []any{map[string]any{
			"Config": config, "RepoTags": []string{tag}, "Layers": []string{"layer/layer.tar"},
		}}),
	}))
	return "docker-archive:" + file
}

func (im *Image) layout(t testing.TB, tag string) map[string][]byte {
	manifest := descriptor(manifestType, im.Manifest)
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": tag}
	files := map[string][]byte{
		"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`),
		"index.json": encode(t, map[string]any{"schemaVersion": 2, "manifests": []any{manifest}}),
	}
	for _, blob := range [][]byte{im.Manifest, im.Config, im.Layer} {
		files["blobs/"+strings.Replace(Digest(blob), ":", "/", 1)] = blob
	}
	return files
}

// Digest is the digest of data in OCI's notation.
func Digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func descriptor(mediaType string, data []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": Digest(data), "size": len(data)}
}

func archiveOf(t testing.TB, content map[string][]byte) []byte {
	var files []File
	for _, name := range slices.Sorted(maps.Keys(content)) {
		files = append(files, File{Name: name, Data: content[name], Mode: 0o644})
	}
	return tarOf(t, files)
}

func tarOf(t testing.TB, files []File) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, f := range files {
		h := &tar.Header{Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: int64(len(f.Data)), ModTime: time.Unix(1700000000, 0), Typeflag: tar.TypeReg}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, f.Link, 0
		case f.Name[len(f.Name)-1] == '/':
			h.Typeflag, h.Size = tar.TypeDir, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Data[:h.Size]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func compress(t testing.TB, data []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	z := gzip.NewWriter(&out)
	if _, err := io.Copy(z, bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}
