package oci

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	ocilayout "github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/match"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	ggcr "github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"

	"brig/images"
	"brig/images/outfile"
	"brig/images/pack"
	"brig/images/rootfs"
	"brig/images/web"
	"brig/instance/fault"
)

// Export implements images.Exporter for the references that Resolve reads.
func (s *Source) Export(ctx context.Context, e images.Export, to images.Ref, p images.Progress) (digest string, err error) {
	img, done, err := s.build(ctx, e, p)
	if err != nil {
		return "", err
	}
	defer done()
	switch to.Scheme {
	case "oci":
		err = writeLayout(to.Name, img, p)
	case "oci-archive":
		err = s.writeLayoutArchive(ctx, to.Name, img, p)
	case "docker-archive":
		err = writeDockerArchive(to.Name, img, p)
	case "docker":
		err = s.push(ctx, to, img, p)
	default:
		err = fault.New(fault.Invalid, "cannot write an image to %q: want oci:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE:NAME[:TAG] or docker://HOST/REPOSITORY[:TAG]", to)
	}
	if err != nil {
		return "", err
	}
	h, err := img.Digest()
	return h.String(), err
}

// build gives the image as go-containerregistry writes it. An image that is all in the
// store is what it was, byte for byte.
func (s *Source) build(ctx context.Context, e images.Export, p images.Progress) (v1.Image, func(), error) {
	if e.Tree == nil {
		img, err := s.storedImage(ctx, e)
		return img, func() {}, err
	}
	config, err := configOf(e)
	if err != nil {
		return nil, nil, err
	}
	top, err := s.pack(ctx, e, p)
	if err != nil {
		return nil, nil, err
	}
	base, err := mutate.ConfigFile(empty.Image, config)
	if err == nil {
		base = mutate.ConfigMediaType(mutate.MediaType(base, types.OCIManifestSchema1), types.OCIConfigJSON)
		var adds []mutate.Addendum
		for _, l := range e.Below {
			adds = append(adds, mutate.Addendum{Layer: storedLayer{ctx, s.store, l}, MediaType: types.MediaType(l.MediaType)})
		}
		adds = append(adds, mutate.Addendum{Layer: top, MediaType: types.OCILayer, History: v1.History{CreatedBy: "brig publish", Created: v1.Time{Time: e.Image.CreatedAt}}})
		base, err = mutate.Append(base, adds...)
	}
	if err != nil {
		top.f.Close()
		return nil, nil, fmt.Errorf("cannot build the image: %w", err)
	}
	return base, func() { top.f.Close() }, nil
}

// configOf is the configuration of an image without what it says of its layers.
func configOf(e images.Export) (*v1.ConfigFile, error) {
	var c v1.ConfigFile
	if len(e.Image.Config) > 0 {
		if err := json.Unmarshal(e.Image.Config, &c); err != nil {
			return nil, fault.New(fault.Invalid, "its configuration is damaged: %w", err)
		}
	}
	p, err := platformOf(e.Image.Architecture)
	if err != nil {
		return nil, err
	}
	c.Architecture, c.OS, c.Variant = p.Architecture, p.OS, p.Variant
	c.Created, c.History, c.RootFS = v1.Time{Time: e.Image.CreatedAt}, nil, v1.RootFS{Type: "layers"}
	if a := e.Image.App; a != nil {
		c.Config.Entrypoint, c.Config.Cmd, c.Config.Env = a.Entrypoint, a.Cmd, a.Env
		c.Config.User, c.Config.WorkingDir, c.Config.StopSignal = a.User, a.WorkingDir, a.StopSignal
	} else if len(c.Config.Entrypoint)+len(c.Config.Cmd) == 0 {
		// So that others start it as a system, too.
		c.Config.Entrypoint = []string{cmp.Or(e.Image.Properties[images.InitProperty], "/sbin/init")}
		c.Config.StopSignal = cmp.Or(c.Config.StopSignal, "SIGRTMIN+3")
	}
	return &c, nil
}

// packed is a layer in a file without a name.
type packed struct {
	ctx          context.Context // of the one export that it is made for
	f            *os.File
	digest, diff v1.Hash
	size         int64
}

func (l *packed) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *packed) DiffID() (v1.Hash, error)             { return l.diff, nil }
func (l *packed) Size() (int64, error)                 { return l.size, nil }
func (l *packed) MediaType() (types.MediaType, error)  { return types.OCILayer, nil }
func (l *packed) Compressed() (io.ReadCloser, error)   { return io.NopCloser(l.section()), nil }
func (l *packed) Uncompressed() (io.ReadCloser, error) { return gzip.NewReader(l.section()) }
func (l *packed) section() io.Reader {
	return interruptible{l.ctx, io.NewSectionReader(l.f, 0, l.size)}
}

// pack makes the layer on top.
func (s *Source) pack(ctx context.Context, e images.Export, p images.Progress) (*packed, error) {
	f, err := s.store.Scratch()
	if err != nil {
		return nil, err
	}
	l, err := s.packInto(ctx, f, e, p)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot pack the files of the image: %w", diskFault(err))
	}
	return l, nil
}

func (s *Source) packInto(ctx context.Context, f *os.File, e images.Export, p images.Progress) (*packed, error) {
	task := p.Task("Packing the files", 0, true)
	defer task.Done()
	digest, diff := sha256.New(), sha256.New()
	size := &counter{}
	zip := gzip.NewWriter(io.MultiWriter(f, digest, size))
	w := pack.NewWriter(ctx, io.MultiWriter(zip, diff, taskWriter{task}), e.Tree, "")
	var err error
	if e.Changes == nil {
		err = w.Tree()
	} else {
		err = e.Changes(ctx, func(path string, gone bool) error {
			if gone {
				return w.Whiteout(path)
			}
			return w.Path(path)
		})
	}
	if err = errors.Join(err, w.Close(), zip.Close()); err != nil {
		return nil, err
	}
	return &packed{ctx: ctx, f: f, digest: hashOf(digest), diff: hashOf(diff), size: size.n}, nil
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// taskWriter tells a task what is written.
type taskWriter struct{ images.Task }

func (w taskWriter) Write(p []byte) (int, error) {
	w.Add(int64(len(p)))
	return len(p), nil
}

// storedLayer is a layer whose blob is in the store.
type storedLayer struct {
	ctx   context.Context // of the one export that it is for
	store *images.Store
	images.Layer
}

func (l storedLayer) Digest() (v1.Hash, error) { return v1.NewHash(l.Layer.Digest) }
func (l storedLayer) DiffID() (v1.Hash, error) { return v1.NewHash(l.Layer.DiffID) }
func (l storedLayer) Size() (int64, error)     { return l.Layer.Size, nil }
func (l storedLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.Layer.MediaType), nil
}
func (l storedLayer) Compressed() (io.ReadCloser, error) {
	f, err := l.store.Blob(l.Layer.Digest)
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{interruptible{l.ctx, f}, f}, nil
}
func (l storedLayer) Uncompressed() (io.ReadCloser, error) {
	r, err := l.Compressed()
	if err != nil {
		return nil, err
	}
	b, err := rootfs.OpenBlob(r, l.Layer.MediaType, rootfs.Limits{})
	if err != nil {
		r.Close()
		return nil, err
	}
	return both{b, r}, nil
}

// both closes what is read and what that reads from.
type both struct {
	io.ReadCloser
	below io.Closer
}

func (b both) Close() error { return errors.Join(b.ReadCloser.Close(), b.below.Close()) }

// storedParts are the parts of an image that is all in the store.
type storedParts struct {
	ctx      context.Context
	store    *images.Store
	manifest []byte
	export   images.Export
}

func (s *Source) storedImage(ctx context.Context, e images.Export) (v1.Image, error) {
	data, ok := (&registry{source: s}).storedRoot("sha256:" + e.Image.Fingerprint)
	if !ok {
		return nil, fault.New(fault.NotFound, "the manifest of the image is not in the store: brig image refresh fetches it")
	}
	return partial.CompressedToImage(storedParts{ctx, s.store, data, e})
}

func (p storedParts) RawManifest() ([]byte, error)   { return p.manifest, nil }
func (p storedParts) RawConfigFile() ([]byte, error) { return p.export.Image.Config, nil }
func (p storedParts) MediaType() (types.MediaType, error) {
	var m struct{ MediaType types.MediaType }
	err := json.Unmarshal(p.manifest, &m)
	return cmp.Or(m.MediaType, types.OCIManifestSchema1), err
}

func (p storedParts) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, l := range p.export.Below {
		if l.Digest == h.String() {
			return storedLayer{p.ctx, p.store, l}, nil
		}
	}
	m, err := v1.ParseManifest(bytes.NewReader(p.manifest))
	if err == nil && m.Config.Digest == h {
		return partial.ConfigLayer(p)
	}
	return nil, fault.New(fault.NotFound, "the image has no layer %s", h)
}

// RawConfigFile and the two below make it something ConfigLayer knows.
var _ partial.WithRawConfigFile = storedParts{}

// writeLayout adds the image to the OCI layout at DIR[:TAG], and makes that if there
// is none. Its index is written last.
func writeLayout(target string, img v1.Image, p images.Progress) error {
	dir, tag := cutTag(target)
	task := p.Task("Writing "+dir, 0, false)
	defer task.Done()
	l, err := ocilayout.FromPath(dir)
	if err != nil {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return fault.New(fault.AlreadyExists, "%q is a folder with something else in it than an OCI layout", dir)
		}
		if l, err = ocilayout.Write(dir, empty.Index); err != nil {
			return diskFault(err)
		}
	}
	return diskFault(l.ReplaceImage(img, match.Annotation("org.opencontainers.image.ref.name", tag), ocilayout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": tag})))
}

// cutTag takes the tag off the end of PATH:TAG.
func cutTag(target string) (path, tag string) {
	if i := strings.LastIndexByte(target, ':'); i > 0 && images.IsTag(target[i+1:]) {
		return target[:i], target[i+1:]
	}
	return target, "latest"
}

// writeLayoutArchive writes an OCI layout as a tar file.
func (s *Source) writeLayoutArchive(ctx context.Context, target string, img v1.Image, p images.Progress) error {
	path, tag := cutTag(target)
	dir, err := os.MkdirTemp(filepath.Dir(path), ".brig-export-")
	if err != nil {
		return diskFault(err)
	}
	defer os.RemoveAll(dir)
	if err := writeLayout(filepath.Join(dir, "layout")+":"+tag, img, p); err != nil {
		return err
	}
	return outfile.Replace(path, func(f *os.File) error {
		w := tar.NewWriter(f)
		root, err := os.OpenRoot(filepath.Join(dir, "layout"))
		if err != nil {
			return err
		}
		defer root.Close()
		return errors.Join(w.AddFS(root.FS()), w.Close(), ctx.Err())
	})
}

func writeDockerArchive(target string, img v1.Image, p images.Progress) error {
	path, tagged, ok := strings.Cut(target, ":")
	if !ok {
		tagged = strings.TrimSuffix(filepath.Base(path), ".tar")
	}
	ref, err := name.NewTag(tagged)
	if err != nil {
		return fault.New(fault.Invalid, "%q is no name for an image in a docker archive: %w", tagged, err)
	}
	task := p.Task("Writing "+path, 0, false)
	defer task.Done()
	return outfile.Replace(path, func(f *os.File) error { return tarball.Write(ref, img, f) })
}

// push sends to a registry what it does not have yet.
func (s *Source) push(ctx context.Context, to images.Ref, img v1.Image, p images.Progress) error {
	repo, err := images.ParseRepository(to)
	if err != nil {
		return err
	}
	if repo.Digest != "" {
		return fault.New(fault.Invalid, "cannot push to a digest: want docker://HOST/REPOSITORY[:TAG]")
	}
	places, err := s.places(repo)
	if err != nil {
		return err
	}
	g := places[len(places)-1]
	defer g.Close()
	if err := g.transport(); err != nil {
		return err
	}
	ref, err := name.NewTag(registryHost(g.name.Host)+"/"+g.name.Path+":"+g.name.Tag, g.options()...)
	if err != nil {
		return fault.New(fault.Invalid, "%w", err)
	}
	auth, err := authn.Resolve(ctx, s.keychain, ref.Context())
	if err != nil {
		return fault.New(fault.Forbidden, "cannot read the credentials for %s: %w", g.name.Host, err)
	}
	task := p.Task("Pushing to "+repo.String(), 0, false)
	defer task.Done()
	err = ggcr.Write(ref, img, ggcr.WithContext(ctx), ggcr.WithAuth(auth), ggcr.WithJobs(s.jobs), ggcr.WithUserAgent("brig"),
		ggcr.WithTransport(&web.Guard{Home: ref.RegistryStr(), Plain: g.insecure, Next: g.base, What: "registry"}))
	if err != nil {
		return g.explain(err)
	}
	return nil
}
