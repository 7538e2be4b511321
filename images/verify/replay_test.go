package verify

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"brig/instance/fault"
)

// paths lists a model as names, with what is in files of less than a few bytes.
func paths(m *Model) string {
	var list []string
	m.each(func(path string, n *node) {
		switch n.kind {
		case Directory:
			path = strings.TrimSuffix(path, "/") + "/"
		case Symlink:
			path += "->" + n.target
		}
		list = append(list, path)
	})
	return strings.Join(list, " ")
}

func TestLayersAreAppliedAsTheSpecificationSays(t *testing.T) {
	for name, c := range map[string]struct {
		layers [][]entry
		want   string
	}{
		"a whiteout hides what is below": {[][]entry{{fileOf("a", ""), fileOf("b", "")}, {fileOf(".wh.a", "")}}, "/ /b"},
		"a whiteout hides a directory":   {[][]entry{{fileOf("d/a", ""), fileOf("b", "")}, {fileOf(".wh.d", "")}}, "/ /b"},
		"not what its own layer brought": {[][]entry{{fileOf("a", "")}, {fileOf("a", "2"), fileOf(".wh.a", "")}}, "/ /a"},
		"nor after it":                   {[][]entry{{fileOf("a", "")}, {fileOf(".wh.a", ""), fileOf("a", "2")}}, "/ /a"},
		"nor in its directory":           {[][]entry{{fileOf("d/a", "")}, {fileOf("d/b", ""), fileOf(".wh.d", "")}}, "/ /d/ /d/b"},
		"opaque, before":                 {[][]entry{{fileOf("d/a", "")}, {fileOf("d/.wh..wh..opq", ""), fileOf("d/b", "")}}, "/ /d/ /d/b"},
		"opaque, after":                  {[][]entry{{fileOf("d/a", ""), fileOf("d/e/f", "")}, {fileOf("d/e/g", ""), fileOf("d/.wh..wh..opq", "")}}, "/ /d/ /d/e/ /d/e/g"},
		"opaque root":                    {[][]entry{{fileOf("a", "")}, {fileOf(".wh..wh..opq", ""), fileOf("b", "")}}, "/ /b"},
		"nothing is below the first":     {[][]entry{{fileOf("a", ""), fileOf(".wh.a", "")}}, "/ /a"},
		"only the parent is hidden":      {[][]entry{{fileOf("a", "")}, {fileOf(".wh.a", "")}, {fileOf("a", "")}}, "/ /a"},
		"a file replaces a directory":    {[][]entry{{fileOf("d/a", "")}, {fileOf("d", "")}}, "/ /d"},
		"a directory replaces a file":    {[][]entry{{fileOf("d", "")}, {dirOf("d")}}, "/ /d/"},
		"a directory keeps what is in":   {[][]entry{{fileOf("d/a", "")}, {dirOf("d")}}, "/ /d/ /d/a"},
		"a link does not":                {[][]entry{{fileOf("d/a", "")}, {symlinkOf("d", "x")}}, "/ /d->x"},
		"a directory replaces a link":    {[][]entry{{symlinkOf("d", "x"), dirOf("x")}, {dirOf("d")}}, "/ /d/ /x/"},
		"links lead inside":              {[][]entry{{symlinkOf("l", "/../../x")}, {fileOf("l/a", "")}}, "/ /l->/../../x /x/ /x/a"},
		"a whiteout through a link":      {[][]entry{{symlinkOf("l", "x"), fileOf("x/a", ""), fileOf("x/b", "")}, {fileOf("l/.wh.a", "")}}, "/ /l->x /x/ /x/b"},
		"an implied directory":           {[][]entry{{fileOf("d", "")}, {fileOf("d/a", "")}}, "/ /d/ /d/a"},
		"a device 0:0 is none":           {[][]entry{{deviceOf("c", tar.TypeChar, 0, 0)}}, "/"},
		"aufs":                           {[][]entry{{fileOf(".wh..wh.plnk/1", ""), fileOf(".wh..wh.aufs", "")}}, "/"},
		"a whiteout of one link":         {[][]entry{{fileOf("a", ""), hardlinkOf("b", "a")}, {fileOf(".wh.a", "")}}, "/ /b"},
	} {
		var layers [][]byte
		for _, l := range c.layers {
			layers = append(layers, layer(t, l...))
		}
		if got := paths(replay(t, layers...)); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestHostileLayersAreRefused(t *testing.T) {
	deep := strings.Repeat("d/", 300)
	for name, c := range map[string]struct {
		entries []entry
		class   fault.Class
	}{
		"upwards":              {[]entry{fileOf("../x", "")}, fault.Invalid},
		"a link to nothing":    {[]entry{hardlinkOf("a", "b")}, fault.Invalid},
		"a link to itself":     {[]entry{fileOf("a", ""), hardlinkOf("a", "a")}, fault.Invalid},
		"a link to a parent":   {[]entry{fileOf("d/a", ""), hardlinkOf("d", "d/a")}, fault.Invalid},
		"a link to a folder":   {[]entry{dirOf("d"), hardlinkOf("a", "d")}, fault.Invalid},
		"a circle of links":    {[]entry{symlinkOf("a", "b"), symlinkOf("b", "a"), fileOf("a/x", "")}, fault.Invalid},
		"a whiteout of ..":     {[]entry{fileOf("d/.wh...", "")}, fault.Invalid},
		"a whiteout as folder": {[]entry{fileOf(".wh.d/x", "")}, fault.Invalid},
		"a file as root":       {[]entry{fileOf(".", "")}, fault.Invalid},
		"too deep":             {[]entry{fileOf(deep+"x", "")}, fault.Invalid},
		"deep through a link":  {[]entry{dirOf(deep[:400]), symlinkOf("l", deep[:400]), fileOf("l/"+deep[:300]+"x", "")}, fault.Invalid},
		"too long a name":      {[]entry{fileOf(strings.Repeat("x", 256), "")}, fault.Invalid},
		"too large":            {[]entry{fileOf("big", strings.Repeat("x", 5000))}, fault.Exhausted},
		"too many":             {slices.Repeat([]entry{fileOf("a", "")}, 400), fault.Exhausted},
		"an owner":             {[]entry{fileOf("a", "").of(-1, 0, 0)}, fault.Invalid},
		"a device number":      {[]entry{deviceOf("c", tar.TypeChar, 1<<13, 0)}, fault.Invalid},
	} {
		p := NewReplay(Limits{FileBytes: 4096, Entries: 310})
		var raw []byte
		if name == "an owner" {
			whole := fileOf("a", "")
			whole.ModTime = time.Unix(1e9, 0)
			raw = layer(t, whole)
			copy(raw[108:], "\xff\xff\xff\xff\xff\xff\xff\xff") // of the first header
			raw = fixSums(raw)
		} else {
			raw = layer(t, c.entries...)
		}
		if err := p.Layer(t.Context(), bytes.NewReader(raw)); fault.Of(err) != c.class {
			t.Errorf("%s: %v (%s), want %s", name, err, fault.Of(err), c.class)
		}
	}
	whole := layer(t, fileOf("a", strings.Repeat("x", 2000)))
	if err := NewReplay(Limits{}).Layer(t.Context(), bytes.NewReader(whole[:1500])); !fault.Is(err, fault.Invalid) {
		t.Errorf("a cut layer: %v, want invalid", err)
	}
	if err := NewReplay(Limits{Bytes: 1024}).Layer(t.Context(), bytes.NewReader(whole)); !fault.Is(err, fault.Exhausted) {
		t.Errorf("a long layer: %v, want exhausted", err)
	}
	broken := errors.New("broken")
	if err := NewReplay(Limits{}).Layer(t.Context(), io.MultiReader(bytes.NewReader(whole[:700]), errReader{broken})); !errors.Is(err, broken) {
		t.Errorf("a broken source: %v", err)
	}
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }
