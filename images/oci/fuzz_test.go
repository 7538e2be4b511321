package oci

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/instance/fault"
)

// FuzzManifest reads anything as a manifest or an index, that came as any type. What is
// accepted has parts that can be asked for, and means one thing only.
func FuzzManifest(f *testing.F) {
	b := `{"mediaType":"` + string(types.OCIConfigJSON) + `","digest":"sha256:` + strings.Repeat("ab", 32) + `","size":2}`
	f.Add([]byte(`{"schemaVersion":2,"config":`+b+`,"layers":[]}`), string(types.OCIManifestSchema1))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[`+b+`]}`), string(types.OCIImageIndex))
	here, err := platformOf("x86_64")
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		m, err := parseManifest(document{mediaType: mediaType, data: data})
		if err != nil {
			if fault.Of(err) == fault.Internal || strings.ContainsAny(err.Error(), "\x1b\n\x00") {
				t.Errorf("parseManifest = %q of class %q", err, fault.Of(err))
			}
			return
		}
		if (m.Config == nil) == (m.Manifests == nil) || len(m.Layers) > maxLayers || len(m.Manifests) > maxIndex {
			t.Errorf("accepted %+v", m)
		}
		parts := append(m.uniqueLayers(), m.Manifests...)
		if m.Config != nil {
			parts = append(parts, *m.Config)
		} else if _, err := here.choose(m.Manifests); err != nil && (fault.Of(err) == fault.Internal || strings.ContainsAny(err.Error(), "\x1b\n\x00")) {
			t.Errorf("choose = %q of class %q", err, fault.Of(err))
		}
		for _, d := range parts {
			if images.CheckDigest(d.Digest) != nil || d.Size < 0 {
				t.Errorf("accepted the part %+v", d)
			}
		}
	})
}

// FuzzConfig reads anything as a configuration. What is accepted can be given to a
// process and shown on a terminal.
func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"architecture":"amd64","os":"linux","created":"2024-01-02T03:04:05Z","config":{"User":"1:2","Env":["A=b"],"Entrypoint":["/a"],"Cmd":["b\n"],"WorkingDir":"/w","StopSignal":"SIGRTMIN+3","Labels":{"org.opencontainers.image.title":"t\u001b"}},"rootfs":{"type":"layers","diff_ids":["sha256:` + strings.Repeat("ab", 32) + `"]}}`))
	f.Add([]byte(`{"rootfs":{}}`))
	m := &manifest{Config: &descriptor{}, digest: digestOf(nil)}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := parseConfig(data)
		if err != nil {
			if fault.Of(err) == fault.Internal || strings.ContainsAny(err.Error(), "\x1b\n\x00") {
				t.Errorf("parseConfig = %q of class %q", err, fault.Of(err))
			}
			return
		}
		img := imageOf(m, c, data, "docker://example.org/x", platform{OS: "linux", Architecture: "amd64"})
		if strings.ContainsAny(img.Description+img.Properties[images.InitProperty], "\x1b\n\x00\u009b") || len(img.Description) > 200 {
			t.Errorf("the description is %q", img.Description)
		}
		if img.App == nil {
			return
		}
		for _, s := range slices.Concat(img.App.Entrypoint, img.App.Cmd, img.App.Env, []string{img.App.User, img.App.WorkingDir, img.App.StopSignal}) {
			if strings.ContainsAny(s, "\x00\x1b\r") || len(s) > maxString {
				t.Errorf("accepted %.100q", s)
			}
		}
	})
}

// FuzzDockerArchive reads anything as the list of images in what docker save wrote.
func FuzzDockerArchive(f *testing.F) {
	f.Add([]byte(`[{"Config":"c.json","RepoTags":["a/b:c"],"Layers":["l/layer.tar"]}]`), "a/b:c")
	f.Add([]byte(`[{},{"RepoTags":null}]`), "")
	config := []byte(`{"rootfs":{"diff_ids":["sha256:` + strings.Repeat("ab", 32) + `"]}}`)
	f.Fuzz(func(t *testing.T, list []byte, want string) {
		path := filepath.Join(t.TempDir(), "a.tar")
		var raw bytes.Buffer
		w := tar.NewWriter(&raw)
		for _, e := range []struct {
			name string
			data []byte
		}{{"manifest.json", list}, {"c.json", config}, {"l/layer.tar", nil}} {
			if w.WriteHeader(&tar.Header{Name: e.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(e.data))}) != nil {
				return
			}
			w.Write(e.data)
		}
		w.Close()
		if err := os.WriteFile(path, raw.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		a, err := (&Source{}).openDockerArchive(t.Context(), path+":"+want)
		if err != nil {
			t.Fatal(err)
		}
		defer a.Close()
		doc, err := a.root(t.Context())
		if err != nil {
			if fault.Of(err) == fault.Internal || strings.ContainsAny(err.Error(), "\x1b\n\x00") {
				t.Errorf("root = %q of class %q", err, fault.Of(err))
			}
			return
		}
		if _, err := parseManifest(doc); err != nil {
			t.Errorf("what was put together is no manifest: %v", err)
		}
	})
}
