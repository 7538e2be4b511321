package images

import (
	"strings"
	"testing"
)

func TestForms(t *testing.T) {
	alias := func(s string) bool { return plain(s, "._/-", 63) }
	hex := strings.Repeat("0123456789abcdef", 4)
	cases := []struct {
		name string
		is   func(string) bool
		yes  []string
		no   []string
	}{
		{"fingerprint", isFingerprint, []string{hex}, []string{"", hex[1:], hex + "0", strings.ToUpper(hex), hex[1:] + "g", hex[1:] + "\n"}},
		{"digest", isDigest, []string{"sha256:" + hex}, []string{"", hex, "sha256:", "sha512:" + hex, "sha256:" + hex + "\n", "sha256:../" + hex[3:]}},
		{"tag", IsTag, []string{"a", "_", "_x", "1.2-3_B", strings.Repeat("a", 128), "_" + strings.Repeat("a", 127)},
			[]string{"", ".x", "-x", "a/b", "a:b", "a ", "\u00e4", "__" + strings.Repeat("a", 127), strings.Repeat("a", 129)}},
		{"alias", alias, []string{"a", "a/b", "9._-/", strings.Repeat("a", 63)}, []string{"", "/a", ".a", "-a", "_a", "a b", "a\n", strings.Repeat("a", 64)}},
	}
	for _, c := range cases {
		for _, s := range c.yes {
			if !c.is(s) {
				t.Errorf("%q is no %s, want it to be", s, c.name)
			}
		}
		for _, s := range c.no {
			if c.is(s) {
				t.Errorf("%q is a %s, want it not to be", s, c.name)
			}
		}
	}
}
