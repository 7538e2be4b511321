package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	ggcr "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/instance/fault"
)

// files of a layer: names ending in a slash are directories.
func tarOf(t *testing.T, names ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, n := range names {
		name, content, _ := strings.Cut(n, "=")
		hdr := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content)), Uid: os.Getuid(), Gid: os.Getgid()}
		if strings.HasSuffix(name, "/") {
			hdr.Typeflag, hdr.Mode = tar.TypeDir, 0o755
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipOf(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// built is an image in parts. Tests change them before they are pushed.
type built struct {
	config   map[string]any
	manifest map[string]any
	blobs    map[string][]byte // by digest
	layers   []string          // digests
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// build makes an image of gzip layers for this host.
func build(t *testing.T, tars ...[]byte) *built {
	t.Helper()
	b := &built{blobs: map[string][]byte{}}
	var layers, diffIDs []any
	for _, data := range tars {
		blob := gzipOf(t, data)
		b.blobs[digestOf(blob)] = blob
		b.layers = append(b.layers, digestOf(blob))
		diffIDs = append(diffIDs, digestOf(data))
		layers = append(layers, map[string]any{"mediaType": string(types.OCILayer), "digest": digestOf(blob), "size": len(blob)})
	}
	b.config = map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "created": "2024-05-06T07:08:09Z",
		"config": map[string]any{"Entrypoint": []string{"/app"}, "Cmd": []string{"--x"}, "Env": []string{"PATH=/bin", "A=b\nc"}, "User": "1:2", "WorkingDir": "/w", "StopSignal": "SIGINT"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	}
	b.manifest = map[string]any{
		"schemaVersion": 2, "mediaType": string(types.OCIManifestSchema1),
		"config": map[string]any{"mediaType": string(types.OCIConfigJSON)},
		"layers": layers,
	}
	return b
}

// finish puts the configuration into the manifest and gives that.
func (b *built) finish(t *testing.T) []byte {
	t.Helper()
	config := encode(t, b.config)
	b.blobs[digestOf(config)] = config
	if c, ok := b.manifest["config"].(map[string]any); ok && c["digest"] == nil {
		c["digest"], c["size"] = digestOf(config), len(config)
	}
	return encode(t, b.manifest)
}

// server is a registry on loopback. Fault may answer a request in its place.
type server struct {
	*httptest.Server
	inner http.Handler
	host  string

	mu    sync.Mutex // guards what follows
	fault func(w http.ResponseWriter, r *http.Request) bool
	asked map[string]int // GET requests by path
}

func serve(t *testing.T) *server {
	t.Helper()
	s := &server{inner: ggcr.New(ggcr.Logger(log.New(io.Discard, "", 0))), asked: map[string]int{}}
	s.Server = httptest.NewServer(s)
	s.host = strings.TrimPrefix(s.URL, "http://")
	t.Cleanup(s.Close)
	return s
}

func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	hook := s.fault
	if r.Method == http.MethodGet {
		s.asked[r.URL.Path]++
	}
	s.mu.Unlock()
	if hook == nil || !hook(w, r) {
		s.inner.ServeHTTP(w, r)
	}
}

// on installs a fault for paths that contain part.
func (s *server) on(part string, f func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, part) && f(w, r)
	}
}

func (s *server) count(part string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for path, m := range s.asked {
		if strings.Contains(path, part) {
			n += m
		}
	}
	return n
}

// do sends a request past the fault.
func (s *server) do(t *testing.T, method, path, contentType string, body []byte) {
	t.Helper()
	r := httptest.NewRequest(method, path, bytes.NewReader(body))
	r.Header.Set("Content-Type", contentType)
	w := httptest.NewRecorder()
	s.inner.ServeHTTP(w, r)
	if w.Code >= 300 {
		t.Fatalf("%s %s = %d: %s", method, path, w.Code, w.Body)
	}
}

func (s *server) pushManifest(t *testing.T, tag, mediaType string, data []byte) {
	t.Helper()
	s.do(t, http.MethodPut, "/v2/app/manifests/"+tag, mediaType, data)
}

func (s *server) push(t *testing.T, tag string, b *built) []byte {
	t.Helper()
	m := b.finish(t)
	for digest, data := range b.blobs {
		s.do(t, http.MethodPost, "/v2/app/blobs/uploads/?digest="+digest, "application/octet-stream", data)
	}
	mediaType, _ := b.manifest["mediaType"].(string)
	s.pushManifest(t, tag, or(mediaType, string(types.OCIManifestSchema1)), m)
	return m
}

func (s *server) ref(tag string) string { return "docker://" + s.host + "/app:" + tag }

// puller is a source with a store of its own.
type puller struct {
	*Source
	store *images.Store
	dir   string
}

func newPuller(t *testing.T, o Options) *puller {
	t.Helper()
	dir := t.TempDir()
	store := images.OpenStore(filepath.Join(dir, "images"), filepath.Join(dir, "locks"))
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain()
	}
	if o.Patience == (Patience{}) {
		o.Patience = Patience{Backoff: time.Millisecond}
	}
	return &puller{Source: New(store, o), store: store, dir: dir}
}

func (p *puller) find(ctx context.Context, name string) (images.Remote, error) {
	ref, err := images.ParseRef(name)
	if err != nil {
		return nil, err
	}
	return p.Resolve(ctx, ref, images.ResolveOptions{})
}

// pull resolves and unpacks, into a directory that it gives.
func (p *puller) pull(ctx context.Context, t *testing.T, name string) (images.Image, string, error) {
	t.Helper()
	r, err := p.find(ctx, name)
	if err != nil {
		return images.Image{}, "", err
	}
	defer r.Close()
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	img, err := r.Unpack(ctx, root, images.Discard)
	return img, dir, err
}

func wantClass(t *testing.T, what string, err error, class fault.Class, words ...string) {
	t.Helper()
	if fault.Of(err) != class {
		t.Errorf("%s = %v (class %q), want class %q", what, err, fault.Of(err), class)
		return
	}
	for _, w := range words {
		if err != nil && !strings.Contains(err.Error(), w) {
			t.Errorf("%s = %v, want it to say %q", what, err, w)
		}
	}
}

func wantFile(t *testing.T, dir, name, content string) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil || string(data) != content {
		t.Errorf("%s holds %q, %v, want %q", name, data, err, content)
	}
}

// wantNothing checks that a failed pull left no blob and no temporary file.
func (p *puller) wantNothing(t *testing.T, digests ...string) {
	t.Helper()
	for _, d := range digests {
		f, err := p.store.Blob(d)
		if err == nil {
			f.Close()
			t.Errorf("blob %s is in the store", d)
		}
	}
	for _, dir := range []string{filepath.Join(p.dir, "images", "tmp"), filepath.Join(p.dir, "locks")} {
		entries, _ := os.ReadDir(dir)
		for _, e := range entries {
			t.Errorf("%s was left in %s", e.Name(), filepath.Base(dir))
		}
	}
	if list, damaged := p.store.List(); len(list) > 0 || damaged != nil {
		t.Errorf("List() = %v, %v, want nothing", list, damaged)
	}
}
