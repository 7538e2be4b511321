package oci

import (
	"archive/tar"
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"brig/images"
	"brig/instance/fault"
)

// layoutOf gives the files of an OCI layout that holds images by tag.
func layoutOf(t *testing.T, list map[string]*built) map[string][]byte {
	t.Helper()
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	var entries []object
	for _, tag := range slices.Sorted(maps.Keys(list)) {
		m := list[tag].finish(t)
		files[blobName(digestOf(m))] = m
		for digest, data := range list[tag].blobs {
			files[blobName(digest)] = data
		}
		e := entry(m, types.OCIManifestSchema1, "")
		if tag != "" {
			e["annotations"] = object{refName: tag}
		}
		entries = append(entries, e)
	}
	files["index.json"] = index(t, entries...)
	return files
}

func blobName(digest string) string { return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:") }

func writeDir(t *testing.T, files map[string][]byte) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// writeTar puts the files into an archive, the last names first: nobody may
// rely on an order.
func writeTar(t *testing.T, files map[string][]byte) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(files))) {
		hdr := &tar.Header{Name: "./" + name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}
		data := files[name]
		if target, ok := strings.CutPrefix(string(data), "-> "); ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size, data = tar.TypeSymlink, target, 0, nil
		}
		if err := w.WriteHeader(hdr); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return writeFile(t, b.Bytes())
}

func writeFile(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func zstdOf(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

// setLayer exchanges the first layer's blob for another form of the same tar.
func (b *built) setLayer(data []byte, mediaType string) {
	l := b.manifest["layers"].([]any)[0].(object)
	delete(b.blobs, b.layers[0])
	b.layers[0] = digestOf(data)
	b.blobs[b.layers[0]] = data
	l["digest"], l["size"], l["mediaType"] = digestOf(data), len(data), mediaType
}

func TestLayoutsInEveryForm(t *testing.T) {
	p := newPuller(t, Options{})
	files := layoutOf(t, map[string]*built{"one": build(t, tarOf(t, "a=1")), "two": build(t, tarOf(t, "a=2"), tarOf(t, "b=2"))})
	dir, archive := writeDir(t, files), writeTar(t, files)
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	for _, source := range []string{"oci:" + dir, "oci-archive:" + archive, "oci-archive:" + writeFile(t, gzipOf(t, data)), "oci-archive:" + writeFile(t, zstdOf(t, data))} {
		img, root, err := p.pull(t.Context(), t, source+":two")
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		wantFile(t, root, "a", "2")
		wantFile(t, root, "b", "2")
		if !slices.Equal(img.References, []string{source + ":two"}) {
			t.Errorf("References = %q", img.References)
		}
		_, err = p.find(t.Context(), source)
		wantClass(t, "Resolve without a tag", err, fault.Invalid, "one, two")
		_, err = p.find(t.Context(), source+":three")
		wantClass(t, "Resolve of an unknown tag", err, fault.NotFound, "one, two")
	}
	p.wantNothing(t)
}

func TestLayerFormats(t *testing.T) {
	data := tarOf(t, "a=1")
	for mediaType, blob := range map[string][]byte{
		string(types.OCIUncompressedLayer):    data,
		string(types.OCILayerZStd):            zstdOf(t, data),
		string(types.DockerLayer):             gzipOf(t, data),
		string(types.DockerUncompressedLayer): data,
		dockerZstd:                            zstdOf(t, data),
		string(types.OCILayer):                append(gzipOf(t, data), "trailing bytes are hashed too"...),
	} {
		b := build(t, data)
		b.setLayer(blob, mediaType)
		_, root, err := newPuller(t, Options{}).pull(t.Context(), t, "oci:"+writeDir(t, layoutOf(t, map[string]*built{"": b})))
		if err != nil {
			t.Errorf("%s: %v", mediaType, err)
			continue
		}
		wantFile(t, root, "a", "1")
	}
}

func TestDamagedLayouts(t *testing.T) {
	b := build(t, tarOf(t, "a=1"))
	good := layoutOf(t, map[string]*built{"": b})
	layer := blobName(b.layers[0])
	other := bytes.Clone(good[layer])
	other[len(other)-1] ^= 1
	for name, c := range map[string]struct {
		change func(map[string][]byte)
		class  fault.Class
		words  string
	}{
		"wrong digest":    {func(f map[string][]byte) { f[layer] = other }, fault.Unavailable, "wrong digest"},
		"garbage":         {func(f map[string][]byte) { f[layer] = bytes.Repeat([]byte("x"), len(other)) }, fault.Unavailable, "wrong digest"},
		"wrong size":      {func(f map[string][]byte) { f[layer] = f[layer][1:] }, fault.Unavailable, "wrong size"},
		"missing layer":   {func(f map[string][]byte) { delete(f, layer) }, fault.Invalid, "lacks"},
		"no oci-layout":   {func(f map[string][]byte) { delete(f, "oci-layout") }, fault.Invalid, "no OCI image layout"},
		"other version":   {func(f map[string][]byte) { f["oci-layout"] = []byte(`{"imageLayoutVersion":"2.0"}`) }, fault.Unsupported, "2.0"},
		"no index":        {func(f map[string][]byte) { delete(f, "index.json") }, fault.NotFound, "index.json"},
		"index no JSON":   {func(f map[string][]byte) { f["index.json"] = []byte("x") }, fault.Invalid, "JSON"},
		"empty index":     {func(f map[string][]byte) { f["index.json"] = index(t) }, fault.NotFound, "empty"},
		"large oci-layou": {func(f map[string][]byte) { f["oci-layout"] = make([]byte, 5000) }, fault.Invalid, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			files := maps.Clone(good)
			c.change(files)
			for _, source := range []string{"oci:" + writeDir(t, files), "oci-archive:" + writeTar(t, files)} {
				_, _, err := newPuller(t, Options{}).pull(t.Context(), t, source)
				wantClass(t, "pull", err, c.class, c.words)
			}
		})
	}
}

func TestLayoutCannotLeaveItsDirectory(t *testing.T) {
	b := build(t, tarOf(t, "a=1"))
	files := layoutOf(t, map[string]*built{"": b})
	dir := writeDir(t, files)
	secret := writeFile(t, files[blobName(b.layers[0])])
	layer := filepath.Join(dir, blobName(b.layers[0]))
	if err := os.Remove(layer); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, layer); err != nil {
		t.Fatal(err)
	}
	_, _, err := newPuller(t, Options{}).pull(t.Context(), t, "oci:"+dir)
	wantClass(t, "pull through a link out", err, fault.Invalid)
}

// savedOf gives the files that docker save writes, in the old style with plain
// layers, or with compressed ones as other tools do.
func savedOf(t *testing.T, pack func([]byte) []byte, tags []string, tars ...[]byte) map[string][]byte {
	t.Helper()
	b := build(t, tars...)
	config := encode(t, b.config)
	name := strings.TrimPrefix(digestOf(config), "sha256:") + ".json"
	files := map[string][]byte{name: config}
	var layers []string
	for i, data := range tars {
		if i > 0 && bytes.Equal(data, tars[0]) {
			files["9/layer.tar"] = []byte("-> ../0/layer.tar")
			layers = append(layers, "9/layer.tar")
			continue
		}
		layer := string(rune('0'+i)) + "/layer.tar"
		files[layer] = pack(data)
		layers = append(layers, layer)
	}
	files["manifest.json"] = encode(t, []object{{"Config": name, "RepoTags": tags, "Layers": layers}})
	return files
}

func TestDockerArchives(t *testing.T) {
	one := tarOf(t, "a=1")
	plain := func(b []byte) []byte { return b }
	zip := func(b []byte) []byte { return gzipOf(t, b) }
	var fingerprints []string
	for _, pack := range []func([]byte) []byte{plain, zip, plain} {
		archive := "docker-archive:" + writeTar(t, savedOf(t, pack, []string{"app:latest", "app:1"}, one, tarOf(t, "a=2", "b=2"), one))
		for _, name := range []string{archive, archive + ":app", archive + ":app:1", archive + ":docker.io/library/app:1"} {
			img, root, err := newPuller(t, Options{}).pull(t.Context(), t, name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			wantFile(t, root, "a", "1")
			wantFile(t, root, "b", "2")
			if len(img.Fingerprint) != 64 || img.Kind != images.App {
				t.Errorf("image = %+v", img)
			}
			fingerprints = append(fingerprints, img.Fingerprint)
		}
		_, err := newPuller(t, Options{}).find(t.Context(), archive+":app:2")
		wantClass(t, "Resolve of an unknown name", err, fault.NotFound, "app:1")
	}
	if len(fingerprints) != 12 || fingerprints[0] != fingerprints[11] || fingerprints[0] == fingerprints[4] {
		t.Errorf("fingerprints = %q, want the same for the same archive only", fingerprints)
	}
}

func TestDamagedDockerArchives(t *testing.T) {
	plain := func(b []byte) []byte { return b }
	for name, c := range map[string]struct {
		change func(map[string][]byte)
		class  fault.Class
		words  string
	}{
		"no manifest":      {func(f map[string][]byte) { delete(f, "manifest.json") }, fault.Invalid, "manifest.json"},
		"manifest no JSON": {func(f map[string][]byte) { f["manifest.json"] = []byte("[") }, fault.Invalid, "JSON"},
		"other layer":      {func(f map[string][]byte) { f["0/layer.tar"] = tarOf(t, "b=1") }, fault.Unavailable, "wrong digest"},
		"missing layer":    {func(f map[string][]byte) { delete(f, "0/layer.tar") }, fault.NotFound, "layer.tar"},
		"link in a circle": {func(f map[string][]byte) { f["0/layer.tar"] = []byte("-> layer.tar") }, fault.Invalid, "link"},
		"link to outside":  {func(f map[string][]byte) { f["0/layer.tar"] = []byte("-> /etc/passwd") }, fault.NotFound, "layer.tar"},
	} {
		t.Run(name, func(t *testing.T) {
			files := savedOf(t, plain, []string{"app:1"}, tarOf(t, "a=1"))
			c.change(files)
			_, _, err := newPuller(t, Options{}).pull(t.Context(), t, "docker-archive:"+writeTar(t, files))
			wantClass(t, "pull", err, c.class, c.words)
		})
	}
}

func TestFilesThatAreNoArchives(t *testing.T) {
	p := newPuller(t, Options{})
	dir := t.TempDir()
	for _, scheme := range []string{"oci-archive:", "docker-archive:"} {
		for what, c := range map[string]struct {
			path  string
			class fault.Class
		}{
			"nothing":     {filepath.Join(dir, "none"), fault.NotFound},
			"a directory": {dir, fault.Invalid},
			"empty":       {writeFile(t, nil), fault.Invalid},
			"text":        {writeFile(t, []byte(strings.Repeat("hello ", 200))), fault.Invalid},
			"cut gzip":    {writeFile(t, gzipOf(t, tarOf(t, "a=1"))[:40]), fault.Invalid},
		} {
			_, err := p.find(t.Context(), scheme+c.path)
			wantClass(t, scheme+" of "+what, err, c.class)
		}
	}
	_, err := p.find(t.Context(), "oci:"+filepath.Join(dir, "none"))
	wantClass(t, "oci: of nothing", err, fault.NotFound)
	p.wantNothing(t)
}
