package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/images/web"
	"brig/instance/fault"
)

// registry is the origin of an image in an OCI registry.
type registry struct {
	source   *Source
	name     images.Repository
	insecure bool // as the settings of registries have it
	patience Patience

	once   sync.Once // guards what follows
	base   http.RoundTripper
	client *http.Client
	err    error
}

// openRegistry gives the origin of what is in a repository.
func (s *Source) openRegistry(name images.Repository) (origin, error) {
	places, err := s.places(name)
	if err != nil {
		return nil, err
	}
	if len(places) == 1 {
		return places[0], nil
	}
	return &mirrored{places: places}, nil
}

// places gives where the settings have a repository, in the order to ask.
func (s *Source) places(name images.Repository) ([]*registry, error) {
	settings, err := s.settings()
	if err != nil {
		return nil, err
	}
	places, err := settings.Places(name)
	if err != nil {
		return nil, err
	}
	list := make([]*registry, len(places))
	for i, p := range places {
		list[i] = &registry{source: s, name: p.Repository, insecure: p.Insecure, patience: s.patience}
		if i < len(places)-1 {
			list[i].patience.Repeats = 0 // the next one is better than the same again
		}
	}
	return list, nil
}

func (g *registry) local() bool { return false }

func (g *registry) Close() error {
	if c, ok := g.base.(interface{ CloseIdleConnections() }); ok {
		c.CloseIdleConnections()
	}
	return nil
}

// connect asks the registry how to log in, and does.
func (g *registry) connect(ctx context.Context) (*http.Client, error) {
	g.once.Do(func() { g.client, g.err = g.login(ctx) })
	return g.client, g.err
}

func (g *registry) login(ctx context.Context) (*http.Client, error) {
	repo, err := name.NewRepository(g.name.Host+"/"+g.name.Path, g.options()...)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%w", err)
	}
	auth, err := authn.Resolve(ctx, g.source.keychain, repo)
	if err != nil {
		return nil, fault.New(fault.Forbidden, "cannot read the credentials for %s: %w", g.name.Host, err)
	}
	if err := g.transport(); err != nil {
		return nil, err
	}
	base := transport.NewUserAgent(&web.Retrier{
		Patience: g.patience,
		Next:     &web.Guard{Home: repo.RegistryStr(), Plain: g.insecure, Next: g.base, What: "registry"},
	}, "brig")
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, base, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return nil, g.explain(err)
	}
	return &http.Client{Transport: rt}, nil
}

// options tell go-containerregistry whether plain HTTP may be tried after HTTPS.
func (g *registry) options() []name.Option {
	if g.name.Loopback() || g.insecure {
		return []name.Option{name.Insecure} // guard keeps others from that
	}
	return nil
}

// transport sets how to reach the registry, once.
func (g *registry) transport() error {
	if g.base = g.source.base; g.base != nil {
		return nil
	}
	certificates, err := certificatesFor(g.source.certs, registryHost(g.name.Host), g.insecure)
	if err == nil {
		g.base = web.NewTransport(g.patience, certificates)
	}
	return err
}

// root fetches the manifest or index of the tag or digest.
func (g *registry) root(ctx context.Context) (document, error) {
	if g.name.Digest == "" {
		return g.document(ctx, g.name.Tag, "")
	}
	d := descriptor{Digest: g.name.Digest, Size: maxManifest}
	if data, ok := g.storedRoot(d.Digest); ok {
		return document{data: data}, nil
	}
	return g.document(ctx, d.Digest, d.Digest)
}

// storedRoot gives a manifest whose digest, but not size, is known.
func (g *registry) storedRoot(digest string) ([]byte, bool) {
	f, err := g.source.store.Blob(digest)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxManifest))
	return data, err == nil && digestOf(data) == digest
}

func (g *registry) document(ctx context.Context, identifier, digest string) (document, error) {
	r, err := g.get(ctx, question{what: "manifests/" + identifier})
	if err != nil {
		return document{}, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxManifest+1))
	if err != nil {
		return document{}, fmt.Errorf("manifest: %w", readError(err, descriptor{Digest: identifier, Size: -1}, int64(len(data))))
	}
	if len(data) > maxManifest {
		return document{}, fault.New(fault.Invalid, "its manifest is larger than the allowed %d bytes", maxManifest)
	}
	if !json.Valid(data) {
		return document{}, fault.New(fault.Unavailable, "registry %s answers with something that is no manifest: is it a registry?", g.name.Host)
	}
	if got := digestOf(data); digest != "" && got != digest {
		return document{}, fault.New(fault.Unavailable, "the manifest that came has the wrong digest %s", got)
	}
	return document{mediaType: r.mediaType, data: data}, nil
}

func (g *registry) manifest(ctx context.Context, d descriptor) (stream, error) {
	a, err := g.get(ctx, question{what: "manifests/" + d.Digest})
	return a.stream, err
}

func (g *registry) blob(ctx context.Context, d descriptor, offset int64) (stream, error) {
	r, err := g.get(ctx, question{what: "blobs/" + d.Digest, offset: offset, size: d.Size})
	if fault.Is(err, fault.NotFound) {
		// What the user named is there, but the registry does not have all of it.
		err = fault.New(fault.Unavailable, "registry %s has lost %s, which the image needs: ask who runs it to push the image again", g.name.Host, d.Digest)
	}
	if err != nil {
		return stream{}, err
	}
	r.mediaType = "" // what registries say of blobs means nothing
	if r.length >= 0 && r.length != d.Size-r.offset {
		r.Close()
		return stream{}, fault.New(fault.Unavailable, "the registry has %d bytes for %s, the manifest promised %d (wrong size)", r.length+r.offset, d.Digest, d.Size)
	}
	// A registry that does not know ranges begins at the beginning.
	if n, err := io.CopyN(io.Discard, r, offset-r.offset); err != nil {
		r.Close()
		return stream{}, cutShort(err, d, n)
	}
	return r.stream, nil
}

// accepted are the manifests we ask for.
var accepted = strings.Join([]string{
	string(types.OCIManifestSchema1), string(types.OCIImageIndex),
	string(types.DockerManifestSchema2), string(types.DockerManifestList),
}, ", ")

// answer is a stream with what HTTP said of it.
type answer struct {
	stream
	length int64  // of what follows; -1 if unknown
	offset int64  // where it begins in the whole
	next   string // the query for what follows in a list; empty at its end
}

// question is what can be asked of a repository.
type question struct {
	what, query string
	offset      int64 // how much of its size not to send; a registry may ignore that
	size        int64
}

func (g *registry) get(ctx context.Context, q question) (answer, error) {
	client, err := g.connect(ctx)
	if err != nil {
		return answer{}, err
	}
	u := url.URL{Scheme: "https", Host: registryHost(g.name.Host), Path: "/v2/" + g.name.Path + "/" + q.what, RawQuery: q.query}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return answer{}, fault.New(fault.Invalid, "%w", err)
	}
	if strings.HasPrefix(q.what, "manifests/") {
		req.Header.Set("Accept", accepted)
	}
	if q.offset > 0 { // some registries do not know ranges without an end
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", q.offset, q.size-1))
	}
	resp, err := client.Do(req)
	if err != nil {
		return answer{}, g.explain(err)
	}
	a := answer{stream: stream{ReadCloser: resp.Body, mediaType: resp.Header.Get("Content-Type")}, length: resp.ContentLength, next: next(resp.Header)}
	switch {
	case resp.StatusCode == http.StatusOK:
		return a, nil
	case resp.StatusCode == http.StatusPartialContent && q.offset > 0 && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", q.offset)):
		a.offset = q.offset
		return a, nil
	}
	defer resp.Body.Close()
	return answer{}, g.status(resp)
}

// registryHost is where the API of a registry is.
func registryHost(host string) string {
	if host == images.DockerHost {
		return name.DefaultRegistry
	}
	return host
}
