package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/klauspost/compress/gzip"
)

// writeIdleImage makes an image of a few bytes whose instances idle, since its
// command is only a shell, and gives the name that brig knows it by.
func writeIdleImage(dir string) (string, error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	plain := filepath.Join(dir, "layer.tar")
	f, err := os.Create(plain)
	if err != nil {
		return "", err
	}
	defer f.Close()
	const passwd = "root:x:0:0:root:/root:/bin/sh\n"
	w := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "etc/passwd", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(passwd))},
	} {
		if err := w.WriteHeader(&h); err != nil {
			return "", err
		}
		if _, err := io.WriteString(w, passwd[:h.Size]); err != nil {
			return "", err
		}
	}
	if err := w.Close(); err != nil {
		return "", err
	}
	layout, err := writeLayout(context.Background(), filepath.Join(dir, "layout"), plain)
	return layout.ref, err
}

// layout is an OCI image layout with one image of one layer.
type layout struct {
	ref   string // as brig takes it
	layer string // path of the layer, a tar.gz
}

// writeLayout makes an image of a tar.
func writeLayout(ctx context.Context, dir, plain string) (layout, error) {
	l, err := newLayers(dir)
	if err != nil {
		return layout{}, err
	}
	if err := l.add(ctx, plain); err != nil {
		return layout{}, err
	}
	return layout{ref: "oci:" + dir + ":bench", layer: l.path(l.layers[0])}, l.write(tagged{"bench", l.layers, l.diffIDs})
}

// layers writes an OCI image layout, see
// https://github.com/opencontainers/image-spec/blob/main/image-layout.md.
type layers struct {
	dir     string
	layers  []descriptor
	diffIDs []string
}

func newLayers(dir string) (*layers, error) {
	l := &layers{dir: dir}
	return l, os.MkdirAll(l.blobs(), 0o700)
}

func (l *layers) blobs() string { return filepath.Join(l.dir, "blobs", "sha256") }

func (l *layers) path(d descriptor) string {
	return filepath.Join(l.blobs(), d.Digest[len("sha256:"):])
}

// add makes a layer of a tar.
func (l *layers) add(ctx context.Context, plain string) error {
	packed := filepath.Join(l.dir, "layer.tar.gz")
	layer, diffID, err := compress(ctx, packed, plain)
	if err != nil {
		return err
	}
	l.layers, l.diffIDs = append(l.layers, layer), append(l.diffIDs, diffID)
	return os.Rename(packed, l.path(layer))
}

// tagged is an image of some layers.
type tagged struct {
	tag     string
	layers  []descriptor
	diffIDs []string
}

// write completes the layout with images.
func (l *layers) write(images ...tagged) error {
	var index []descriptor
	for _, image := range images {
		config, err := writeBlob(l.blobs(), "application/vnd.oci.image.config.v1+json", map[string]any{
			"architecture": runtime.GOARCH, "os": "linux",
			"config": map[string]any{"Cmd": []string{"/bin/sh"}},
			"rootfs": map[string]any{"type": "layers", "diff_ids": image.diffIDs},
		})
		if err != nil {
			return err
		}
		manifest, err := writeBlob(l.blobs(), manifestType, map[string]any{
			"schemaVersion": 2, "mediaType": manifestType, "config": config, "layers": image.layers,
		})
		if err != nil {
			return err
		}
		manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": image.tag}
		index = append(index, manifest)
	}
	if err := writeJSON(filepath.Join(l.dir, "index.json"), map[string]any{"schemaVersion": 2, "manifests": index}); err != nil {
		return err
	}
	return writeJSON(filepath.Join(l.dir, "oci-layout"), map[string]string{"imageLayoutVersion": "1.0.0"})
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// compress makes a layer of a tar and gives the digest of both.
func compress(ctx context.Context, packed, plain string) (d descriptor, diffID string, err error) {
	in, err := os.Open(plain)
	if err != nil {
		return d, "", err
	}
	defer in.Close()
	out, err := os.Create(packed)
	if err != nil {
		return d, "", err
	}
	defer out.Close()
	inner, outer := sha256.New(), sha256.New()
	z := gzip.NewWriter(io.MultiWriter(out, outer))
	if _, err := io.Copy(io.MultiWriter(z, inner), until{ctx, in}); err != nil {
		return d, "", fmt.Errorf("cannot make a layer: %w", err)
	}
	if err := z.Close(); err != nil {
		return d, "", fmt.Errorf("cannot make a layer: %w", err)
	}
	st, err := out.Stat()
	if err != nil {
		return d, "", err
	}
	d = descriptor{MediaType: "application/vnd.oci.image.layer.v1.tar+gzip", Digest: digest(outer.Sum(nil)), Size: st.Size()}
	return d, digest(inner.Sum(nil)), out.Close()
}

func digest(sum []byte) string { return "sha256:" + hex.EncodeToString(sum) }

func writeBlob(blobs, mediaType string, v any) (descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return descriptor{}, err
	}
	sum := sha256.Sum256(data)
	d := descriptor{MediaType: mediaType, Digest: digest(sum[:]), Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(blobs, hex.EncodeToString(sum[:])), data, 0o600)
}

func writeJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// until is a reader that ends with its context.
type until struct {
	ctx context.Context
	io.Reader
}

func (u until) Read(p []byte) (int, error) {
	if err := u.ctx.Err(); err != nil {
		return 0, err
	}
	return u.Reader.Read(p)
}
