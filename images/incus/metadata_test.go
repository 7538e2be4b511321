package incus

import (
	"strings"
	"testing"

	"brig/images"
	"brig/instance/fault"
)

// TestAliasesOfYAMLAreNeverExpanded has the bombs that YAML readers know.
func TestAliasesOfYAMLAreNeverExpanded(t *testing.T) {
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c <= 'z'; c++ {
		p := string(c - 1)
		bomb += string(c) + ": &" + string(c) + " [" + strings.Repeat("*"+p+",", 9) + "]\n"
	}
	bomb += "properties:\n  os: *z\n  <<: *z\n"
	m, err := Parse([]byte(bomb))
	if err != nil {
		t.Fatal(err)
	}
	img := images.Image{Properties: map[string]string{}}
	m.describe(&img)
	if len(img.Properties["os"]) > 10 {
		t.Errorf("os = %q, want it as it stands", img.Properties["os"])
	}
}

func TestMetadataIsBounded(t *testing.T) {
	for what, c := range map[string]struct {
		data  string
		class fault.Class
	}{
		"many bytes": {strings.Repeat("x", maxMetadata+1), fault.Exhausted},
		"many lines": {strings.Repeat("a:\n", maxLines+1), fault.Exhausted},
		"no text":    {"a: b\x00", fault.Invalid},
		"one line":   {strings.Repeat("x", maxMetadata), ""},
		"nothing":    {"", ""},
	} {
		if _, err := Parse([]byte(c.data)); fault.Of(err) != c.class {
			t.Errorf("%s: %v, want %q", what, err, c.class)
		}
	}
}

func TestPropertiesThatAreBrigsOwnAreNotTaken(t *testing.T) {
	m, err := Parse([]byte("properties:\n  init: /evil\n  firmware: evil\n  os: Debian\n"))
	if err != nil {
		t.Fatal(err)
	}
	img := images.Image{Properties: map[string]string{}}
	m.describe(&img)
	if len(img.Properties) != 1 || img.Properties["os"] != "Debian" {
		t.Errorf("properties = %v, want os alone", img.Properties)
	}
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte("architecture: x86_64\ncreation_date: 1700000000\nexpiry_date: 1\nproperties:\n  description: \"Debian \\e[31m\"\n  os: 'Debian'\ntemplates:\n  /etc/hostname:\n    when: [create]\n"))
	f.Add([]byte("a: &a [*a]\nproperties: {os: x}\n- - -\n"))
	f.Add([]byte("{\"architecture\": \"x86_64\"}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse(data)
		if err != nil {
			if fault.Of(err) == fault.Internal {
				t.Errorf("Parse = %v, want an error of a class", err)
			}
			return
		}
		img := images.Image{Properties: map[string]string{}}
		m.describe(&img)
		if len(img.Properties) > 64 {
			t.Errorf("%d properties", len(img.Properties))
		}
		for k, v := range img.Properties {
			if len(k) > 64 || len(v) > 256 || strings.ContainsAny(k+v, "\x1b\n\x00") {
				t.Errorf("property %q = %q", k, v)
			}
		}
		if note := m.Note(); len(note) > 2000 || strings.ContainsAny(note, "\x1b\n") {
			t.Errorf("note = %q", note)
		}
	})
}
