package oci

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"brig/images"
	"brig/images/oci/registries"
	"brig/images/web"
	"brig/instance/fault"
)

// settings makes Options of a registries.conf.
func settings(t *testing.T, format string, args ...any) Options {
	t.Helper()
	path := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), 0o644); err != nil {
		t.Fatal(err)
	}
	return Options{
		Registries:   func() (registries.Config, error) { return registries.Load(path) },
		Certificates: []string{t.TempDir()},
		Patience:     Patience{Backoff: time.Millisecond, Waits: 50 * time.Millisecond},
	}
}

const oneMirror = "[[registry]]\nlocation = %q\n[[registry.mirror]]\nlocation = %q\n"

func TestMirrorsAreAskedFirst(t *testing.T) {
	home, mirror := serve(t), serve(t)
	b := build(t, tarOf(t, "a=1"), tarOf(t, "b=2"))
	home.push(t, "1", b)
	mirror.push(t, "1", b)
	p := newPuller(t, settings(t, oneMirror, home.host, mirror.host))
	img, dir, err := p.pull(t.Context(), t, home.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, dir, "b", "2")
	if img.References[0] != home.ref("1") {
		t.Errorf("References = %q, want the name that was asked for", img.References)
	}
	if n := home.count(""); n != 0 {
		t.Errorf("the registry was asked %d times, want only its mirror to be", n)
	}
}

func TestWithoutItsMirrorsTheRegistryIsAsked(t *testing.T) {
	gone := httptest.NewServer(nil)
	gone.Close()
	for name, prepare := range map[string]func(mirror *server) string{
		"down":      func(*server) string { return strings.TrimPrefix(gone.URL, "http://") },
		"lacks it":  func(m *server) string { return m.host },
		"forbids":   func(m *server) string { m.on("/manifests/", code(http.StatusForbidden)); return m.host },
		"is broken": func(m *server) string { m.on("/v2/", code(http.StatusBadGateway)); return m.host },
	} {
		t.Run(name, func(t *testing.T) {
			home, mirror := serve(t), serve(t)
			home.push(t, "1", build(t, tarOf(t, "a=1")))
			p := newPuller(t, settings(t, oneMirror, home.host, prepare(mirror)))
			_, dir, err := p.pull(t.Context(), t, home.ref("1"))
			if err != nil {
				t.Fatal(err)
			}
			wantFile(t, dir, "a", "1")
			_, err = p.find(t.Context(), home.ref("2"))
			wantClass(t, "Resolve of a tag that nobody has", err, fault.NotFound, "of its mirrors")
		})
	}
}

func TestAMirrorThatBreaksOffIsLeft(t *testing.T) {
	home, mirror := serve(t), serve(t)
	b := build(t, noise(t, 1<<20))
	home.push(t, "1", b)
	mirror.push(t, "1", b)
	var broke atomic.Int32
	mirror.on("/blobs/"+b.layers[0], func(w http.ResponseWriter, _ *http.Request) bool {
		broke.Add(1)
		w.Header().Set("Content-Length", fmt.Sprint(len(b.blobs[b.layers[0]])))
		w.Write(b.blobs[b.layers[0]][:100<<10])
		return true
	})
	p := newPuller(t, settings(t, oneMirror, home.host, mirror.host))
	if _, _, err := p.pull(t.Context(), t, home.ref("1")); err != nil {
		t.Errorf("%v, after %d", err, broke.Load())
	}
	if broke.Load() != 1 || home.count("/blobs/"+b.layers[0]) != 1 {
		t.Errorf("the layer was asked %d times of the mirror and %d times of the registry, want once each", broke.Load(), home.count("/blobs/"+b.layers[0]))
	}
}

func TestBlockedRegistry(t *testing.T) {
	home := serve(t)
	home.push(t, "1", build(t, tarOf(t, "a=1")))
	p := newPuller(t, settings(t, "[[registry]]\nlocation = %q\nblocked = true\n", home.host))
	_, err := p.find(t.Context(), home.ref("1"))
	wantClass(t, "Resolve", err, fault.Forbidden, "blocks "+home.host, "registries.conf")
	if n := home.count(""); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// secure serves a registry by TLS, with a certificate that no authority of the host's
// signed.
func secure(t *testing.T) *server {
	t.Helper()
	s := serve(t)
	s.Server.Close()
	s.Server = httptest.NewTLSServer(s)
	s.host = strings.TrimPrefix(s.URL, "https://")
	t.Cleanup(s.Server.Close)
	return s
}

func TestCertificates(t *testing.T) {
	s := secure(t)
	s.push(t, "1", build(t, tarOf(t, "a=1")))

	o := settings(t, "")
	_, err := newPuller(t, o).find(t.Context(), s.ref("1"))
	wantClass(t, "Resolve with an unknown certificate", err, fault.Unavailable)

	o = settings(t, "[[registry]]\nlocation = %q\ninsecure = true\n", s.host)
	if _, err := newPuller(t, o).find(t.Context(), s.ref("1")); err != nil {
		t.Errorf("Resolve with insecure = true: %v", err)
	}

	o = settings(t, "")
	dir := filepath.Join(o.Certificates[0], s.host)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), ca, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := newPuller(t, o).find(t.Context(), s.ref("1")); err != nil {
		t.Errorf("Resolve with the registry's authority: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("none"), 0o644); err != nil {
		t.Fatal(err)
	}
	_, err = newPuller(t, o).find(t.Context(), s.ref("1"))
	wantClass(t, "Resolve with a damaged authority", err, fault.Invalid, "ca.crt")
}

// TestPlainHTTPByPermission knows plain HTTP to be refused elsewhere than on loopback,
// and asks the guard alone: no test may send anything there.
func TestPlainHTTPByPermission(t *testing.T) {
	asked := 0
	next := roundTrip(func(*http.Request) (*http.Response, error) { asked++; return nil, net.ErrClosed })
	for _, c := range []struct {
		url   string
		plain bool
		want  int
	}{
		{"http://registry.example/v2/", false, 0},
		{"http://registry.example/v2/", true, 1},
		{"http://other.example/v2/", true, 0},
		{"https://other.example/v2/", false, 1},
	} {
		asked = 0
		req, err := http.NewRequest(http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		(&web.Guard{Home: "registry.example", Plain: c.plain, Next: next}).RoundTrip(req)
		if asked != c.want {
			t.Errorf("%s with permission %v was sent %d times, want %d", c.url, c.plain, asked, c.want)
		}
	}
}

// noise is a layer that does not get smaller by compression.
func noise(t *testing.T, size int) []byte {
	t.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(data)
	return tarOf(t, "noise="+string(data))
}

// writePair writes NAME.cert and NAME.key of somebody who signs for himself.
func writePair(t *testing.T, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	of := x509.Certificate{SerialNumber: big.NewInt(1)}
	cert, err := x509.CreateCertificate(crand.Reader, &of, &of, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for ext, block := range map[string]*pem.Block{
		".cert": {Type: "CERTIFICATE", Bytes: cert},
		".key":  {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(name+ext, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestClientCertificate(t *testing.T) {
	s := serve(t)
	s.Server.Close()
	s.Server = httptest.NewUnstartedServer(s)
	s.Server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	s.Server.StartTLS()
	t.Cleanup(s.Server.Close)
	s.host = strings.TrimPrefix(s.URL, "https://")
	s.push(t, "1", build(t, tarOf(t, "a=1")))

	o := settings(t, "[[registry]]\nlocation = %q\ninsecure = true\n", s.host)
	_, err := newPuller(t, o).find(t.Context(), s.ref("1"))
	wantClass(t, "Resolve without a certificate", err, fault.Unavailable)

	dir := filepath.Join(o.Certificates[0], s.host)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	writePair(t, filepath.Join(dir, "client"))
	if _, err := newPuller(t, o).find(t.Context(), s.ref("1")); err != nil {
		t.Errorf("Resolve with a client certificate: %v", err)
	}
}

// tagsOf gives the tags of what a search found.
func tagsOf(list []images.Image, err error) (tags []string, _ error) {
	for _, im := range list {
		_, tag, _ := strings.Cut(im.Aliases[0], "app:")
		tags = append(tags, tag)
	}
	return tags, err
}

func TestTags(t *testing.T) {
	home, mirror := serve(t), serve(t)
	b := build(t, tarOf(t, "a=1"))
	for _, tag := range []string{"1", "1.2", "latest"} {
		home.push(t, tag, b)
	}
	list := func() ([]string, error) {
		p := newPuller(t, settings(t, oneMirror, home.host, mirror.host))
		return tagsOf(p.Search(t.Context(), images.Ref{Scheme: "docker", Name: home.host + "/app"}, images.ResolveOptions{}))
	}
	if tags, err := list(); err != nil || fmt.Sprint(tags) != "[1 1.2 latest]" {
		t.Errorf("Tags() = %v, %v", tags, err)
	}
	few, err := newPuller(t, Options{}).Search(t.Context(), images.Ref{Scheme: "docker", Name: home.host + "/app 1 ."}, images.ResolveOptions{})
	if tags, err := tagsOf(few, err); err != nil || fmt.Sprint(tags) != "[1.2]" {
		t.Errorf("Search() with words = %v, %v", tags, err)
	}
	home.on("/tags/list", func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Query().Get("last") == "" {
			w.Header().Set("Link", `<http://registry.example/elsewhere?last=b&n=2>; rel="next"`)
			fmt.Fprint(w, `{"tags":["a","b","-not\u001b a tag"]}`)
		} else {
			fmt.Fprint(w, `{"tags":["c"]}`)
		}
		return true
	})
	if tags, err := list(); err != nil || fmt.Sprint(tags) != "[a b c]" {
		t.Errorf("Tags() of two pages = %v, %v", tags, err)
	}
	home.on("/tags/list", func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Link", `</v2/app/tags/list?last=`+r.URL.Query().Get("last")+`x>; rel=next`)
		fmt.Fprint(w, `{"tags":["a"]}`)
		return true
	})
	_, err = list()
	wantClass(t, "Tags without an end", err, fault.Unavailable, "pages")
	for _, body := range []string{`{"tags":7}`, "<html>", `{"tags":["` + strings.Repeat("a", maxTags) + `"]}`} {
		home.on("/tags/list", func(w http.ResponseWriter, _ *http.Request) bool { fmt.Fprint(w, body); return true })
		_, err = list()
		wantClass(t, "Tags of a bad answer", err, fault.Unavailable, "no list of tags")
	}
	home.on("/tags/list", code(http.StatusNotFound))
	_, err = list()
	wantClass(t, "Tags of nothing", err, fault.NotFound)
}
