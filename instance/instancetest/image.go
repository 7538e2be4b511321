package instancetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
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

// WriteImage writes an OCI image layout with one layer into dir and gives the
// name to launch it by. The layout follows
// https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
func WriteImage(t testing.TB, dir, tag string, config ImageConfig, files []File) string {
	t.Helper()
	layer, diffID := layerOf(t, files)
	blob := func(data []byte) (string, int) {
		sum := sha256.Sum256(data)
		name := hex.EncodeToString(sum[:])
		write(t, filepath.Join(dir, "blobs", "sha256", name), data)
		return "sha256:" + name, len(data)
	}
	layerDigest, layerSize := blob(layer)
	configDigest, configSize := blob(encode(t, map[string]any{
		"architecture": "amd64", "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{diffID}},
	}))
	descriptor := func(mediaType, digest string, size int) map[string]any {
		return map[string]any{"mediaType": "application/vnd.oci.image." + mediaType, "digest": digest, "size": size}
	}
	manifestDigest, manifestSize := blob(encode(t, map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        descriptor("config.v1+json", configDigest, configSize),
		"layers":        []any{descriptor("layer.v1.tar+gzip", layerDigest, layerSize)},
	}))
	manifest := descriptor("manifest.v1+json", manifestDigest, manifestSize)
	manifest["annotations"] = map[string]string{"org.opencontainers.image.ref.name": tag}
	write(t, filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`))
	write(t, filepath.Join(dir, "index.json"), encode(t, map[string]any{
		"schemaVersion": 2, "manifests": []any{manifest},
	}))
	return "oci:" + dir + ":" + tag
}

func layerOf(t testing.TB, files []File) (blob []byte, diffID string) {
	t.Helper()
	var plain, packed bytes.Buffer
	w := tar.NewWriter(&plain)
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
	sum := sha256.Sum256(plain.Bytes())
	z := gzip.NewWriter(&packed)
	if _, err := z.Write(plain.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return packed.Bytes(), "sha256:" + hex.EncodeToString(sum[:])
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
