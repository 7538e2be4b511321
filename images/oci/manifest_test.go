package oci

import (
	"maps"
	"net/http"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/types"

	"brig/images"
	"brig/instance/fault"
)

type object = map[string]any

// serveDocuments answers for manifests out of a map by tag or digest, whatever
// they are.
func (s *server) serveDocuments(docs map[string][]byte, contentType string) {
	s.on("/manifests/", func(w http.ResponseWriter, r *http.Request) bool {
		data, ok := docs[path.Base(r.URL.Path)]
		if !ok {
			return false
		}
		w.Header().Set("Content-Type", contentType)
		w.Write(data)
		return true
	})
}

func TestHostileManifests(t *testing.T) {
	sha512 := "sha512:" + strings.Repeat("ab", 64)
	layer := func(m object) object { return m["layers"].([]any)[0].(object) }
	config := func(m object) object { return m["config"].(object) }
	cases := map[string]struct {
		change      func(m object)
		contentType string
		class       fault.Class
		words       string
	}{
		"good":                 {change: func(object) {}},
		"good, plain JSON":     {change: func(object) {}, contentType: "application/json"},
		"no media type":        {change: func(m object) { delete(m, "mediaType") }, contentType: "text/plain; charset=utf-8"},
		"schema 1":             {func(m object) { m["schemaVersion"] = 1 }, "application/json", fault.Unsupported, "schema 1"},
		"schema 1 by type":     {func(m object) { m["mediaType"] = string(types.DockerManifestSchema1Signed) }, "application/json", fault.Unsupported, "schema 1"},
		"schema 7":             {func(m object) { m["schemaVersion"] = 7 }, "", fault.Invalid, "schema version"},
		"unknown type":         {func(m object) { m["mediaType"] = "application/vnd.x+json" }, "application/json", fault.Unsupported, "unknown media type"},
		"two types":            {func(m object) { m["mediaType"] = string(types.DockerManifestSchema2) }, "", fault.Invalid, "ambiguous"},
		"image and index":      {func(m object) { m["manifests"] = []any{} }, "", fault.Invalid, "ambiguous"},
		"index by type only":   {func(m object) { m["mediaType"] = string(types.OCIImageIndex) }, "application/json", fault.Invalid, "is not"},
		"no configuration":     {func(m object) { delete(m, "config") }, "", fault.Invalid, "lacks"},
		"no layers":            {func(m object) { delete(m, "layers") }, "", fault.Invalid, "lacks"},
		"an artifact":          {func(m object) { config(m)["mediaType"] = "application/vnd.cncf.helm.config.v1+json" }, "", fault.Unsupported, "not a container image"},
		"negative size":        {func(m object) { layer(m)["size"] = -1 }, "", fault.Invalid, "size"},
		"digest as path":       {func(m object) { layer(m)["digest"] = "sha256:../../../etc/shadow" }, "", fault.Invalid, "digest"},
		"upper case digest":    {func(m object) { layer(m)["digest"] = "sha256:" + strings.Repeat("AB", 32) }, "", fault.Invalid, "digest"},
		"no digest":            {func(m object) { delete(layer(m), "digest") }, "", fault.Invalid, "digest"},
		"sha512":               {func(m object) { layer(m)["digest"] = sha512 }, "", fault.Unsupported, "sha256"},
		"foreign layer":        {func(m object) { layer(m)["mediaType"] = string(types.DockerForeignLayer) }, "", fault.Unsupported, "distribute"},
		"nondistributable":     {func(m object) { layer(m)["mediaType"] = string(types.OCIRestrictedLayer) }, "", fault.Unsupported, "distribute"},
		"encrypted layer":      {func(m object) { layer(m)["mediaType"] = string(types.OCILayer) + "+encrypted" }, "", fault.Unsupported, "unknown media type"},
		"too many layers":      {func(m object) { m["layers"] = slices.Repeat(m["layers"].([]any), maxLayers+1) }, "", fault.Invalid, "layers"},
		"more layers":          {func(m object) { m["layers"] = slices.Repeat(m["layers"].([]any), 2) }, "", fault.Invalid, "diff_ids"},
		"fewer layers":         {func(m object) { m["layers"] = []any{} }, "", fault.Invalid, "diff_ids"},
		"large configuration":  {func(m object) { config(m)["size"] = maxConfig + 1 }, "", fault.Invalid, "at most"},
		"configuration size":   {func(m object) { config(m)["size"] = 5 }, "", fault.Unavailable, "wrong size"},
		"type as a number":     {func(m object) { layer(m)["size"] = "big" }, "", fault.Invalid, "JSON"},
		"plain says gzip":      {func(m object) { layer(m)["mediaType"] = string(types.OCIUncompressedLayer) }, "", fault.Invalid, "gzip"},
		"zstd says gzip":       {func(m object) { layer(m)["mediaType"] = string(types.OCILayerZStd) }, "", fault.Invalid, "gzip"},
		"embedded data is not": {change: func(m object) { layer(m)["data"] = "aGVsbG8=" }},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t), newPuller(t, Options{})
			b := build(t, tarOf(t, "a=1"))
			s.push(t, "1", b)
			c.change(b.manifest)
			s.serveDocuments(map[string][]byte{"1": encode(t, b.manifest)}, or(c.contentType, string(types.OCIManifestSchema1)))
			_, dir, err := p.pull(t.Context(), t, s.ref("1"))
			wantClass(t, "pull", err, c.class, c.words)
			if c.class == "" {
				wantFile(t, dir, "a", "1")
			}
		})
	}
}

func TestWrongDiffIDIsInvalid(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a=1"))
	b.config["rootfs"].(object)["diff_ids"] = []string{digestOf([]byte("x"))}
	s.push(t, "1", b)
	_, _, err := p.pull(t.Context(), t, s.ref("1"))
	wantClass(t, "pull", err, fault.Invalid, "diff_id", b.layers[0])
}

// index describes documents, each for a platform if it has one.
func index(t *testing.T, entries ...object) []byte {
	t.Helper()
	return encode(t, object{"schemaVersion": 2, "mediaType": string(types.OCIImageIndex), "manifests": append([]object{}, entries...)})
}

func entry(data []byte, mediaType types.MediaType, platform string) object {
	e := object{"mediaType": string(mediaType), "digest": digestOf(data), "size": len(data)}
	if parts := strings.Split(platform+"//", "/"); platform != "" {
		e["platform"] = object{"os": parts[0], "architecture": parts[1], "variant": parts[2]}
	}
	return e
}

func TestIndexes(t *testing.T) {
	s := serve(t)
	b := build(t, tarOf(t, "a=1"))
	m := s.push(t, "plain", b)
	here := "linux/" + runtime.GOARCH
	image := func(platform string) object { return entry(m, types.OCIManifestSchema1, platform) }
	nest := func(data []byte, n int, docs map[string][]byte) []byte {
		for range n {
			docs[digestOf(data)] = data
			data = index(t, entry(data, types.OCIImageIndex, ""))
		}
		return data
	}
	docs := map[string][]byte{digestOf(m): m}
	other := object{"mediaType": string(types.OCIManifestSchema1), "digest": digestOf([]byte("x")), "size": 1}
	with := func(platform string) object {
		e := maps.Clone(other)
		e["platform"] = entry(nil, "", platform)["platform"]
		return e
	}
	cases := map[string]struct {
		doc   []byte
		class fault.Class
		words string
	}{
		"chosen among others":   {doc: index(t, with("windows/amd64"), with("linux/s390y"), with("unknown/unknown"), image(here))},
		"the only one":          {doc: index(t, image(""))},
		"nested":                {doc: nest(index(t, image(here)), 3, docs)},
		"nested too deep":       {nest(index(t, image(here)), 4, docs), fault.Invalid, "deep"},
		"not for this platform": {index(t, with("linux/s390y"), with("unknown/unknown")), fault.Unsupported, "linux/s390y"},
		"empty":                 {index(t), fault.Unsupported, "nothing"},
		"says so wrongly":       {index(t, entry(index(t, image(here)), types.OCIManifestSchema1, here)), fault.Invalid, "ambiguous"},
		"wrong size":            {index(t, object{"mediaType": string(types.OCIManifestSchema1), "digest": digestOf(m), "size": len(m) - 1}), fault.Unavailable, "wrong size"},
		"truncated":             {index(t, object{"mediaType": string(types.OCIManifestSchema1), "digest": digestOf(m), "size": len(m) + 1}), fault.Unavailable, "truncated"},
		"missing":               {index(t, object{"mediaType": string(types.OCIManifestSchema1), "digest": digestOf([]byte("?")), "size": 1}), fault.NotFound, "404"},
		"bad digest":            {index(t, object{"mediaType": string(types.OCIManifestSchema1), "digest": "sha256:x", "size": 1}), fault.Invalid, "digest"},
	}
	wrong := index(t, image(here))
	docs[digestOf(wrong)] = wrong
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			all := maps.Clone(docs)
			all["1"] = c.doc
			s.on("/manifests/", func(w http.ResponseWriter, r *http.Request) bool {
				data, ok := all[path.Base(r.URL.Path)]
				if !ok {
					return false
				}
				mediaType := types.OCIImageIndex
				if digestOf(data) == digestOf(m) || name == "says so wrongly" && digestOf(data) == digestOf(wrong) {
					mediaType = types.OCIManifestSchema1
				}
				w.Header().Set("Content-Type", string(mediaType))
				w.Write(data)
				return true
			})
			img, dir, err := newPuller(t, Options{}).pull(t.Context(), t, s.ref("1"))
			wantClass(t, "pull", err, c.class, c.words)
			if c.class == "" {
				wantFile(t, dir, "a", "1")
				if img.Fingerprint != strings.TrimPrefix(digestOf(m), "sha256:") {
					t.Errorf("Fingerprint = %s, not that of the platform's manifest", img.Fingerprint)
				}
			}
		})
	}
}

func TestImageForAnotherArchitectureIsUnsupported(t *testing.T) {
	s, p := serve(t), newPuller(t, Options{})
	b := build(t, tarOf(t, "a=1"))
	b.config["architecture"] = "s390y"
	s.push(t, "1", b)
	_, err := p.find(t.Context(), s.ref("1"))
	wantClass(t, "Resolve", err, fault.Unsupported, "s390y")
	ref, _ := images.ParseRef(s.ref("1"))
	_, err = p.Resolve(t.Context(), ref, images.ResolveOptions{Architecture: "pdp11"})
	wantClass(t, "Resolve for a PDP-11", err, fault.Unsupported, "pdp11")
}

func TestARMVariants(t *testing.T) {
	v := func(s string) descriptor {
		return descriptor{Digest: s, Platform: &platform{OS: "linux", Architecture: "arm", Variant: s}}
	}
	v7, err := platformOf("armv7l")
	if err != nil {
		t.Fatal(err)
	}
	v6, _ := platformOf("armv6l")
	if d, err := v7.choose([]descriptor{v("v5"), v("v7"), v("v6")}); err != nil || d.Digest != "v7" {
		t.Errorf("armv7l chose %q, %v, want v7", d.Digest, err)
	}
	if d, err := v7.choose([]descriptor{v("v6")}); err != nil || d.Digest != "v6" {
		t.Errorf("armv7l chose %q, %v, want v6", d.Digest, err)
	}
	_, err = v6.choose([]descriptor{v("v7")})
	wantClass(t, "armv6l of v7", err, fault.Unsupported)
}

func TestHostileConfigurations(t *testing.T) {
	process := func(key string, value any) func(object) {
		return func(c object) { c["config"].(object)[key] = value }
	}
	long := strings.Repeat("x", maxString)
	cases := map[string]struct {
		change func(c object)
		class  fault.Class
		words  string
	}{
		"NUL in an argument":      {process("Cmd", []string{"a\x00b"}), fault.Invalid, "control"},
		"escape in an argument":   {process("Entrypoint", []string{"\x1b[2J"}), fault.Invalid, "control"},
		"carriage return":         {process("Env", []string{"A=\r"}), fault.Invalid, "control"},
		"line end in a name":      {process("Env", []string{"A\nlxc.hook.start=x"}), fault.Invalid, "NAME=VALUE"},
		"variable without name":   {process("Env", []string{"=x"}), fault.Invalid, "NAME=VALUE"},
		"variable without value":  {process("Env", []string{"PATH"}), fault.Invalid, "NAME=VALUE"},
		"many variables":          {process("Env", slices.Repeat([]string{"A=b"}, maxStrings+1)), fault.Invalid, "entries"},
		"long argument":           {process("Cmd", []string{long + "x"}), fault.Invalid, "larger"},
		"much in all":             {process("Cmd", slices.Repeat([]string{long}, 9)), fault.Invalid, "larger"},
		"line end in user":        {process("User", "root\n"), fault.Invalid, "User"},
		"long user":               {process("User", long), fault.Invalid, "User"},
		"line end in directory":   {process("WorkingDir", "/\n"), fault.Invalid, "WorkingDir"},
		"directory of a process":  {process("WorkingDir", "/proc/self/fd/7"), fault.Invalid, "WorkingDir"},
		"hidden directory of it":  {process("WorkingDir", "../x/..//proc/1/cwd"), fault.Invalid, "WorkingDir"},
		"signal that is none":     {process("StopSignal", "TERM; reboot"), fault.Invalid, "StopSignal"},
		"command as text":         {process("Cmd", "ls"), fault.Invalid, "JSON"},
		"diff_id as path":         {func(c object) { c["rootfs"].(object)["diff_ids"] = []string{"sha256:../x"} }, fault.Invalid, "digest"},
		"other root file system":  {func(c object) { c["rootfs"].(object)["type"] = "overlay" }, fault.Unsupported, "type"},
		"another system":          {func(c object) { c["os"] = "windows" }, fault.Unsupported, "windows"},
		"script with lines":       {change: process("Cmd", []string{"sh", "-c", "a\n\tb"})},
		"signal by number":        {change: process("StopSignal", "15")},
		"real-time signal":        {change: process("StopSignal", "SIGRTMIN+3")},
		"no platform":             {change: func(c object) { delete(c, "os"); delete(c, "architecture") }},
		"no time":                 {change: func(c object) { c["created"] = "" }},
		"null for empty":          {change: process("Entrypoint", nil)},
		"name of a user with dot": {change: process("User", "first.last:staff")},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s, p := serve(t), newPuller(t, Options{})
			b := build(t, tarOf(t, "a=1"))
			c.change(b.config)
			s.push(t, "1", b)
			r, err := p.find(t.Context(), s.ref("1"))
			wantClass(t, "Resolve", err, c.class, c.words)
			if err == nil {
				r.Close()
			} else if strings.ContainsAny(err.Error(), "\x1b\x00\r\n") {
				t.Errorf("%q has control characters", err)
			}
		})
	}
}

func TestCommandThatIsAnInitMakesASystem(t *testing.T) {
	for _, c := range []struct {
		entrypoint, cmd []string
		kind            images.Kind
		init            string
	}{
		{[]string{"/sbin/init"}, nil, images.System, ""},
		{nil, []string{"/lib/systemd/systemd", "--system"}, images.System, "/lib/systemd/systemd"},
		{[]string{"/init"}, []string{"app"}, images.System, "/init"},
		{nil, []string{"/sbin/./init"}, images.System, ""},
		{[]string{"/app"}, []string{"/sbin/init"}, images.App, ""},
		{nil, []string{"bash"}, images.App, ""},
		{nil, nil, images.App, ""},
	} {
		s, p := serve(t), newPuller(t, Options{})
		b := build(t, tarOf(t, "a=1"))
		b.config["config"] = object{"Entrypoint": c.entrypoint, "Cmd": c.cmd}
		s.push(t, "1", b)
		r, err := p.find(t.Context(), s.ref("1"))
		if err != nil {
			t.Error(err)
			continue
		}
		img := r.Image()
		r.Close()
		if img.Kind != c.kind || img.Properties[images.InitProperty] != c.init || (img.App == nil) != (c.kind == images.System) {
			t.Errorf("%v %v: kind %s, init %q, app %+v, want %s with %q", c.entrypoint, c.cmd, img.Kind, img.Properties[images.InitProperty], img.App, c.kind, c.init)
		}
	}
}
