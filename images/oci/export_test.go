package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/images"
	"brig/instance"
	"brig/instance/fault"
)

// exported is a tree on top of the layers of an image that p has pulled.
func exported(t *testing.T, p *puller, base images.Image, dir string) images.Export {
	t.Helper()
	tree, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tree.Close() })
	return images.Export{
		Image: images.Image{Architecture: images.HostArchitecture(), CreatedAt: time.Unix(1700000000, 0), Config: base.Config,
			App: &instance.App{Entrypoint: []string{"/new"}, User: "7"}},
		Below: base.Layers,
		Tree:  tree,
		Changes: func(_ context.Context, each func(string, bool) error) error {
			for _, path := range []string{"added", "b"} {
				if err := each(path, path == "b"); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// target names what to export to.
func target(t *testing.T, name string) images.Ref {
	t.Helper()
	ref, err := images.ParseRef(name)
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestExportedImagesAreReadBack(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	s.push(t, "1", build(t, tarOf(t, "a=1"), tarOf(t, "b=2")))
	base, dir, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "added"), []byte("new"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	s.on("/", func(http.ResponseWriter, *http.Request) bool { return false })
	for _, to := range []string{"oci:" + out + "/layout:1.0", "oci-archive:" + out + "/layout.tar:1.0", "docker-archive:" + out + "/docker.tar:name/of:1", s.ref("new")} {
		digest, err := p.Export(t.Context(), exported(t, p, base, dir), target(t, to), images.Discard)
		if err != nil {
			t.Errorf("Export to %s: %v", to, err)
			continue
		}
		img, tree, err := newPuller(t, Options{}).pull(t.Context(), t, to)
		if err != nil {
			t.Errorf("pull from %s: %v", to, err)
			continue
		}
		wantFile(t, tree, "a", "1")
		wantFile(t, tree, "added", "new")
		if _, err := os.Lstat(tree + "/b"); !os.IsNotExist(err) {
			t.Errorf("b in %s: %v, want it gone", to, err)
		}
		if len(img.Layers) != 3 || img.Layers[0].DiffID != base.Layers[0].DiffID || !slices.Equal(img.App.Entrypoint, []string{"/new"}) || img.App.User != "7" {
			t.Errorf("%s holds %+v", to, img)
		}
		if !strings.HasPrefix(to, "docker-archive") && digest != "sha256:"+img.Fingerprint {
			t.Errorf("Export gives %s, and pulling %s", digest, img.Fingerprint)
		}
	}
}

func TestWhatCameAsLayersGoesOutAsItCame(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	m := s.push(t, "1", build(t, tarOf(t, "a=1"), tarOf(t, "b=2")))
	img, _, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	other := serve(t)
	posts := 0
	other.on("/", func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPost {
			posts++
		}
		return false
	})
	e := images.Export{Image: img, Below: img.Layers}
	for _, want := range []int{3, 0} { // what is there is not sent again
		posts = 0
		digest, err := p.Export(t.Context(), e, target(t, other.ref("1")), images.Discard)
		if err != nil || digest != digestOf(m) {
			t.Fatalf("Export = %s, %v, want %s", digest, err, digestOf(m))
		}
		if posts != want {
			t.Errorf("%d blobs were sent, want %d", posts, want)
		}
	}
	if _, dir, err := newPuller(t, Options{}).pull(t.Context(), t, other.ref("1")); err != nil {
		t.Error(err)
	} else {
		wantFile(t, dir, "b", "2")
	}
}

func TestExportLeavesWhatIsThere(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	s.push(t, "1", build(t, tarOf(t, "a=1")))
	img, dir, err := p.pull(t.Context(), t, s.ref("1"))
	if err != nil {
		t.Fatal(err)
	}
	e, out := images.Export{Image: img, Below: img.Layers}, t.TempDir()
	export := func(e images.Export, to string) error {
		_, err := p.Export(t.Context(), e, target(t, to), images.Discard)
		return err
	}
	// Another tag is added, and the same one replaced.
	top := exported(t, p, img, dir)
	top.Changes = nil
	top.Below = nil
	for _, to := range []struct {
		images.Export
		tag string
	}{{e, "1"}, {e, "2"}, {top, "2"}} {
		if err := export(to.Export, "oci:"+out+"/layout:"+to.tag); err != nil {
			t.Fatal(err)
		}
	}
	one, err := p.find(t.Context(), "oci:"+out+"/layout:1")
	if err != nil {
		t.Fatal(err)
	}
	defer one.Close()
	two, err := p.find(t.Context(), "oci:"+out+"/layout:2")
	if err != nil {
		t.Fatal(err)
	}
	defer two.Close()
	if one.Image().Fingerprint != img.Fingerprint || two.Image().Fingerprint == img.Fingerprint {
		t.Error("a tag was not replaced, or another was")
	}

	if err := os.WriteFile(out+"/file", []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantClass(t, "Export into a folder with other files", export(e, "oci:"+out), fault.AlreadyExists, out)
	bad := e
	bad.Image.Fingerprint = strings.Repeat("0", 64)
	wantClass(t, "Export of what is not in the store", export(bad, "oci-archive:"+out+"/file"), fault.NotFound)
	wantFile(t, out, "file", "mine")
	wantClass(t, "Export to nothing known", export(e, "nosuch:"+out), fault.Invalid, "docker://")
	wantClass(t, "Export to a bad name", export(e, "docker-archive:"+out+"/x.tar:UPPER:1"), fault.Invalid, "UPPER")
	wantClass(t, "push to a digest", export(e, "docker://"+s.host+"/app@sha256:"+strings.Repeat("0", 64)), fault.Invalid, "digest")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, to := range []string{"oci-archive:" + out + "/file", "docker-archive:" + out + "/file:name:1", s.ref("3")} {
		_, err := p.Export(ctx, e, target(t, to), images.Discard)
		wantClass(t, "Export to "+to+" that is cancelled", err, fault.Cancelled)
	}
	wantFile(t, out, "file", "mine")
	s.on("/", code(http.StatusForbidden))
	wantClass(t, "push where it is forbidden", export(e, s.ref("2")), fault.Forbidden, "docker login")
	if entries, err := os.ReadDir(out); err != nil || len(entries) != 2 {
		t.Errorf("%v is in %s, %v, want layout and file", entries, out, err)
	}
}

// TestExportedSystemsStart has an image with an init say so to others.
func TestExportedSystemsStart(t *testing.T) {
	p, dir := newPuller(t, Options{}), t.TempDir()
	e := exported(t, p, images.Image{}, dir)
	e.Image.App, e.Changes = nil, nil
	out := t.TempDir()
	if _, err := p.Export(t.Context(), e, target(t, "oci-archive:"+out+"/x.tar"), images.Discard); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(out + "/x.tar")
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := r.Next()
		if err != nil {
			break
		}
		var b bytes.Buffer
		b.ReadFrom(r)
		found = found || strings.HasPrefix(hdr.Name, "blobs/") && strings.Contains(b.String(), `"/sbin/init"`)
	}
	if !found {
		t.Error("the configuration does not name the init")
	}
}
