package oci

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/instance/fault"
)

// What the parts of an image may be at most. The OCI specification asks
// registries to take manifests of 4 MiB.
const (
	maxManifest = 4 << 20
	maxConfig   = 4 << 20
	maxLayers   = 512
	maxIndex    = 4096 // manifests in one index
	maxDepth    = 4    // indexes in indexes
)

// stream is a part of an image that is being read.
type stream struct {
	io.ReadCloser
	mediaType string // as the transport says; empty if it does not
}

// document is a manifest or an index, byte for byte.
type document struct {
	mediaType string // as the transport or its descriptor says
	data      []byte
}

// descriptor is the OCI content descriptor. Embedded data and URLs are never
// used.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (d descriptor) check() error {
	if err := images.CheckDigest(d.Digest); err != nil {
		return err
	}
	if d.Size < 0 {
		return fault.New(fault.Invalid, "%s has the size %d", d.Digest, d.Size)
	}
	return nil
}

// manifest is an image manifest or an index, of OCI or of docker.
type manifest struct {
	SchemaVersion int             `json:"schemaVersion"`
	MediaType     string          `json:"mediaType,omitempty"`
	Config        *descriptor     `json:"config,omitempty"`
	Layers        []descriptor    `json:"layers,omitempty"`
	Manifests     []descriptor    `json:"manifests,omitempty"`
	FSLayers      json.RawMessage `json:"fsLayers,omitempty"` // of schema 1

	data   []byte
	digest string
}

// parseManifest checks a document. A document that can be read both as a
// manifest and as an index, or that calls itself something else than its
// transport does, means different images to different readers and is refused.
func parseManifest(doc document) (*manifest, error) {
	m := &manifest{data: doc.data, digest: digestOf(doc.data)}
	if err := json.Unmarshal(doc.data, m); err != nil {
		return nil, fault.New(fault.Invalid, "its manifest is no valid JSON: %w", err)
	}
	mediaType, err := agree(doc.mediaType, m.MediaType)
	if err != nil {
		return nil, err
	}
	isIndex, isManifest := m.Manifests != nil, m.Config != nil || m.Layers != nil
	switch {
	case m.SchemaVersion == 1 || types.MediaType(mediaType).IsSchema1():
		return nil, fault.New(fault.Unsupported, "its manifest has schema 1, which registries gave up in 2017: push it again")
	case m.SchemaVersion != 2:
		return nil, fault.New(fault.Invalid, "its manifest has the schema version %d, want 2", m.SchemaVersion)
	case mediaType != "" && !types.MediaType(mediaType).IsIndex() && !types.MediaType(mediaType).IsImage():
		return nil, fault.New(fault.Unsupported, "its manifest has the unknown media type %q", mediaType)
	case m.FSLayers != nil || isIndex && isManifest:
		return nil, fault.New(fault.Invalid, "its manifest is ambiguous: it is both an image and an index")
	case types.MediaType(mediaType).IsIndex() && isManifest, types.MediaType(mediaType).IsImage() && isIndex:
		return nil, fault.New(fault.Invalid, "its manifest is not the %s that it says it is", mediaType)
	case isIndex:
		return m, m.checkIndex()
	case m.Config == nil || m.Layers == nil:
		return nil, fault.New(fault.Invalid, "its manifest lacks a configuration or layers")
	}
	return m, m.checkImage()
}

// agree gives the media type that both agree on. Registries that serve
// manifests as plain JSON or text say nothing by that.
func agree(transport, own string) (string, error) {
	t, _, err := mime.ParseMediaType(transport)
	if err != nil || !strings.HasPrefix(t, "application/vnd.") {
		return own, nil
	}
	if own != "" && own != t {
		return "", fault.New(fault.Invalid, "its manifest is ambiguous: it calls itself %.100q and came as %.100q", own, t)
	}
	return t, nil
}

func (m *manifest) checkIndex() error {
	if len(m.Manifests) > maxIndex {
		return fault.New(fault.Invalid, "its index has %d manifests, at most %d are allowed", len(m.Manifests), maxIndex)
	}
	for _, d := range m.Manifests {
		if err := d.check(); err != nil {
			return err
		}
	}
	return nil
}

func (m *manifest) checkImage() error {
	if err := m.Config.check(); err != nil {
		return err
	}
	switch types.MediaType(m.Config.MediaType) {
	case types.OCIConfigJSON, types.DockerConfigJSON:
	default:
		return fault.New(fault.Unsupported, "it is not a container image: its configuration has the type %.100q", m.Config.MediaType)
	}
	if len(m.Layers) > maxLayers {
		return fault.New(fault.Invalid, "it has %d layers, at most %d are allowed", len(m.Layers), maxLayers)
	}
	for _, d := range m.Layers {
		if err := d.check(); err != nil {
			return err
		}
		if err := checkLayerType(d.MediaType); err != nil {
			return err
		}
	}
	return nil
}

// dockerZstd is what some builders call zstd layers in docker manifests.
const dockerZstd = "application/vnd.docker.image.rootfs.diff.tar.zstd"

func checkLayerType(mediaType string) error {
	switch types.MediaType(mediaType) {
	case types.OCILayer, types.OCILayerZStd, types.OCIUncompressedLayer,
		types.DockerLayer, types.DockerUncompressedLayer, dockerZstd:
		return nil
	}
	if !types.MediaType(mediaType).IsDistributable() {
		return fault.New(fault.Unsupported, "it has a layer that registries may not distribute (%s), as Windows images do", mediaType)
	}
	return fault.New(fault.Unsupported, "it has a layer of the unknown media type %.100q", mediaType)
}

// choose walks from the root to the manifest for a platform.
func (s *Source) choose(ctx context.Context, from origin, want platform) (*manifest, error) {
	doc, err := from.root(ctx)
	if err != nil {
		return nil, err
	}
	for range maxDepth + 1 {
		m, err := parseManifest(doc)
		if err != nil || m.Config != nil {
			return m, err
		}
		d, err := want.choose(m.Manifests)
		if err != nil {
			return nil, err
		}
		doc.data, err = s.read(ctx, from, from.manifest, d, maxManifest)
		if err != nil {
			return nil, fmt.Errorf("manifest: %w", err)
		}
		doc.mediaType = d.MediaType
	}
	return nil, fault.New(fault.Invalid, "it has indexes in indexes, more than %d deep", maxDepth)
}

// read gives a small part, from the store if it was fetched before. Errors:
// unavailable for a wrong size or digest, invalid for one that is too large.
func (s *Source) read(ctx context.Context, from origin, open func(context.Context, descriptor) (stream, error), d descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, fault.New(fault.Invalid, "%s has %d bytes, at most %d are allowed", d.Digest, d.Size, limit)
	}
	if data, ok := s.stored(d); ok && !from.local() {
		return data, nil
	}
	r, err := open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if _, err := agree(r.mediaType, d.MediaType); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, readError(err, d, int64(len(data)))
	}
	return data, compare(d, data)
}

func compare(d descriptor, data []byte) error {
	switch n := int64(len(data)); {
	case n > d.Size:
		return fault.New(fault.Unavailable, "%s is longer than the %d bytes that were promised (wrong size)", d.Digest, d.Size)
	case n < d.Size:
		return fault.New(fault.Unavailable, "%s was truncated after %d of %d bytes", d.Digest, n, d.Size)
	}
	if got := digestOf(data); got != d.Digest {
		return fault.New(fault.Unavailable, "what came for %s has the wrong digest %s", d.Digest, got)
	}
	return nil
}

func (s *Source) stored(d descriptor) ([]byte, bool) {
	f, err := s.store.Blob(d.Digest)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, d.Size+1))
	return data, err == nil && compare(d, data) == nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// encode makes the document of a manifest that brig puts together itself, for
// sources that have none.
func (m *manifest) encode() (document, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(m)
	return document{mediaType: m.MediaType, data: bytes.TrimSpace(b.Bytes())}, err
}

// uniqueLayers are the layers to fetch: builders repeat the empty one.
func (m *manifest) uniqueLayers() []descriptor {
	var list []descriptor
	for _, d := range m.Layers {
		if !slices.ContainsFunc(list, func(o descriptor) bool { return o.Digest == d.Digest }) {
			list = append(list, d)
		}
	}
	return list
}
