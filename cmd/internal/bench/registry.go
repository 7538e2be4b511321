package main

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// registry serves the images of a layout on the loopback interface, as the
// repository bench, and counts what it sends of layers.
type registry struct {
	dir  string // of the layout
	addr string
	sent atomic.Int64
	http *http.Server
}

func serve(dir string) (*registry, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	r := &registry{dir: dir, addr: listener.Addr().String()}
	r.http = &http.Server{Handler: r}
	go r.http.Serve(listener)
	return r, nil
}

func (r *registry) close() error { return r.http.Close() }

// ref is an image's name for all tools that put docker:// before it.
func (r *registry) ref(tag string) string { return r.addr + "/bench:" + tag }

// ServeHTTP answers as in https://github.com/opencontainers/distribution-spec.
func (r *registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	name := path.Base(req.URL.Path)
	switch {
	case req.URL.Path == "/v2/":
		return
	case strings.Contains(req.URL.Path, "/manifests/"):
		if !strings.HasPrefix(name, "sha256:") {
			digest, err := r.tag(name)
			if err != nil {
				http.Error(w, err.Error(), http.StatusNotFound)
				return
			}
			name = digest
		}
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", name)
		http.ServeFile(w, req, r.blob(name))
	case strings.Contains(req.URL.Path, "/blobs/sha256:"):
		w.Header().Set("Content-Type", "application/octet-stream")
		if info, err := os.Stat(r.blob(name)); err == nil && req.Method == http.MethodGet {
			r.sent.Add(info.Size())
		}
		http.ServeFile(w, req, r.blob(name))
	default:
		http.NotFound(w, req)
	}
}

func (r *registry) blob(digest string) string {
	return filepath.Join(r.dir, "blobs", "sha256", path.Base(strings.TrimPrefix(digest, "sha256:")))
}

func (r *registry) tag(tag string) (string, error) {
	data, err := os.ReadFile(filepath.Join(r.dir, "index.json"))
	if err != nil {
		return "", err
	}
	var index struct{ Manifests []descriptor }
	if err := json.Unmarshal(data, &index); err != nil {
		return "", err
	}
	for _, d := range index.Manifests {
		if d.Annotations["org.opencontainers.image.ref.name"] == tag {
			return d.Digest, nil
		}
	}
	return "", errors.New("there is no such tag")
}
