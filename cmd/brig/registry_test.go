package main

import (
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"brig/instance/instancetest"
)

// answer has a registry say no to everything.
func answer(status int, headers ...string) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		fmt.Fprintf(w, `{"errors":[{"code":"CODE","message":"because of %d"}]}`, status)
		return true
	}
}

// part has a registry send something else for one part of an image.
func part(of string, send func(w http.ResponseWriter)) func(w http.ResponseWriter, r *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, of) {
			return false
		}
		if r.Method == http.MethodGet {
			send(w)
		}
		return true
	}
}

func TestBadRegistry(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	// One image is there, so that its parts are seen to stay.
	r.Must(t, "image", "pull", probeImage(t, r))
	image := instancetest.MakeImage(t, instancetest.ImageConfig{Cmd: []string{"/bin/probe"}},
		append(instancetest.ProbeFiles(t, r.Bin), instancetest.File{Name: "other", Data: []byte("other"), Mode: 0o644}))
	layer, config := instancetest.Digest(image.Layer), instancetest.Digest(image.Config)
	changed := func(data []byte) []byte {
		other := append([]byte{}, data...)
		other[len(other)/2] ^= 1
		return other
	}
	cases := map[string]struct {
		code  int
		words string
		spoil func(w http.ResponseWriter, r *http.Request) bool
	}{
		"wants a password":   {5, "401 docker login", answer(http.StatusUnauthorized)},
		"wants a token":      {5, "401 docker login", answer(http.StatusUnauthorized, "WWW-Authenticate", `Basic realm="here"`)},
		"forbids it":         {5, "403", answer(http.StatusForbidden)},
		"does not have it":   {3, "404 because", answer(http.StatusNotFound)},
		"has too much to do": {8, "429 later", answer(http.StatusTooManyRequests, "Retry-After", "0")},
		"asks to come back":  {8, "429 later", answer(http.StatusTooManyRequests, "Retry-After", "3600")},
		"is broken":          {8, "500 because", answer(http.StatusInternalServerError)},
		"is no registry":     {8, "no manifest", part("/manifests/", func(w http.ResponseWriter) { fmt.Fprint(w, "<html>Welcome</html>") })},
		"sends half a layer": {8, layer + " truncated", part(layer, func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", fmt.Sprint(len(image.Layer)))
			w.Write(image.Layer[:len(image.Layer)/2])
		})},
		"sends a short layer": {8, layer + " truncated", part(layer, func(w http.ResponseWriter) {
			w.Write(image.Layer[:len(image.Layer)/2])
		})},
		"sends a long layer": {8, layer + " wrong size", part(layer, func(w http.ResponseWriter) {
			w.Write(append(append([]byte{}, image.Layer...), "more"...))
		})},
		"sends another layer": {8, layer + " wrong digest", part(layer, func(w http.ResponseWriter) {
			w.Write(changed(image.Layer))
		})},
		"sends another configuration": {8, config + " wrong digest", part(config, func(w http.ResponseWriter) {
			w.Write(changed(image.Config))
		})},
		"has lost the layer": {8, "lost " + layer, part(layer, func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) })},
		"hangs up": {8, "hung up", func(w http.ResponseWriter, _ *http.Request) bool {
			panic(http.ErrAbortHandler)
		}},
	}
	r.Must(t, "sweep") // which notes the time
	before := look(t, r)
	// Side by side: what may be temporary is asked for again, which takes seconds.
	var all sync.WaitGroup
	for name, c := range cases {
		registry := instancetest.NewRegistry(t)
		registry.Spoil(c.spoil)
		args := []string{"launch", registry.Add("app", "1", image), "web-" + strings.ReplaceAll(name, " ", "-")}
		all.Go(func() {
			instancetest.CheckFailure(t, r.Run(t, args...), c.code, append(strings.Fields(c.words), registry.Host), args...)
		})
	}
	all.Wait()
	r.Must(t, "sweep")
	before.unchanged(t, r)
	t.Run("is down", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		down := l.Addr().String()
		l.Close()
		r.Fails(t, 8, []string{down, "refused"}, "launch", "docker://"+down+"/app:1", "web")
		before.unchanged(t, r)
	})
	t.Run("is well again", func(t *testing.T) {
		ref := instancetest.NewRegistry(t).Add("app", "1", image)
		r.Must(t, "launch", ref, "web", "--", "boots")
	})
}

// TestAppImages launches one image from everywhere it can come from, in both
// forms.
func TestAppImages(t *testing.T) {
	r := instancetest.New(t, bin)
	r.Kernels(t)
	registry := instancetest.NewRegistry(t)
	image, dir := probe(t, r), t.TempDir()
	remote := registry.Add("app", "1", image)
	// The registry comes first: a layer that is there already is not fetched.
	for _, c := range []struct{ from, ref string }{
		{"registry", remote},
		{"layout", image.Layout(t, filepath.Join(dir, "layout"), "1")},
		{"oci-archive", image.OCIArchive(t, filepath.Join(dir, "oci.tar"), "1")},
		{"docker-archive", image.DockerArchive(t, filepath.Join(dir, "docker.tar"), "app:1")},
	} {
		t.Run(c.from, func(t *testing.T) {
			launchUp(t, r, c.ref, c.from)
			r.Must(t, "delete", "-f", c.from)
		})
	}
	t.Run("virtual machine", func(t *testing.T) {
		r.Must(t, "launch", remote, "vm", "--vm", "-c", "limits.memory=256MiB", "--wait", "ready")
		awaitBoots(t, r, "vm")
	})
	if got := registry.Requests("/blobs/" + instancetest.Digest(image.Layer)); got != 1 {
		t.Errorf("the layer was fetched %d times, want once for both forms", got)
	}
}
