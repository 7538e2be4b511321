package oci

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"

	"brig/images"
	"brig/instance/fault"
)

func TestImageThatSharesLayersFetchesOnlyWhatIsNew(t *testing.T) {
	s := serve(t)
	base, old, fresh := tarOf(t, "a=1"), tarOf(t, "b=2"), tarOf(t, "c=3")
	one, two := build(t, base, old), build(t, base, fresh)
	s.push(t, "1", one)
	s.push(t, "2", two)
	p := newPuller(t, Options{})
	for _, tag := range []string{"1", "2"} {
		if _, _, err := p.pull(t.Context(), t, s.ref(tag)); err != nil {
			t.Fatal(err)
		}
	}
	for what, digest := range map[string]string{"that both have": one.layers[0], "of the first": one.layers[1], "of the second": two.layers[1]} {
		if n := s.count(digest); n != 1 {
			t.Errorf("the layer %s was fetched %d times, want once", what, n)
		}
	}
}

// TestCredentialHelpers has a registry that asks for a password by itself, and a
// program that knows it.
func TestCredentialHelpers(t *testing.T) {
	s := serve(t)
	s.push(t, "1", build(t, tarOf(t, "a=1")))
	s.on("", func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "me" && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DOCKER_CONFIG", home)
	t.Setenv("PATH", home+":"+os.Getenv("PATH"))
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(filepath.Join(home, name), []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("docker-credential-test", "#!/bin/sh\n[ \"$1\" = get ] || exit 1\nread -r host\n[ \"$host\" = "+s.host+" ] || exit 1\necho '{\"Username\":\"me\",\"Secret\":\"secret\"}'\n", 0o755)
	write("config.json", `{"credHelpers":{"`+s.host+`":"test"}}`, 0o600)
	if _, _, err := newPuller(t, Options{Keychain: authn.DefaultKeychain}).pull(t.Context(), t, s.ref("1")); err != nil {
		t.Errorf("pull by a credential helper: %v", err)
	}
	_, _, err := newPuller(t, Options{}).pull(t.Context(), t, s.ref("1"))
	wantClass(t, "pull without credentials", err, fault.Forbidden, "docker login")
}

// TestPushedImageHasTheLayersOfItsBase pushes to a registry that has the base.
func TestPushedImageHasTheLayersOfItsBase(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	s.push(t, "1", build(t, tarOf(t, "a=1"), tarOf(t, "b=2")))
	base, dir, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "added"), []byte("new"), 0o644), os.Remove(filepath.Join(dir, "b"))); err != nil {
		t.Fatal(err)
	}
	var posts atomic.Int32
	s.on("/", func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			posts.Add(1)
		}
		return false
	})
	if _, err := p.Export(t.Context(), exported(t, p, base, dir), target(t, s.ref("new")), images.Discard); err != nil {
		t.Fatal(err)
	}
	if n := posts.Load(); n != 2 {
		t.Errorf("%d blobs were sent, want the new layer and the configuration", n)
	}
	img, _, err := newPuller(t, Options{}).pull(t.Context(), t, s.ref("new"))
	if err != nil {
		t.Fatal(err)
	}
	if len(img.Layers) != 3 || img.Layers[0].Digest != base.Layers[0].Digest || img.Layers[1].Digest != base.Layers[1].Digest || img.Layers[2].Size > 1024 {
		t.Errorf("the layers are %+v, want those of the base and a small one", img.Layers)
	}
}
