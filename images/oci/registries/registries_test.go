package registries

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

const digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// config writes files and loads them, in their order.
func config(t *testing.T, texts ...string) (Config, error) {
	t.Helper()
	var files []string
	for i, text := range texts {
		path := filepath.Join(t.TempDir(), string(rune('a'+i))+".conf")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, path)
	}
	return Load(append(files, filepath.Join(t.TempDir(), "missing.conf"))...)
}

const example = `
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"

[[registry]]
location = "docker.io"
[[registry.mirror]]
location = "mirror.example:5000/hub"
insecure = true
[[registry.mirror]]
location = "digests.example"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example"
pull-from-mirror = "tag-only"

[[registry]]
prefix = "docker.io/library"
location = "library.example/official"
insecure = true

[[registry]]
prefix = "*.example.org"

[[registry.mirror]]
location = "all.example/org"

[[registry]]
prefix = "plain.example.org"
location = "plain.example.org"

[[registry]]
location = "bad.example/them"
blocked = true

[[registry]]
location = "once.example"
mirror-by-digest-only = true
[[registry.mirror]]
location = "copy.example"
`

func TestPlaces(t *testing.T) {
	c, err := config(t, example)
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"other.example/a/b:1":          "docker://other.example/a/b:1",
		"docker.io/me/app:1":           "docker://mirror.example:5000/hub/me/app:1! docker://tags.example/me/app:1 docker://docker.io/me/app:1",
		"docker.io/me/app@" + digest:   "docker://mirror.example:5000/hub/me/app@" + digest + "! docker://digests.example/me/app@" + digest + " docker://docker.io/me/app@" + digest,
		"docker.io/library/nginx:2":    "docker://library.example/official/nginx:2!",
		"docker.io/librarything/x:2":   "docker://mirror.example:5000/hub/librarything/x:2! docker://tags.example/librarything/x:2 docker://docker.io/librarything/x:2",
		"a.example.org:5000/x:1":       "docker://all.example/org/x:1 docker://a.example.org:5000/x:1",
		"plain.example.org/x:1":        "docker://plain.example.org/x:1",
		"bad.example/they:1":           "docker://bad.example/they:1",
		"once.example/x:1":             "docker://once.example/x:1",
		"once.example/x@" + digest:     "docker://copy.example/x@" + digest + " docker://once.example/x@" + digest,
		"docker.io.example.com/me/a:1": "docker://docker.io.example.com/me/a:1",
	} {
		repo, err := images.ParseRepository(images.Ref{Scheme: "docker", Name: name})
		if err != nil {
			t.Fatal(err)
		}
		places, err := c.Places(repo)
		var got []string
		for _, p := range places {
			s := p.Repository.String()
			if p.Insecure {
				s += "!"
			}
			got = append(got, s)
		}
		if strings.Join(got, " ") != want || err != nil {
			t.Errorf("Places(%q) = %v, %v\nwant %s", name, got, err, want)
		}
	}
	_, err = c.Places(images.Repository{Host: "bad.example", Path: "them/x", Tag: "1"})
	if !fault.Is(err, fault.Forbidden) || !strings.Contains(err.Error(), "a.conf blocks bad.example/them") {
		t.Errorf("Places of a blocked one = %v, want forbidden, with the file", err)
	}
}

func TestALaterFileWins(t *testing.T) {
	c, err := config(t, example, "[[registry]]\nlocation = \"docker.io\"\n")
	if err != nil {
		t.Fatal(err)
	}
	places, err := c.Places(images.Repository{Host: "docker.io", Path: "me/app", Tag: "1"})
	if err != nil || len(places) != 1 {
		t.Errorf("Places() = %v, %v, want the registry alone", places, err)
	}
}

func TestBadSettingsSayWhere(t *testing.T) {
	for text, word := range map[string]string{
		"[[registry":                      "a.conf",
		"[[registry]]\ninsecure = true\n": "neither prefix nor location",
		"[[registry]]\nlocation = 3\n":    "location",
		"[[registry]]\nlocation=\"a.b\"\n[[registry]]\nlocation=\"a.b/\"":                                   "two tables",
		"[[registry]]\nprefix=\"*.a.b/c\"\n":                                                                "wildcard",
		"[[registry]]\nlocation=\"a.b\"\n[[registry.mirror]]\n":                                             "no location",
		"[[registry]]\nlocation=\"a.b\"\n[[registry.mirror]]\nlocation=\"c.d\"\npull-from-mirror=\"never\"": "want all",
		"[registries.search]\nregistries = ['a.b']\n":                                                       "version 1",
		strings.Repeat("#", maxFile+1):                                                                      "larger than",
	} {
		if _, err := config(t, text); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), word) {
			t.Errorf("Load of %.60q = %v, want invalid with %q", text, err, word)
		}
	}
	c, err := config(t, "[[registry]]\nlocation=\"a.b\"\n[[registry.mirror]]\nlocation=\"https://c.d/x\"\n")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Places(images.Repository{Host: "a.b", Path: "x", Tag: "1"}); !fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), "want HOST") {
		t.Errorf("Places with a URL for a mirror = %v, want invalid", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("[[registry]]\nprefix=\"*.\"\nlocation=\"/\"\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		list, err := parse(data)
		if err != nil {
			return
		}
		c := Config{registries: list}
		asked := images.Repository{Host: "docker.io", Path: "library/nginx", Tag: "1"}
		places, err := c.Places(asked)
		if err == nil && len(places) == 0 {
			t.Error("Places() = nothing, and no error")
		}
		for _, p := range places {
			if p.Repository.Tag != asked.Tag {
				t.Errorf("a place has the tag %q, want the one that was asked for", p.Repository.Tag)
			}
		}
	})
}
