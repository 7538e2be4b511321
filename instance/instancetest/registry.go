package instancetest

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
)

// Registry is a registry of images on this host's loopback, as far as the
// distribution specification wants one to pull from it.
type Registry struct {
	Host string // 127.0.0.1:PORT

	mu       sync.Mutex        // guards what follows
	content  map[string][]byte // by path below /v2/
	requests map[string]int    // by method and path
	spoil    func(w http.ResponseWriter, r *http.Request) bool
}

// NewRegistry serves until the test ends.
func NewRegistry(t testing.TB) *Registry {
	r := &Registry{content: map[string][]byte{}, requests: map[string]int{}}
	server := httptest.NewServer(r)
	t.Cleanup(server.Close)
	r.Host = strings.TrimPrefix(server.URL, "http://")
	return r
}

// Add serves im and gives the name to launch it by.
func (r *Registry) Add(name, tag string, im *Image) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, blob := range [][]byte{im.Config, im.Layer} {
		r.content[name+"/blobs/"+Digest(blob)] = blob
	}
	for _, ref := range []string{tag, Digest(im.Manifest)} {
		r.content[name+"/manifests/"+ref] = im.Manifest
	}
	return "docker://" + r.Host + "/" + name + ":" + tag
}

// Spoil has do answer requests in the registry's place; it returns false for
// those that it leaves alone. Nil: the registry is well again.
func (r *Registry) Spoil(do func(w http.ResponseWriter, r *http.Request) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.spoil = do
}

// Requests is how often something was fetched whose path holds part.
func (r *Registry) Requests(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for request, count := range r.requests {
		if strings.HasPrefix(request, http.MethodGet) && strings.Contains(request, part) {
			n += count
		}
	}
	return n
}

// ServeHTTP implements http.Handler.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	path := strings.TrimPrefix(req.URL.Path, "/v2/")
	r.mu.Lock()
	r.requests[req.Method+" "+path]++
	spoil, data := r.spoil, r.content[path]
	r.mu.Unlock()
	switch {
	case spoil != nil && spoil(w, req):
	case path == "":
		w.WriteHeader(http.StatusOK)
	case data == nil:
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"errors":[{"code":"NAME_UNKNOWN","message":"there is no such thing here"}]}`)
	default:
		if strings.Contains(path, "/manifests/") {
			w.Header().Set("Content-Type", manifestType)
			w.Header().Set("Docker-Content-Digest", Digest(data))
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		if req.Method == http.MethodGet {
			w.Write(data)
		}
	}
}
