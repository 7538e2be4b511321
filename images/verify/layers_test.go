package verify

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

// folder is a store of blobs.
type folder string

func (f folder) path(digest string) string {
	return filepath.Join(string(f), strings.TrimPrefix(digest, "sha256:"))
}

func (f folder) Blob(digest string) (*os.File, error) {
	b, err := os.Open(f.path(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.NotFound, err)
	}
	return b, err
}

func (f folder) put(t *testing.T, data []byte) string {
	t.Helper()
	must(t, os.WriteFile(f.path(digest(data)), data, 0o600))
	return digest(data)
}

// stored makes an image of layers, the last of them plain.
func stored(t *testing.T, layers ...[]byte) (folder, *images.Image) {
	t.Helper()
	f, img := folder(t.TempDir()), &images.Image{}
	var diffIDs []string
	for i, raw := range layers {
		l := images.Layer{DiffID: digest(raw), MediaType: "application/vnd.oci.image.layer.v1.tar"}
		if i < len(layers)-1 {
			var b bytes.Buffer
			w := gzip.NewWriter(&b)
			_, err := w.Write(raw)
			must(t, errors.Join(err, w.Close()))
			raw, l.MediaType = b.Bytes(), l.MediaType+"+gzip"
		}
		l.Size, l.Digest = int64(len(raw)), f.put(t, raw)
		img.Layers, diffIDs = append(img.Layers, l), append(diffIDs, l.DiffID)
	}
	var err error
	img.Config, err = json.Marshal(map[string]any{"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}})
	must(t, err)
	manifest, err := json.Marshal(map[string]any{"config": map[string]any{"digest": digest(img.Config)}, "layers": img.Layers})
	must(t, err)
	img.Fingerprint = strings.TrimPrefix(f.put(t, manifest), "sha256:")
	return f, img
}

// outcomes are the checks that did not end well.
func outcomes(checks []Check) string {
	var list []string
	for _, c := range checks {
		if c.Outcome != Same {
			list = append(list, c.Name+" "+string(c.Outcome))
		}
	}
	return strings.Join(list, ", ")
}

func TestStoredLayersAreChecked(t *testing.T) {
	layers := everything(t)
	want := replay(t, layers...)
	change := func(t *testing.T, path string, do func([]byte) []byte) {
		data, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, do(data), 0o600))
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	for name, c := range map[string]struct {
		damage func(t *testing.T, f folder, img *images.Image)
		want   string
	}{
		"nothing wrong": {func(*testing.T, folder, *images.Image) {}, ""},
		"a flipped byte in a packed layer": {func(t *testing.T, f folder, img *images.Image) {
			change(t, f.path(img.Layers[0].Digest), flip)
		}, "blob differs, diff-id differs"},
		"a flipped byte in a plain layer": {func(t *testing.T, f folder, img *images.Image) {
			change(t, f.path(img.Layers[1].Digest), func(b []byte) []byte { b[len(b)-1] ^= 1; return b })
		}, "blob differs, diff-id differs"},
		"a cut layer": {func(t *testing.T, f folder, img *images.Image) {
			change(t, f.path(img.Layers[0].Digest), func(b []byte) []byte { return b[:len(b)-9] })
		}, "blob differs, diff-id differs"},
		"a layer with more": {func(t *testing.T, f folder, img *images.Image) {
			change(t, f.path(img.Layers[0].Digest), func(b []byte) []byte { return append(b, "more"...) })
		}, "blob differs"},
		"another diff_id": {func(t *testing.T, f folder, img *images.Image) {
			img.Layers[0].DiffID = "sha256:" + strings.Repeat("0", 64)
		}, "configuration differs, diff-id differs"},
		"a flipped byte in the manifest": {func(t *testing.T, f folder, img *images.Image) {
			change(t, f.path("sha256:"+img.Fingerprint), flip)
		}, "manifest differs"},
		"another configuration": {func(t *testing.T, f folder, img *images.Image) {
			img.Config = append(img.Config, ' ')
		}, "manifest differs"},
		"layers in another order": {func(t *testing.T, f folder, img *images.Image) {
			img.Layers[0], img.Layers[1] = img.Layers[1], img.Layers[0]
		}, "manifest differs, configuration differs, diff-id differs"},
		"a layer that is gone": {func(t *testing.T, f folder, img *images.Image) {
			must(t, os.Remove(f.path(img.Layers[0].Digest)))
		}, "blob not-kept"},
	} {
		t.Run(name, func(t *testing.T) {
			f, img := stored(t, layers...)
			c.damage(t, f, img)
			m, checks, err := Layers(t.Context(), f, img, Limits{})
			must(t, err)
			if got := outcomes(checks); got != c.want {
				t.Errorf("%s, want %s: %+v", got, c.want, checks)
			}
			if m == nil != strings.Contains(c.want, "blob") && m == nil != strings.Contains(c.want, "diff-id") {
				t.Errorf("the model is there: %t", m != nil)
			}
			if c.want == "" {
				if r := Compare(want, m, On{}); r.Count > 0 {
					t.Errorf("differences %+v", r.Differences)
				}
			}
		})
	}
}

func TestLayerThatInflatesWithoutEndIsRefused(t *testing.T) {
	f, img := stored(t, layer(t, fileOf("zeros", strings.Repeat("\x00", 4<<20))), layer(t))
	_, checks, err := Layers(t.Context(), f, img, Limits{Bytes: 1 << 20})
	must(t, err)
	if got := outcomes(checks); got != "diff-id differs" {
		t.Errorf("%s, want diff-id differs: %+v", got, checks)
	}
}

func TestReportEndsAsItsWorstCheck(t *testing.T) {
	for _, c := range []struct {
		of   []Outcome
		want Outcome
	}{
		{[]Outcome{Same, NotKept}, Same},
		{[]Outcome{Same, Unchecked, Same}, Unchecked},
		{[]Outcome{Differs, Unchecked}, Differs},
		{[]Outcome{Unchecked, Differs, Same}, Differs},
	} {
		var r Report
		for _, o := range c.of {
			r.Add(Check{Outcome: o})
		}
		if r.Outcome != c.want {
			t.Errorf("%v end as %s, want %s", c.of, r.Outcome, c.want)
		}
	}
}
