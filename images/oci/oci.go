// Package oci is the images.Source of OCI images: in registries, in OCI image
// layouts, and in the archives that docker and its like save. It finds the
// manifest for a platform, checks everything that a manifest or configuration
// claims, and fetches layers into the image store while they are unpacked.
//
// Nothing a registry or file says is believed: sizes and digests are compared
// for every part, reads are bounded, and waiting ends. The use of
// go-containerregistry (credentials, tokens, names) stays in here; unpacking
// itself is package rootfs.
package oci

import (
	"context"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"

	"brig/images"
	"brig/images/oci/registries"
	"brig/images/web"
	"brig/instance/fault"
)

// Options change a Source. The zero value is meant for real registries.
type Options struct {
	Keychain  authn.Keychain    // nil: the configuration files of docker and podman
	Transport http.RoundTripper // nil: brig's own, with the Patience below
	Patience  Patience
	Jobs      int // layers fetched at once; 0: 4

	// Registries gives the settings of registries when one is first asked. Nil:
	// none.
	Registries func() (registries.Config, error)

	// Certificates are directories of certificates by registry; nil: those of
	// docker and podman.
	Certificates []string
}

// Patience says how long to wait for a registry.
type Patience = web.Patience

func or[T comparable](v, byDefault T) T {
	var zero T
	if v == zero {
		return byDefault
	}
	return v
}

// Source is the images.Source of OCI images.
type Source struct {
	store    *images.Store
	keychain authn.Keychain
	base     http.RoundTripper // nil: one for each registry
	patience Patience
	jobs     int
	settings func() (registries.Config, error)
	certs    []string
}

// New makes a source that keeps the layers it fetches in store.
func New(store *images.Store, o Options) *Source {
	s := &Source{
		store:    store,
		keychain: o.Keychain,
		base:     o.Transport,
		patience: o.Patience.WithDefaults(),
		jobs:     or(o.Jobs, 4),
		settings: o.Registries,
		certs:    o.Certificates,
	}
	if s.settings == nil {
		s.settings = func() (registries.Config, error) { return registries.Config{}, nil }
	}
	if s.certs == nil {
		s.certs = []string{"/etc/containers/certs.d", "/etc/docker/certs.d"}
	}
	if s.keychain == nil {
		s.keychain = authn.DefaultKeychain
	}
	return s
}

// Resolve finds the image that ref names now.
func (s *Source) Resolve(ctx context.Context, ref images.Ref, o images.ResolveOptions) (images.Remote, error) {
	from, err := s.open(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("cannot find image %q: %w", ref.String(), err)
	}
	r, err := s.resolve(ctx, ref, from, o)
	if err != nil {
		from.Close()
		return nil, fmt.Errorf("cannot find image %q: %w", ref.String(), err)
	}
	return r, nil
}

// origin is where the parts of images come from.
type origin interface {
	// root gives the manifest or index that the reference means.
	root(ctx context.Context) (document, error)

	// manifest opens a manifest or index, blob a configuration or layer from
	// an offset on. The caller compares size and digest.
	manifest(ctx context.Context, d descriptor) (stream, error)
	blob(ctx context.Context, d descriptor, offset int64) (stream, error)

	// local tells that blobs are at hand, so that keeping a copy is of no use.
	local() bool

	Close() error
}

func (s *Source) open(ctx context.Context, ref images.Ref) (origin, error) {
	switch ref.Scheme {
	case "oci":
		return openLayoutDir(ref.Name)
	case "oci-archive":
		return s.openLayoutArchive(ctx, ref.Name)
	case "docker-archive":
		return s.openDockerArchive(ctx, ref.Name)
	case images.ContainersStorage:
		return s.openStorage(ref.Name)
	}
	if e, err := images.FindRemote(ref.Remote); ref.Scheme == "" && err == nil && e.Protocol != images.ProtocolOCI {
		return nil, fault.New(fault.Unsupported, "remote %q is not an OCI registry", ref.Remote)
	}
	name, err := images.ParseRepository(ref)
	if err != nil {
		return nil, err
	}
	return s.openRegistry(name)
}

func (s *Source) resolve(ctx context.Context, ref images.Ref, from origin, o images.ResolveOptions) (*remote, error) {
	want, err := platformOf(or(o.Architecture, images.HostArchitecture()))
	if err != nil {
		return nil, err
	}
	m, err := s.choose(ctx, from, want)
	if err != nil {
		return nil, err
	}
	whole := func(ctx context.Context, d descriptor) (stream, error) { return from.blob(ctx, d, 0) }
	data, err := s.read(ctx, from, whole, *m.Config, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	c, err := parseConfig(data)
	if err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if err := want.accepts(c.platform); err != nil {
		return nil, err
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return nil, fault.New(fault.Invalid, "its manifest has %d layers and its configuration %d diff_ids", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	name, err := images.Canonical(ref)
	if err != nil {
		return nil, err
	}
	return &remote{source: s, from: from, manifest: m, image: imageOf(m, c, data, name, want)}, nil
}
