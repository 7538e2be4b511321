package oci

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"brig/instance/fault"
)

// splitOf takes a tar apart as github.com/vbatts/tar-split does, and puts its files
// into dir.
func splitOf(t *testing.T, data []byte, dir string) []byte {
	t.Helper()
	var list bytes.Buffer
	enc := json.NewEncoder(&list)
	put := func(e splitEntry) {
		if err := enc.Encode(e); err != nil {
			t.Fatal(err)
		}
	}
	r := bytes.NewReader(data)
	tr := tar.NewReader(r)
	end := 0
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		at := len(data) - r.Len()
		put(splitEntry{Type: splitSegment, Payload: data[end:at]})
		put(splitEntry{Type: splitFile, Name: hdr.Name, Size: hdr.Size})
		end = at + int(hdr.Size)
		path := filepath.Join(dir, hdr.Name)
		if hdr.Typeflag == tar.TypeDir {
			err = os.MkdirAll(path, 0o755)
		} else if err = os.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.WriteFile(path, data[at:end], 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(splitEntry{Type: splitSegment, Payload: data[end:]})
	return list.Bytes()
}

// storageOf makes a storage of podman with one image of tars.
func storageOf(t *testing.T, driver, name string, tars ...[]byte) string {
	t.Helper()
	b := build(t, tars...)
	manifest := b.finish(t)
	config := b.manifest["config"].(map[string]any)["digest"].(string)
	id := strings.TrimPrefix(config, "sha256:")
	dir := t.TempDir()
	files := map[string][]byte{
		driver + "-images/" + id + "/manifest":                                              manifest,
		driver + "-images/" + id + "/=" + base64.StdEncoding.EncodeToString([]byte(config)): b.blobs[config],
	}
	var layers []object
	parent := ""
	for i, data := range tars {
		layer := strings.Repeat("0", 63) + string(rune('a'+i))
		where := filepath.Join(dir, driver, layer, "diff")
		if driver == "vfs" {
			where = filepath.Join(dir, "vfs/dir", layer)
		}
		if err := os.MkdirAll(where, 0o755); err != nil {
			t.Fatal(err)
		}
		files[driver+"-layers/"+layer+".tar-split.gz"] = gzipOf(t, splitOf(t, data, where))
		l := object{"id": layer, "parent": parent, "diff-digest": digestOf(data)}
		if i == 0 {
			l["diff-size"] = len(data) // the others are measured
		}
		layers = append(layers, l)
		parent = layer
	}
	files[driver+"-layers/layers.json"] = encode(t, layers)
	files[driver+"-images/images.json"] = encode(t, []object{{"id": id, "names": []string{name}, "layer": parent}})
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestImagesOfPodman(t *testing.T) {
	p := newPuller(t, Options{})
	tars := [][]byte{tarOf(t, "a=1", "d/", "d/x="+strings.Repeat("long", 1000)), tarOf(t, "a=2", "e=")}
	for _, driver := range []string{"overlay", "vfs"} {
		dir := storageOf(t, driver, "localhost/app:1", tars...)
		for _, name := range []string{
			"[" + driver + "@" + dir + "+/run/nowhere:opt=1]localhost/app:1", "[" + dir + "]app:1",
		} {
			_, root, err := p.pull(t.Context(), t, "containers-storage:"+name)
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			wantFile(t, root, "a", "2")
			wantFile(t, root, "e", "")
			wantFile(t, root, "d/x", strings.Repeat("long", 1000))
		}
	}
	// By where the settings say it is, and by id.
	dir := storageOf(t, "overlay", "docker.io/library/nginx:latest", tars...)
	conf := filepath.Join(t.TempDir(), "storage.conf")
	if err := os.WriteFile(conf, []byte("[storage]\ndriver = \"overlay\"\ngraphroot = \""+dir+"\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_STORAGE_CONF", conf)
	id := filepath.Base(glob(t, filepath.Join(dir, "overlay-images/*/manifest"), true))
	for _, name := range []string{"nginx", "docker.io/nginx:latest", id, id[:12], "@" + id} {
		if _, err := p.find(t.Context(), "containers-storage:"+name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func glob(t *testing.T, pattern string, above bool) string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		t.Fatalf("%s: %v, %v", pattern, found, err)
	}
	if above {
		return filepath.Dir(found[0])
	}
	return found[0]
}

func TestDamagedStorageOfPodman(t *testing.T) {
	p := newPuller(t, Options{})
	for what, c := range map[string]struct {
		damage func(t *testing.T, dir string)
		class  fault.Class
		words  string
	}{
		"another content": {func(t *testing.T, dir string) { overwrite(t, glob(t, dir+"/overlay/*/diff/a", false), "9") }, fault.Unavailable, "sha256"},
		"another size":    {func(t *testing.T, dir string) { overwrite(t, glob(t, dir+"/overlay/*/diff/a", false), "99") }, fault.Invalid, "changed"},
		"a link": {func(t *testing.T, dir string) {
			name := glob(t, dir+"/overlay/*/diff/a", false)
			if err := errors.Join(os.Remove(name), os.Symlink("/etc/hostname", name)); err != nil {
				t.Fatal(err)
			}
		}, fault.Invalid, "not complete"},
		"no list": {func(t *testing.T, dir string) { remove(t, glob(t, dir+"/overlay-layers/*.gz", false)) }, fault.Unsupported, "podman save"},
		"a bad list": {func(t *testing.T, dir string) {
			overwrite(t, glob(t, dir+"/overlay-layers/*.gz", false), string(gzipOf(t, []byte(`{"type":7}`))))
		}, fault.Invalid, "damaged"},
		"no layer": {func(t *testing.T, dir string) { overwrite(t, dir+"/overlay-layers/layers.json", "[]") }, fault.Invalid, "lacks its layer"},
		"a loop": {func(t *testing.T, dir string) {
			l := strings.Repeat("0", 63) + "a"
			overwrite(t, dir+"/overlay-layers/layers.json", `[{"id":"`+l+`","parent":"`+l+`"}]`)
		}, fault.Invalid, "more than"},
		"no images":     {func(t *testing.T, dir string) { remove(t, dir+"/overlay-images/images.json") }, fault.NotFound, "no images of podman"},
		"another image": {func(t *testing.T, dir string) { overwrite(t, dir+"/overlay-images/images.json", "[]") }, fault.NotFound, "no image"},
		"a bad config":  {func(t *testing.T, dir string) { overwrite(t, glob(t, dir+"/overlay-images/*/=*", false), "{}") }, fault.Invalid, "damaged"},
	} {
		t.Run(what, func(t *testing.T) {
			dir := storageOf(t, "overlay", "localhost/app:1", tarOf(t, "a=1"))
			c.damage(t, dir)
			_, _, err := p.pull(t.Context(), t, "containers-storage:["+dir+"]app:1")
			if fault.Of(err) != c.class || !strings.Contains(err.Error(), c.words) {
				t.Errorf("%v (class %q), want class %q and %q", err, fault.Of(err), c.class, c.words)
			}
		})
	}
	for name, class := range map[string]fault.Class{
		"[overlay@relative]app": fault.Invalid, "[overlay@/x": fault.Invalid, "[/x]": fault.Invalid,
		"[zfs@/]app": fault.Unsupported, "[/no/such/folder]app": fault.NotFound,
	} {
		if _, err := p.find(t.Context(), "containers-storage:"+name); fault.Of(err) != class {
			t.Errorf("%s: %v, want class %q", name, err, class)
		}
	}
}

func overwrite(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// TestStorageThatSkopeoMade compares with the real thing, where that is installed; what
// the tests above make has its format.
func TestStorageThatSkopeoMade(t *testing.T) {
	if _, err := exec.LookPath("skopeo"); err != nil || os.Getuid() != 0 {
		t.Skip("needs skopeo, and root")
	}
	layout := writeDir(t, layoutOf(t, map[string]*built{"one": build(t, tarOf(t, "a=1", "d/", "d/x=y"), tarOf(t, "d/.wh.x=", "b=2"))}))
	dir := t.TempDir()
	name := "[vfs@" + dir + "/store+" + dir + "/run]localhost/app:1"
	if out, err := exec.Command("skopeo", "--insecure-policy", "copy", "oci:"+layout+":one", "containers-storage:"+name).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	p := newPuller(t, Options{})
	_, root, err := p.pull(t.Context(), t, "containers-storage:"+name)
	if err != nil {
		t.Fatal(err)
	}
	wantFile(t, root, "a", "1")
	wantFile(t, root, "b", "2")
	if _, err := os.Stat(filepath.Join(root, "d/x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("d/x = %v, want it taken away by the second layer", err)
	}
}
